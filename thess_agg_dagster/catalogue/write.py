"""Writing to the lake: first items and addresses, then the list, and an account of every scene."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from thess_agg_dagster.catalogue.listed import SCENE_COLUMNS, Listed
from thess_agg_dagster.catalogue.outcome import Outcome, Request, Verdict
from thess_agg_dagster.catalogue.scene import Scene
from thess_agg_dagster.catalogue.tables import Table
from thess_agg_dagster.lake.catalogue import item_asset
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import staged_file
from thess_agg_dagster.storage.fingerprints import fingerprint_of


def write_catalogue(lake: DataLake, request: Request, outcome: Outcome, listed: Listed) -> None:
    """Write the decisions. The list is written after the files it refers to, so that its readers find them."""
    for choice in outcome.added:
        listed.add(choice.seen, choice.anchor)
    changed = {choice.timestamp for choice in outcome.added} | set(outcome.upgraded)
    scenes = [each.scene for each in outcome.scenes if each.taken and each.timestamp in changed and each.scene]
    for scene in scenes:
        path = lake.scene_item(scene.scene_id)
        if fingerprint_of(path) is None:  # one that is there is part of what mosaics were made of
            with staged_file(path) as file:
                file.write_text(json.dumps(scene.item, indent=1) + "\n", encoding="utf-8")
    _write_manifest(lake, scenes, request.bands)
    listed.table.write()
    _write_scenes(listed.scenes, outcome.scenes)


def _write_manifest(lake: DataLake, scenes: Sequence[Scene], bands: Sequence[str]) -> None:
    words = [f"{word}_{band.lower()}" for band in bands for word in ("href", "checksum")]
    manifest = Table(lake.assets_manifest, ["scene_id", *words])
    known = {manifest.get(row, "scene_id") for row in manifest.rows}
    for scene in scenes:
        if scene.scene_id not in known:
            item = scene.item
            row = {"scene_id": scene.scene_id}
            for band in bands:
                asset = item_asset(item, band)
                row[f"href_{band.lower()}"] = href_of(asset)
                row[f"checksum_{band.lower()}"] = str(asset.get("file:checksum", ""))
            manifest.add(row)
    manifest.write()


def href_of(asset: Mapping[str, Any]) -> str:
    """The address of an asset: https if available, which needs no credentials of a bucket."""
    alternates = asset.get("alternate")
    others = alternates.values() if isinstance(alternates, dict) else ()
    hrefs = [str(each.get("href", "")) for each in (asset, *others) if isinstance(each, dict)]
    return next((href for href in hrefs if urlsplit(href).scheme in ("https", "http")), hrefs[0])


def _write_scenes(table: Table, verdicts: Sequence[Verdict]) -> None:
    rows = {table.get(row, "scene_id"): row for row in table.rows}
    for verdict in verdicts:
        values = _account(verdict)
        row = rows.get(verdict.scene_id)
        if row is None:
            table.add(values)
            rows[verdict.scene_id] = table.rows[-1]
        elif any(table.get(row, name) != str(values[name]) for name in SCENE_COLUMNS):
            table.set(row, values)
    table.write()


def _account(verdict: Verdict) -> dict[str, object]:
    scene, seen = verdict.scene, verdict.seen
    return {
        "scene_id": verdict.scene_id,
        "acq_datetime": verdict.timestamp,
        "tile": scene.tile if scene else "",
        "processing_baseline": scene.baseline if scene else "",
        "cloud_cover": "" if scene is None or scene.cloud is None else scene.cloud,
        "timestamp_coverage_frac": round(seen.coverage_frac, 6) if seen else "",
        "timestamp_cloud_score": "" if seen is None or seen.cloud is None else round(seen.cloud, 6),
        "taken": verdict.taken,
        "reason": verdict.reason,
    }
