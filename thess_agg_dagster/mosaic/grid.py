"""Target grids: which pixels a mosaic has, and in which windows they are processed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS

Floats = NDArray[np.float64]

#: Fraction of a pixel below which two positions are one; far above float noise, far below what shows.
ALIGNED = 1e-3
# Pixels that fill several of another grid again are looked for up to so many.
_MOST_PIXELS = 100


class Box(NamedTuple):
    """A rectangle of pixels: rows ``top:bottom``, columns ``left:right``."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def __bool__(self) -> bool:
        return self.top < self.bottom and self.left < self.right

    def overlap(self, other: Box) -> Box:
        """The common part of both; empty (falsy) if they do not touch."""
        return Box(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    def shift(self, rows: int, cols: int) -> Box:
        return Box(self.top + rows, self.bottom + rows, self.left + cols, self.right + cols)

    def within(self, outer: Box) -> Box:
        """The same rectangle, relative to ``outer``'s corner."""
        return self.shift(-outer.top, -outer.left)


def whole(geobox: GeoBox) -> Box:
    """All pixels of a geobox."""
    rows, cols = geobox.shape
    return Box(0, int(rows), 0, int(cols))


def project_pixels(source: GeoBox, target: GeoBox, col: Floats, row: Floats) -> tuple[Floats, Floats]:
    """Pixel coordinates (column, row; 0.5 is the first pixel's centre) of one geobox in another, exactly."""
    x, y = source.pix2wld(col, row)
    if source.crs != target.crs:
        assert source.crs is not None
        assert target.crs is not None
        x, y = (np.reshape(v, col.shape) for v in source.crs.transformer_to_crs(target.crs)(x.ravel(), y.ravel()))
    there: tuple[Floats, Floats] = target.wld2pix(x, y)
    return there


def footprint_on(anchor: GeoBox, tile: GeoBox) -> Box:
    """The pixels of ``anchor``'s grid (extended without end) that a tile covers, edges rounded outwards.

    A tile's edges are straight in its own CRS and curved in another, so they are followed densely:
    100 points a side leave less than 0.01 pixel between chord and curve for a 110 km tile in a
    neighbouring UTM zone. Raises ``ValueError`` where the tile has no place in the anchor's CRS.
    """
    cols, rows = project_pixels(tile, anchor, *_boundary(tile.shape.yx).T)
    if not (np.isfinite(cols).all() and np.isfinite(rows).all()):
        raise ValueError(f"it cannot be projected to {anchor.crs}")
    return _outwards(rows, cols)


@lru_cache(64)
def _boundary(shape: tuple[int, int]) -> Floats:
    """100 points (column, row) on each side of a geobox of this shape. The tiles of a timestamp share a few shapes, and are asked
    for their footprints several times each."""
    points: Floats = GeoBox(shape, Affine.identity(), None).boundary(100)
    points.flags.writeable = False
    return points


def settled(tile: GeoBox, grid: GeoBox) -> GeoBox:
    """A tile's pixels in the CRS of ``grid``, where they are only shifted and scaled there; else as they are.

    So are those of a southern UTM zone in the northern one. Where edges of the two nearly coincide, they do in the result:
    a kernel that takes all it touches (``max``, ``mode``, ...) would reach for slivers of the next pixels.
    """
    points = tile.boundary(5)
    there = np.stack(project_pixels(tile, grid, *points.T), axis=-1)
    corner, end = there.min(axis=0), there.max(axis=0)
    pixels = np.array(tile.shape[::-1])
    size = (end - corner) / pixels
    if not np.abs(there - corner - points * size).max() < ALIGNED:  # or nowhere at all
        return tile
    for axis in (0, 1):
        # Where p of the tile's pixels are q of the grid's, edges coincide every 1 / p of the grid's pixels, or nowhere.
        ratio = Fraction(size[axis]).limit_denominator(_MOST_PIXELS)
        edge = round(corner[axis] * ratio.denominator) / ratio.denominator
        if ratio and max(abs(edge - corner[axis]), abs(edge + float(ratio * pixels[axis]) - end[axis])) < ALIGNED * min(
            1, size[axis]
        ):
            corner[axis], size[axis] = edge, float(ratio)
    return GeoBox(tile.shape, grid.affine * Affine.translation(*corner) * Affine.scale(*size), grid.crs)


def is_aligned(tile: GeoBox, grid: GeoBox) -> bool:
    """Whether a tile has the grid's CRS, pixel size and pixel edges."""
    if tile.crs != grid.crs:
        return False
    rows, cols = tile.shape
    corners = [grid.wld2pix(*tile.pix2wld(*corner)) for corner in ((0, 0), (cols, rows))]
    spans = (corners[1][0] - corners[0][0] - cols, corners[1][1] - corners[0][1] - rows)
    offsets = [value - round(value) for corner in corners for value in corner]
    return all(abs(v) < ALIGNED for v in (*spans, *offsets))


def whole_factor(fine: GeoBox, coarse: GeoBox) -> int | None:
    """How many pixels of ``fine`` fit along the side of one of ``coarse``, if they do so exactly; otherwise ``None``."""
    if fine.crs != coarse.crs:
        return None
    factor = round(abs(coarse.resolution.x / fine.resolution.x))
    return factor if factor and is_aligned(split(coarse, factor), fine) else None


def near_factor(fine: GeoBox, coarse: GeoBox) -> int | None:
    """The same by size alone, in one CRS or two with the same unit, if it is at least two; otherwise ``None``."""
    assert fine.crs is not None
    assert coarse.crs is not None
    ratios = [abs(coarse.resolution.x / fine.resolution.x), abs(coarse.resolution.y / fine.resolution.y)]
    factor = round(ratios[0])
    near = factor > 1 and all(abs(ratio / factor - 1) < ALIGNED for ratio in ratios)
    return factor if near and fine.crs.units == coarse.crs.units else None


def split(grid: GeoBox, factor: int) -> GeoBox:
    """The grid whose pixels are a ``factor``-th of ``grid``'s, a side."""
    rows, cols = grid.shape
    return GeoBox((rows * factor, cols * factor), grid.affine * Affine.scale(1 / factor), grid.crs)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest rectangle that holds all of them."""
    tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    return Box(min(tops), max(bottoms), min(lefts), max(rights))


def enclosing(grid: GeoBox, bounds: tuple[float, float, float, float]) -> Box:
    """The pixels of ``grid`` (extended without end) that hold left, bottom, right, top, edges rounded outwards."""
    left, bottom, right, top = bounds
    cols, rows = grid.wld2pix(np.array([left, right]), np.array([top, bottom]))
    return _outwards(rows, cols)


def _outwards(rows: Floats, cols: Floats) -> Box:
    return Box(
        int(np.floor(rows.min() + ALIGNED)),
        int(np.ceil(rows.max() - ALIGNED)),
        int(np.floor(cols.min() + ALIGNED)),
        int(np.ceil(cols.max() - ALIGNED)),
    )


def crop(geobox: GeoBox, box: Box) -> GeoBox:
    """The geobox of a rectangle of pixels, which may reach beyond ``geobox``."""
    return GeoBox(box.shape, geobox.translate_pix(box.left, box.top).affine, geobox.crs)


def rasterio_crs(grid: GeoBox) -> CRS:
    """The CRS of a grid as rasterio takes it."""
    assert grid.crs is not None
    return CRS.from_wkt(str(grid.crs.wkt))


def windows(grid: GeoBox, size: int, strip: int) -> Iterator[Box]:
    """Cut a grid into ``size`` x ``size`` windows, in strips ``strip`` windows wide, each from top to bottom.

    Strips bound how many source blocks wait for their next window, however wide the mosaic is.
    """
    _, height, _, width = whole(grid)
    for left in range(0, width, size * strip):
        edge = min(left + size * strip, width)
        for top in range(0, height, size):
            for col in range(left, edge, size):
                yield Box(top, min(top + size, height), col, min(col + size, edge))
