"""Provenance: the files, parameters and versions that a mosaic was made from, recorded inside it and next to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from rasterio import __gdal_version__

from thess_agg_dagster import __version__
from thess_agg_dagster.audit.outcome import Attempt
from thess_agg_dagster.lake.checksums import BackgroundChecksums, checksum_of
from thess_agg_dagster.lake.layout import name_in
from thess_agg_dagster.lake.published import NDVI, is_beside
from thess_agg_dagster.mosaic.bands import NOWHERE
from thess_agg_dagster.mosaic.choices import MIXING
from thess_agg_dagster.mosaic.origins import several, source_dtype
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.period.plan import PeriodPlan
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp.plan import TimestampPlan

#: What made a mosaic.
SOFTWARE = {"thess-agg-dagster": __version__, "GDAL": __gdal_version__}


def mosaic_tags(plan: MosaicPlan, timestamp: TimestampPlan, checksums: BackgroundChecksums) -> dict[str, str]:
    """The GeoTIFF tags of a mosaic; lists are in merge order, between ``|``."""
    return {
        "timestamp": timestamp.timestamp,
        "band": plan.band,
        "scenes": "|".join(tile.scene_id for tile in plan.tiles),
        "checksums": "|".join(str(checksums.of(tile.path)) for tile in plan.tiles),
        "merge_method": plan.options.merge_method,
        "resampling": "|".join(dict.fromkeys(layer.resampling.name for layer in plan.layers)),
        "parameters": timestamp.parameters,
        "software": "; ".join(f"{name} {version}" for name, version in SOFTWARE.items()),
    }


def composite_tags(plan: MosaicPlan, period: PeriodPlan, checksums: BackgroundChecksums) -> dict[str, str]:
    """The GeoTIFF tags of a composite; lists are in order of time, between ``|``."""
    return {
        "period": period.timestamp,
        "band": plan.band,
        "timestamps": "|".join(tile.scene_id for tile in plan.tiles),
        "checksums": "|".join(str(checksums.of(tile.path)) for tile in plan.tiles),
        "composite_method": period.how.method,
        "min_observations": str(period.how.min_observations),
        "parameters": period.parameters,
        "software": "; ".join(f"{name} {version}" for name, version in SOFTWARE.items()),
    } | ({"stand_in": period.stand_in} if period.stand_in else {})


def legend(plan: MosaicPlan, timestamp: TimestampPlan, checksums: BackgroundChecksums) -> list[dict[str, object]]:
    """The meaning of the numbers in a band's source, in merge order."""
    baselines = {scene.scene_id: scene.baseline for scene in timestamp.scenes}
    return [
        {
            "index": layer.number,
            "scene": (scene := layer.tile.scene_id),
            "checksum": str(checksums.of(layer.tile.path)),
            "baseline": baselines.get(scene),
        }
        for layer in plan.layers
    ]


def origin_tags(plan: MosaicPlan, timestamp: TimestampPlan, checksums: BackgroundChecksums) -> dict[str, str]:
    """The GeoTIFF tags of a band's source and observations; the legend as JSON."""
    mixes = plan.options.merge_method in MIXING
    return {
        "timestamp": timestamp.timestamp,
        "band": plan.band,
        "legend": json.dumps(legend(plan, timestamp, checksums)),
        "empty": str(NOWHERE),
        "merge_method": plan.options.merge_method,
    } | ({"several": str(several(source_dtype(plan)))} if mixes else {})


def scene_shares(plan: MosaicPlan, shares: Mapping[int, float]) -> list[str]:
    """Each scene's share of a mosaic's valid pixels, ``<scene>=<share>`` in merge order; ``several`` where methods mix."""
    names = {layer.number: layer.tile.scene_id for layer in plan.layers}
    mixed = sum(share for number, share in shares.items() if number not in names)
    found = [f"{name}={shares.get(number, 0.0):.6f}" for number, name in names.items()]
    return [*found, f"several={mixed:.6f}"] if mixed else found


def timestamp_manifest(
    plan: TimestampPlan,
    attempt: Attempt,
    checksums: BackgroundChecksums,
    lake: Path,
    folder: Path,
    run: str,
) -> str:
    """``manifest.json`` of a timestamp: what was read (paths within the lake) and written (to ``folder``), and how.

    ``run`` is the prefix of the names of written files, which are relative to the manifest's final location. The
    manifest contains the complete attempt, so that the audit trail can be restored if Dagster's database is lost.
    """

    def read(path: File) -> dict[str, object]:
        return {"file": name_in(lake, path), "bytes": path.stat().st_size, "checksum": str(checksums.of(path))}

    manifest: dict[str, object] = plan.told | {
        "software": SOFTWARE,
        "parameters": json.loads(plan.parameters) | ({"ndvi": plan.mosaics[NDVI].dtype} if plan.index else {}),
        "inputs": {
            band: [read(path) for path in dict.fromkeys(mosaic.files())] for band, mosaic in plan.mosaics.items()
        },
        "outputs": [
            {"file": run + Path(record.output_path).name, "bytes": record.bytes, "checksum": record.output_checksum}
            for record in attempt.bands
        ]
        + [
            {"file": run + path.name, "bytes": path.stat().st_size, "checksum": str(checksum_of(path))}
            for path in sorted(folder.glob("*.tif"))
            if is_beside(path.stem)
        ],
        "attempt": asdict(with_paths(attempt, lambda path: name_in(lake, path))),
    }
    if plan.provenance:
        manifest["legend"] = {band: legend(mosaic, plan, checksums) for band, mosaic in plan.merged.items()}
    return json.dumps(manifest, indent=2, allow_nan=False) + "\n"


def with_paths(attempt: Attempt, move: Callable[[str], str]) -> Attempt:
    """An attempt with other names for its files."""
    bands = [
        replace(band, output_path=move(band.output_path), input_files=[move(file) for file in band.input_files])
        for band in attempt.bands
    ]
    return replace(attempt, output_folder=move(attempt.output_folder), bands=bands)
