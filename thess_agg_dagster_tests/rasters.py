"""Rasters that tests make and read, with plain rasterio, and listings of files that need not be there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from thess_agg_dagster.mosaic.sizes import Sizes
from thess_agg_dagster.storage.fingerprints import Fingerprints
from thess_agg_dagster.storage.gdal import store_env
from thess_agg_dagster.storage.paths import File, is_remote

DATA = Path(__file__).parent / "data"
ZONE_34, ZONE_35 = "EPSG:32634", "EPSG:32635"

Array = NDArray[Any]

#: So small that a few hundred pixels cross the edges of all of them, and cache and memory overflow.
SMALL = Sizes(block=64, window=64, strip=3, cache_bytes=40_000, piece=70 * 70, rows=7, stack_bytes=1000, open_files=3)


def write_tile(
    path: Path,
    pixels: Array,
    *,
    crs: str | None = ZONE_34,
    corner: tuple[float, float] = (600000, 4500000),
    pixel: float = 10,
    transform: Affine | None = None,
    nodata: float | None = None,
    jpeg2000: bool = False,
    block: int = 64,
    **options: Any,
) -> Path:
    """Write ``pixels`` (rows, cols) with its upper-left corner at ``corner``; in a bucket by way of a local file."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.name
            write_tile(
                file, pixels, crs=crs, corner=corner, pixel=pixel, transform=transform, nodata=nodata, jpeg2000=jpeg2000,
                block=block, **options,
            )  # fmt: skip
            path.write_bytes(file.read_bytes())
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.atleast_3d(pixels.T).T if pixels.ndim == 3 else pixels[None]
    if jpeg2000:
        options = {"driver": "JP2OpenJPEG", "codec": "JP2", "quality": 100, "reversible": "YES"} | options
    else:
        options = {"driver": "GTiff", "compress": "deflate", "tiled": True} | options
    if jpeg2000 or options["tiled"]:
        options = {"blockxsize": block, "blockysize": block} | options
    with rasterio.open(
        path,
        "w",
        width=pixels.shape[2],
        height=pixels.shape[1],
        count=pixels.shape[0],
        dtype=pixels.dtype,
        crs=crs,
        transform=transform or Affine(pixel, 0, corner[0], 0, -pixel, corner[1]),
        nodata=nodata,
        **options,
    ) as file:
        file.write(pixels)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)
    return path


def read(path: Path) -> Array:
    if is_remote(path):
        with MemoryFile(path.read_bytes()) as memory, memory.open() as file:
            return np.asarray(file.read(1))
    with rasterio.open(path) as file:
        return np.asarray(file.read(1))


def noise(seed: int, shape: tuple[int, int], low: int = 1, high: int = 10000, dtype: str = "uint16") -> Array:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def half_empty(shape: tuple[int, int], dtype: str = "uint16") -> Array:
    pixels = noise(9, shape).astype(dtype)
    pixels[:, : shape[1] // 2] = 0
    return pixels


def listing(files: Mapping[Path, str] | Mapping[File, str]) -> Fingerprints:
    """The fingerprints of some files, asked for as a path or as text."""
    known = {str(path): fingerprint for path, fingerprint in files.items()}
    return lambda path: known.get(str(path))


def read_index(name: str, options: dict[str, str]) -> tuple[NDArray[Any], dict[str, Any]]:
    """The pixels of a raster tile index, and its profile."""
    with store_env(), rasterio.open(name, **options) as raster:
        assert raster.driver == "GTI"
        return raster.read(1), {name: raster.profile[name] for name in raster.profile if name != "driver"}
