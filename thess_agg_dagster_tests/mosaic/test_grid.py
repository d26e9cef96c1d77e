"""Target grids and the walk over them."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.warp import transform as project

from thess_agg_dagster.mosaic.grid import Box, footprint_on, target_grid, windows
from thess_agg_dagster.sample import TILE_SIZE, TILES


def geobox(tile: str, pixel: int = 10) -> GeoBox:
    epsg, left, top = TILES[tile]
    size = TILE_SIZE // pixel
    return GeoBox((size, size), Affine(pixel, 0, left, 0, -pixel, top), f"EPSG:{epsg}")


def test_same_zone_tiles_keep_the_first_tiles_pixels() -> None:
    grid = target_grid([geobox("T34TFL"), geobox("T34TFK"), geobox("T34TGL")])
    assert str(grid.crs) == "EPSG:32634"
    assert tuple(grid.affine)[:6] == (10, 0, 600000, 0, -10, 4600020)
    assert grid.shape == ((4600020 - 4390200) // 10, (809760 - 600000) // 10)


@pytest.mark.parametrize(
    "names", [("T35TKF", "T34TFL", "T34TFK"), ("T34TFL", "T35TKE"), ("T35TKE", "T34TGL", "T34TFK")]
)
@pytest.mark.parametrize("pixel", [10, 20, 60])
def test_a_mosaic_of_two_zones_stays_on_the_first_tiles_grid_and_covers_all(names: tuple[str, ...], pixel: int) -> None:
    boxes = [geobox(name, pixel) for name in names]
    grid = target_grid(boxes)
    first, (rows, cols) = boxes[0].affine, grid.shape
    assert str(grid.crs) == f"EPSG:{TILES[names[0]][0]}"
    assert (grid.affine.a, grid.affine.e) == (pixel, -pixel)
    assert (grid.affine.c - first.c) % pixel == 0
    assert (grid.affine.f - first.f) % pixel == 0
    # Oracle: GDAL's own projection of points all along the tiles' edges; none outside, none a whole pixel inside.
    edges = []
    for name in names:
        epsg, left, top = TILES[name]
        t = np.linspace(0, TILE_SIZE, 4001)
        x = np.concatenate([left + t, left + t, np.full_like(t, left), np.full_like(t, left + TILE_SIZE)])
        y = np.concatenate([np.full_like(t, top), np.full_like(t, top - TILE_SIZE), top - t, top - t])
        edges.append(np.array(project(f"EPSG:{epsg}", str(grid.crs), x, y)))
    x, y = np.concatenate(edges, axis=1)
    west, north = grid.affine.c, grid.affine.f
    slack = 0.02 * pixel
    assert west - slack <= x.min() < west + pixel
    assert north - pixel < y.max() <= north + slack
    assert west + (cols - 1) * pixel < x.max() <= west + cols * pixel + slack
    assert north - rows * pixel - slack <= y.min() < north - (rows - 1) * pixel


def test_a_coarser_tile_is_covered_to_its_edges() -> None:
    fine = GeoBox((100, 100), Affine(10, 0, 600000, 0, -10, 4500000), "EPSG:32634")
    coarse = GeoBox((10, 10), Affine(60, 0, 600500, 0, -60, 4499995), "EPSG:32634")
    assert footprint_on(fine, coarse) == Box(0, 61, 50, 110)


def test_a_tile_without_a_place_in_the_crs_is_refused() -> None:
    pole = GeoBox((10, 10), Affine(1, 0, -5, 0, -1, 95), "EPSG:4326")
    with pytest.raises(ValueError, match="cannot be projected"):
        footprint_on(geobox("T34TFL"), pole)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 5))
def test_windows_cover_every_pixel_once(rows: int, cols: int, size: int, strip: int) -> None:
    grid = GeoBox((rows, cols), Affine(10, 0, 0, 0, -10, 0), "EPSG:32634")
    seen = np.zeros((rows, cols), int)
    for window in windows(grid, size, strip):
        assert max(window.shape) <= size
        assert window.top % size == 0
        assert window.left % size == 0
        seen[window.slices] += 1
    assert (seen == 1).all()


boxes = st.builds(lambda t, h, left, w: Box(t, t + h, left, left + w), *[st.integers(0, 20)] * 4)


@given(boxes, boxes)
def test_overlap_is_what_both_share(a: Box, b: Box) -> None:
    canvas = np.zeros((2, 41, 41), bool)
    canvas[0][a.slices] = True
    canvas[1][b.slices] = True
    shared = a.overlap(b)
    assert bool(shared) == (canvas.all(axis=0).any())
    if shared:
        expected = np.zeros((41, 41), bool)
        expected[shared.slices] = True
        assert (expected == canvas.all(axis=0)).all()
