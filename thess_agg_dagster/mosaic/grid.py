"""Target grids: which pixels a mosaic has, and how they are walked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS

Floats = NDArray[np.float64]

#: Fraction of a pixel below which two positions are one; far above float noise, far below what shows.
ALIGNED = 1e-3


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
        """What both share; empty (falsy) where they do not touch."""
        return Box(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    def shift(self, rows: int, cols: int) -> Box:
        return Box(self.top + rows, self.bottom + rows, self.left + cols, self.right + cols)

    def within(self, outer: Box) -> Box:
        """The same rectangle counted from ``outer``'s corner."""
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
    cols, rows = project_pixels(tile, anchor, *tile.boundary(100).T)
    if not (np.isfinite(cols).all() and np.isfinite(rows).all()):
        raise ValueError(f"it cannot be projected to {anchor.crs}")
    return _outwards(rows, cols)


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
