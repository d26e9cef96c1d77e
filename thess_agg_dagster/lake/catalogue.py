"""What a catalogue step may leave about scenes: their STAC items, and the manifest of the selected assets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.storage.paths import open_text, read_if_there, stamp_of

# Columns of the manifest that tell of a band, `<word>_<band>`; or `<word>` in rows with a `band`.
_WORDS = ("href", "checksum")


def manifest_value(lake: DataLake, word: str, scene_id: str, band: str) -> str:
    """``href`` or ``checksum`` of a tile in ``tables/assets_manifest_selected.csv``; empty where it has none.

    Raises ``OSError`` where it is there and cannot be read.
    """
    path = lake.assets_manifest
    stamp = stamp_of(path)
    return _read_manifest(path, stamp).get((word, scene_id, band.lower()), "") if stamp else ""


@lru_cache(maxsize=2)
def _read_manifest(path: Path, stamp: str) -> Mapping[tuple[str, str, str], str]:
    found: dict[tuple[str, str, str], str] = {}
    with open_text(path, errors="replace") as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                if not isinstance(column, str) or not isinstance(value, str):
                    continue  # more cells than columns, or fewer
                word, _, band = column.strip().lower().partition("_")
                band = band or (row.get("band") or "").strip().lower()
                if word in _WORDS and band and value.strip():
                    found[word, (row.get("scene_id") or "").strip(), band] = value.strip()
    return found


def read_item(path: Path) -> Mapping[str, Any]:
    """A STAC item; empty where there is none, or something else. Raises ``OSError`` where a disk or store fails."""
    try:
        item = json.loads(read_if_there(path) or b"{}")
    except ValueError:
        return {}
    return item if isinstance(item, dict) else {}


def item_asset(item: Mapping[str, Any], band: str) -> Mapping[str, Any]:
    """The asset of a band, by its key (``B04``, ``b04``, ``B04_10m``), else by the name of its only band; else empty."""
    assets = item.get("assets")
    if not isinstance(assets, dict):
        return {}
    usable = {str(key): asset for key, asset in assets.items() if isinstance(asset, dict)}
    wanted = band.lower()
    for key, asset in usable.items():
        if re.fullmatch(rf"{re.escape(wanted)}(_\d+m)?", key.lower()):
            return asset
    for asset in usable.values():
        bands = asset.get("bands") or asset.get("eo:bands") or []
        if [str(each.get("name", "")).lower() for each in bands if isinstance(each, dict)] == [wanted]:
            return asset
    return {}
