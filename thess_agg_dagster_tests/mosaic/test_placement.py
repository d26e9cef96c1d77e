"""How exact a lookup is, measured densely against PROJ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rasterio.enums import Resampling
from rasterio.warp import transform

from thess_agg_dagster.mosaic.grid import Box, crop, footprint_on, union
from thess_agg_dagster.mosaic.lookup import LOOKUP_ERROR, Lookup
from thess_agg_dagster.mosaic.place import place
from thess_agg_dagster.mosaic.placement import Copy, Mean, Repeat
from thess_agg_dagster.mosaic.target import Target, target_grid
from thess_agg_dagster.mosaic.tiles import Tile, inspect_tile
from thess_agg_dagster.mosaic.warp import Warp
from thess_agg_dagster.sample import TILE_SIZE, TILES
from thess_agg_dagster_tests.rasters import Array, noise, write_tile


def full_size_tile(folder: Path, name: str) -> Tile:
    """A real tile's geometry at 10 m: 10980 x 10980 pixels that are never read (a sparse file)."""
    epsg, left, top = TILES[name]
    path = folder / f"{name}.tif"
    size = TILE_SIZE // 10
    write_tile(path, np.zeros((size, size), "uint8"), crs=f"EPSG:{epsg}", corner=(left, top), block=512, sparse_ok=True)
    return inspect_tile(path)


@pytest.fixture(scope="module")
def lookups(tmp_path_factory: pytest.TempPathFactory) -> list[Lookup]:
    folder = tmp_path_factory.mktemp("tiles")
    tiles = [full_size_tile(folder, name) for name in ("T35TKF", "T34TFL", "T34TFK")]
    grid = target_grid(tiles, Target())
    return [Lookup(tile, 0, grid) for tile in tiles[1:]]


def projected(lookup: Lookup, window: Box) -> tuple[Array, Array]:
    """Source columns and rows of every pixel centre of a window, by GDAL's exact projection."""
    rows, cols = np.indices(window.shape) + 0.5
    a = crop(lookup.grid, window).affine
    x, y = a.c + a.a * cols, a.f + a.e * rows
    sx, sy = transform(str(lookup.grid.crs), lookup.tile.crs, x.ravel(), y.ravel())
    b = lookup.tile.geobox.affine
    return (np.array(sx) - b.c) / b.a, (np.array(sy) - b.f) / b.e


def test_full_size_lookups_between_zones_stay_within_the_stated_error(lookups: list[Lookup]) -> None:
    """In every cell touched by 40 random windows, all pixels' source coordinates against PROJ's, in source pixels."""
    rng = np.random.default_rng(5)
    worst = 0.0
    for lookup in lookups:
        assert lookup.exact_enough
        for _ in range(20):
            top = int(rng.integers(lookup.footprint.top, lookup.footprint.bottom - 100))
            left = int(rng.integers(lookup.footprint.left, lookup.footprint.right - 100))
            window = Box(top, top + 100, left, left + 100)
            exact_col, exact_row = projected(lookup, window)
            for cell in lookup._cells(window):
                i = np.arange(cell.within.top, cell.within.bottom)[:, None]
                j = np.arange(cell.within.left, cell.within.right)
                inside = cell.part.within(window).slices
                for (first, down, across), exact in ((cell.row, exact_row), (cell.col, exact_col)):
                    fitted = first + down * i + across * j
                    worst = max(worst, float(np.abs(fitted - exact.reshape(100, 100)[inside]).max()))
    assert worst < LOOKUP_ERROR
    assert worst < 0.02  # what the README says


def test_the_source_box_holds_all_that_a_window_looks_up(lookups: list[Lookup]) -> None:
    lookup = lookups[0]
    rng = np.random.default_rng(6)
    rows, cols = lookup.tile.shape
    for _ in range(50):
        top = int(rng.integers(lookup.footprint.top, lookup.footprint.bottom - 1))
        left = int(rng.integers(lookup.footprint.left, lookup.footprint.right - 1))
        window = Box(top, min(top + 300, lookup.footprint.bottom), left, min(left + 200, lookup.footprint.right))
        box = lookup.source_box(window)
        col, row = map(np.floor, projected(lookup, window))
        inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
        if inside.any():
            assert box.top <= row[inside].min()
            assert row[inside].max() < box.bottom
            assert box.left <= col[inside].min()
            assert col[inside].max() < box.right
        else:
            assert not box or min(box.shape) <= 3


@pytest.mark.parametrize(
    ("corner", "crs", "pixel", "resampling", "kind"),
    [
        ((600000, 4500000), "EPSG:32634", 10, "nearest", Copy),
        ((600500, 4500010), "EPSG:32634", 10, "cubic", Copy),
        ((600500.000001, 4500010), "EPSG:32634", 10, "nearest", Copy),
        ((600504, 4500010), "EPSG:32634", 10, "nearest", Lookup),
        ((600500, 4500010), "EPSG:32634", 20, "nearest", Repeat),
        ((600505, 4500010), "EPSG:32634", 20, "nearest", Lookup),
        ((600500, 4500010), "EPSG:32634", 15, "nearest", Lookup),
        ((600500, 4500010), "EPSG:32634", 5, "average", Mean),
        ((600505, 4500010), "EPSG:32634", 5, "average", Mean),
        ((600503, 4500010), "EPSG:32634", 5, "average", Mean),
        ((100000, 4500000), "EPSG:32635", 5, "average", Mean),
        ((600500, 4500010), "EPSG:32634", 6, "average", Warp),
        ((600504, 4500010), "EPSG:32634", 10, "cubic", Warp),
        ((100000, 4500000), "EPSG:32635", 10, "nearest", Lookup),
        ((100000, 4500000), "EPSG:32635", 10, "bilinear", Warp),
    ],
)
def test_which_way_a_tile_takes(
    tmp_path: Path, corner: tuple[float, float], crs: str, pixel: float, resampling: str, kind: type
) -> None:
    first = inspect_tile(write_tile(tmp_path / "a.tif", noise(1, (64, 64))))
    tile = inspect_tile(write_tile(tmp_path / "b.tif", noise(1, (64, 64)), corner=corner, crs=crs, pixel=pixel))
    grid = crop(first.geobox, union([footprint_on(first.geobox, found.geobox) for found in (first, tile)]))
    assert type(place(tile, 0, grid, Resampling[resampling])) is kind
