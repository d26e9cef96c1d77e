"""The attempt of a published timestamp, restored from its ``manifest.json``; what older manifests lack comes from the
mosaics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.lake.catalogue import read_item
from thess_agg_dagster.lake.checksums import checksum_of
from thess_agg_dagster.lake.layout import DataLake, path_in
from thess_agg_dagster.lake.published import named_by
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.mosaic.bands import is_scl
from thess_agg_dagster.mosaic.radiometry import radiometry_of
from thess_agg_dagster.mosaic.scl import cloud_share
from thess_agg_dagster.mosaic.tiles import crs_name
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.products.provenance import with_paths
from thess_agg_dagster.storage.gdal import gdal_env, gdal_name
from thess_agg_dagster.timestamp.freshness import identify_bands, together


def read_back(manifest: Mapping[str, Any], lake: DataLake, params: TimestampsAggregationParams) -> Attempt:
    """The attempt that published a timestamp of this lake.

    Raises ``OSError`` and ``rasterio.errors.RasterioError`` if a mosaic cannot be read, ``KeyError`` and similar errors
    if the manifest is not one of ours.
    """
    recorded = manifest.get("attempt")
    if isinstance(recorded, dict):
        bands = [_known(BandRecord, band) for band in recorded["bands"]]
        attempt = _known(Attempt, recorded | {"bands": bands})
        return with_paths(attempt, lambda path: path if "://" in path else str(path_in(lake.root, path)))
    timestamp, scene_ids = str(manifest["timestamp"]), [str(scene) for scene in manifest["scenes"]]
    outputs = {Path(entry["file"]).stem: entry for entry in manifest["outputs"]}
    inputs: dict[str, str] = {}
    if _is_as_it_was(manifest, lake, params):
        inputs = identify_bands(Acquisition(timestamp, tuple(scene_ids)), lake, params, outputs)
    return Attempt(
        timestamp,
        "success",
        "restored from manifest.json",
        [_band(band, entry, manifest, lake, inputs.get(band, "")) for band, entry in outputs.items()],
        str(named_by(manifest, lake.timestamp_folder(timestamp)).folder),
        together(inputs) if inputs else "",
        scene_ids,
    )


def _known(kind: type[Any], values: Mapping[str, Any]) -> Any:
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def _is_as_it_was(manifest: Mapping[str, Any], lake: DataLake, params: TimestampsAggregationParams) -> bool:
    """Whether the mosaics were made with these parameters, as far as the manifest knows them, and of these tiles."""
    now, then = json.loads(params.as_json()), manifest["parameters"]
    same = all(str(now.get(name)) == str(value) for name, value in then.items() if name not in ("bands", "stac"))
    tiles = [entry for entries in manifest["inputs"].values() for entry in entries]
    return same and all(_is_as_read(entry, lake.root, lake.manifest(manifest["timestamp"])) for entry in tiles)


def _is_as_read(entry: Mapping[str, Any], root: Path, manifest: Path) -> bool:
    """Whether a tile is still what a mosaic was made of. One that is older than the mosaics is not read again."""
    tile = path_in(root, entry["file"])
    try:
        now = tile.stat()
        if now.st_size != entry["bytes"]:
            return False
        return bool(now.st_mtime <= manifest.stat().st_mtime) or str(checksum_of(tile)) == entry["checksum"]
    except OSError:
        return False


def _band(band: str, entry: Mapping[str, Any], manifest: Mapping[str, Any], lake: DataLake, inputs: str) -> BandRecord:
    path = named_by(manifest, lake.timestamp_folder(manifest["timestamp"])).mosaic(band)
    tiles = [tile for tile in manifest["inputs"].get(band, []) if Path(tile["file"]).stem == band]
    parameters = manifest["parameters"]
    baselines = [radiometry_of(scene, read_item(lake.scene_item(scene)))[0] for scene in manifest["scenes"]]
    with gdal_env(), rasterio.open(gdal_name(path), driver="GTiff") as mosaic:
        valid, histogram = _count(mosaic)
        return BandRecord(
            band,
            "success",
            input_files=[str(path_in(lake.root, tile["file"])) for tile in tiles],
            output_path=str(path),
            crs=crs_name(mosaic.crs) if mosaic.crs else "",
            dtype=mosaic.dtypes[0],
            nodata="nan" if mosaic.nodata is not None and np.isnan(mosaic.nodata) else mosaic.nodata,
            width=mosaic.width,
            height=mosaic.height,
            tiles=len(tiles),
            valid_share=round(valid / (mosaic.width * mosaic.height), 6),
            cloud_share=None if (share := cloud_share(histogram)) is None or not is_scl(band) else round(share, 6),
            bytes=entry["bytes"],
            grid=parameters.get("grid", ""),
            resolution=mosaic.res[0],
            bounds=list(mosaic.bounds),
            baselines=list(dict.fromkeys(baseline for baseline in baselines if baseline)),
            harmonized=parameters.get("harmonize"),
            input_checksums=[tile["checksum"] for tile in tiles],
            output_checksum=entry["checksum"],
            inputs=inputs,
        )


def _count(mosaic: Any) -> tuple[int, np.ndarray[Any, np.dtype[np.int64]]]:
    """Valid pixels of a mosaic, and how often each value up to 255 occurs; a block at a time."""
    valid, histogram = 0, np.zeros(256, "int64")
    for _, window in mosaic.block_windows(1):
        pixels = mosaic.read(1, window=window, masked=True).compressed()
        valid += pixels.size
        if mosaic.dtypes[0] == "uint8":
            histogram += np.bincount(pixels, minlength=256)
    return valid, histogram
