"""Full-size tiles to measure on: the real geometry, and texture that compresses like real reflectance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from thess_agg_dagster.sample import TILE_SIZE, TILES

SCENE = Path(__file__).parent.parent / "thess_agg_dagster_tests" / "data" / "B04.tif"

#: Tiles of each case, in merge order. The twelve are four rows of three along an overpass.
CASES: dict[str, list[str]] = {
    "two zones": ["T35TKF", "T34TFL", "T34TFK"],
    "one zone": ["T34TFL", "T34TFK"],
    "twelve tiles": [f"{tile}{row}" for row in range(4) for tile in ("T35TKF", "T34TGL", "T34TFL")],
}


def make_tile(folder: Path, name: str, pixel: int, jpeg2000: bool) -> Path:
    """One tile as the archive delivers it; ``T34TFL2`` lies two tiles (of 100 km) south of ``T34TFL``."""
    path = folder / f"{name}-{pixel}m.{'jp2' if jpeg2000 else 'tif'}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    base, row = name[:6], int(name[6:] or 0)
    epsg, left, top = TILES[base]
    size = TILE_SIZE // pixel
    options: dict[str, Any]
    if jpeg2000:
        options = {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "YES", "blockxsize": 1024, "blockysize": 1024}
    else:
        options = {"driver": "GTiff", "compress": "deflate", "predictor": 2, "tiled": True}
        options |= {"blockxsize": 512, "blockysize": 512}
    partial = path.with_name(f"partial-{path.name}")
    with rasterio.open(
        partial,
        "w",
        width=size,
        height=size,
        count=1,
        dtype="uint16",
        crs=f"EPSG:{epsg}",
        transform=Affine(pixel, 0, left, 0, -pixel, top - 100_000 * row),
        num_threads="all_cpus",
        **options,
    ) as file:
        file.write(_texture(size, seed=sum(name.encode()), swath_edge=base != "T35TKF"), 1)
    partial.rename(path)
    return path


def _texture(size: int, seed: int, swath_edge: bool) -> NDArray[np.uint16]:
    """The real scene, mirrored to any size; empty beyond a slanted line at the edge of the swath."""
    with rasterio.open(SCENE) as file:
        scene = file.read(1)
    mirrored = np.block([[scene, scene[:, ::-1]], [scene[::-1], scene[::-1, ::-1]]])
    repeats = (size // mirrored.shape[0] + 2, size // mirrored.shape[1] + 2)
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, mirrored.shape[0]), rng.integers(0, mirrored.shape[1])
    pixels = np.tile(mirrored, repeats)[top : top + size, left : left + size].copy()
    # Mirrors repeat; a little noise keeps the entropy coder from noticing.
    pixels += rng.integers(0, 8, pixels.shape, dtype="uint16")
    if swath_edge:
        rows, cols = np.ogrid[:size, :size]
        pixels[cols < 0.22 * (size - rows)] = 0
    return pixels
