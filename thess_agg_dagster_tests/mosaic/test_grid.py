"""Boxes of pixels, footprints, and the walk over a grid."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from thess_agg_dagster.mosaic.grid import Box, footprint_on, windows


def test_a_coarser_tile_is_covered_to_its_edges() -> None:
    fine = GeoBox((100, 100), Affine(10, 0, 600000, 0, -10, 4500000), "EPSG:32634")
    coarse = GeoBox((10, 10), Affine(60, 0, 600500, 0, -60, 4499995), "EPSG:32634")
    assert footprint_on(fine, coarse) == Box(0, 61, 50, 110)


def test_a_tile_without_a_place_in_the_crs_is_refused() -> None:
    pole = GeoBox((10, 10), Affine(1, 0, -5, 0, -1, 95), "EPSG:4326")
    with pytest.raises(ValueError, match="cannot be projected"):
        footprint_on(GeoBox((9, 9), Affine(10, 0, 600000, 0, -10, 4500000), "EPSG:32634"), pole)


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
