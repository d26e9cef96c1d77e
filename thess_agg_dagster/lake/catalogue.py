"""Files that a catalogue step may leave: the STAC items of scenes, and the manifest of the selected assets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.mosaic.sensor import Band
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2
from thess_agg_dagster.storage.fingerprints import Fingerprints, fingerprint_of
from thess_agg_dagster.storage.paths import open_text, read_if_there

# Columns of the manifest that tell of a band, `<word>_<band>`; or `<word>` in rows with a `band`.
_WORDS = ("href", "checksum")


def manifest_value(
    lake: DataLake, word: str, scene_id: str, band: str, fingerprints: Fingerprints = fingerprint_of
) -> str:
    """``href`` or ``checksum`` of a tile in ``tables/assets_manifest_selected.csv``; empty if there is none.

    Raises ``OSError`` if the file exists but cannot be read.
    """
    return manifest_values(lake, fingerprints).get((word, scene_id, band.lower()), "")


def manifest_values(lake: DataLake, fingerprints: Fingerprints) -> Mapping[tuple[str, str, str], str]:
    """All values of the manifest, by word, scene id and band in lower case."""
    path = lake.assets_manifest
    if fingerprint := fingerprints(path):
        with suppress(FileNotFoundError):  # removed since
            return _read_manifest(path, fingerprint)
    return {}


@lru_cache(maxsize=2)
def _read_manifest(path: Path, fingerprint: str) -> Mapping[tuple[str, str, str], str]:
    found: dict[tuple[str, str, str], str] = {}
    with open_text(path, errors="replace") as file:
        for row in _rows(csv.DictReader(file)):
            for column, value in row.items():
                if not isinstance(column, str) or not isinstance(value, str):
                    continue  # more cells than columns, or fewer
                word, _, band = column.strip().lower().partition("_")
                band = band or (row.get("band") or "").strip().lower()
                if word in _WORDS and band and value.strip():
                    found[word, (row.get("scene_id") or "").strip(), band] = value.strip()
    return found


def _rows(reader: csv.DictReader[str]) -> Iterator[dict[Any, Any]]:
    """The rows that can be read: one with a cell too long costs no other."""
    try:
        _ = reader.fieldnames
    except csv.Error:
        return
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue


def read_item(path: Path, within: Sequence[Path] = ()) -> Mapping[str, Any]:
    """A STAC item; empty if the file is missing or contains something else. Raises ``OSError``: see
    ``storage.paths.open_file``."""
    try:
        item = json.loads(read_if_there(path, within) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return item if isinstance(item, dict) else {}


def item_asset(item: Mapping[str, Any], band: str) -> Mapping[str, Any]:
    """The asset of a band in its native resolution, or the nearest to it; empty if there is none.

    The band is recognized by the asset's key (``B04``, ``b04``, ``B04_10m``), otherwise by its common name (``red``),
    otherwise by the name of the asset's only band, regardless of the order of assets.
    """
    assets = item.get("assets")
    if not isinstance(assets, dict):
        return {}
    wanted = band.lower()
    native = _known(band).resolution or 0
    found = []
    for key, asset in assets.items():
        if isinstance(asset, dict) and (rank := _rank(str(key).lower(), asset, wanted)) is not None:
            away = abs((_resolution(str(key), asset) or native) - native)
            found.append(((rank, away, str(key)), asset))
    return min(found, key=lambda each: each[0])[1] if found else {}


def _rank(key: str, asset: Mapping[str, Any], band: str) -> int | None:
    """How certain it is that an asset is of a band, 0 being best; ``None`` if it is not."""
    if re.fullmatch(rf"{re.escape(band)}(_\d+m)?", key):
        return 0
    if key == _known(band).common_name:
        return 1
    bands = asset.get("bands") or asset.get("eo:bands")
    names = (
        [str(each.get("name", "")).lower() for each in bands if isinstance(each, dict)]
        if isinstance(bands, list)
        else []
    )
    return 2 if names == [band] else None


def _resolution(key: str, asset: Mapping[str, Any]) -> float | None:
    """An asset's pixel size in metres, where something tells it."""
    if named := re.search(r"_(\d+)m$", key.lower()):
        return float(named[1])
    bands = asset.get("raster:bands")
    first = bands[0] if isinstance(bands, list) and bands and isinstance(bands[0], dict) else {}
    for value in (asset.get("raster:spatial_resolution"), first.get("spatial_resolution"), asset.get("gsd")):
        if isinstance(value, int | float):
            return float(value)
    return None


def _known(band: str) -> Band:
    return SENTINEL_2.bands.get(band.upper(), Band("unknown"))
