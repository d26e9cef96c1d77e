"""Full-size tiles to measure on: the real geometry, and texture that compresses like real reflectance."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from thess_agg_dagster.sample import TILE_SIZE, TILES
from thess_agg_dagster_tests.rasters import DATA, write_tile

if TYPE_CHECKING:
    import pystac

SCENE = DATA / "B04.tif"

#: Tiles of each case, in merge order. The twelve are four rows of three along an overpass.
CASES: dict[str, list[str]] = {
    "two zones": ["T35TKF", "T34TFL", "T34TFK"],
    "one zone": ["T34TFL", "T34TFK"],
    "twelve tiles": [f"{tile}{row}" for row in range(4) for tile in ("T35TKF", "T34TGL", "T34TFL")],
}


def make_tile(folder: Path, name: str, pixel: int, jpeg2000: bool) -> Path:
    """One tile as the archive delivers it; ``T34TFL2`` lies two tiles (of 100 km) south of ``T34TFL``."""
    path = folder / f"{name}-{pixel}m.{'jp2' if jpeg2000 else 'tif'}"
    if not path.exists():
        texture = _texture(TILE_SIZE // pixel, seed=sum(name.encode()), swath_edge=name[:6] != "T35TKF")
        _write(path, name, pixel, jpeg2000, texture)
    return path


def make_scl(folder: Path, name: str, pixel: int, jpeg2000: bool) -> Path:
    """The scene classification that lies beside a tile, at twice its pixel size."""
    path = scl_beside(folder / f"{name}-{pixel}m.{'jp2' if jpeg2000 else 'tif'}")
    if not path.exists():
        _write(path, name, 2 * pixel, jpeg2000, _classes(TILE_SIZE // pixel // 2, sum(name.encode())))
    return path


def scl_beside(tile: Path) -> Path:
    return tile.with_name(f"SCL-{tile.name}")


def stac_item(path: Path, when: datetime) -> pystac.Item:
    """What odc-stac is told of a file of band B04."""
    import pystac  # here: it would count in the memory of all ways

    with rasterio.open(path) as file:
        outline = GeoBox.from_rio(file).geographic_extent
    item = pystac.Item(path.stem, outline.json, list(outline.boundingbox.bbox), when, {})
    item.add_asset("B04", pystac.Asset(str(path), media_type="image/tiff; application=geotiff", roles=["data"]))
    return item


def _write(path: Path, name: str, pixel: int, jpeg2000: bool, pixels: NDArray[Any]) -> None:
    base, row = name[:6], int(name[6:] or 0)
    epsg, left, top = TILES[base]
    options: dict[str, Any] = {"block": 1024} if jpeg2000 else {"block": 512, "predictor": 2}
    partial = path.with_name(f"partial-{path.name}")
    write_tile(
        partial, pixels, crs=f"EPSG:{epsg}", corner=(left, top - 100_000 * row), pixel=pixel, jpeg2000=jpeg2000,
        num_threads="all_cpus", **options,
    )  # fmt: skip
    partial.rename(path)


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


def _classes(size: int, seed: int) -> NDArray[np.uint8]:
    """Patches of classes, about a third of them clouds or shadows, with ragged edges."""
    rng = np.random.default_rng(seed)
    patches = rng.choice(np.array([3, 4, 4, 5, 5, 6, 8, 9, 4], np.uint8), (size // 100 + 1, size // 100 + 1))
    classes = np.kron(patches, np.ones((100, 100), np.uint8))[:size, :size]
    ragged = np.roll(classes, rng.integers(-20, 20, 2), axis=(0, 1))
    return np.where(rng.random((size, size)) < 0.3, ragged, classes).astype(np.uint8)
