"""Lookups: nearest neighbour between any two grids, as table look-ups instead of a warp."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from thess_agg_dagster.mosaic.blocks import Pixels
from thess_agg_dagster.mosaic.grid import Box, project_pixels, whole
from thess_agg_dagster.mosaic.placement import Placement
from thess_agg_dagster.mosaic.tiles import Tile

#: Largest distance, in source pixels, between a nearest lookup and the exact projection.
LOOKUP_ERROR = 1 / 32

# A lookup is affine within a cell of at most this many target pixels a side. Between neighbouring UTM zones at
# 10 m such a cell bends by about 0.01 pixel, and its index arithmetic fits in a core's cache.
_CELL = 256
_SMALLEST_CELL = 16

# Fixed-point bits of a lookup's coordinates: 2**-12 of a pixel leaves 2**19 pixels of range in 32 bits.
_BITS = 12


class Lookup(Placement):
    """Nearest neighbour: each target pixel takes the tile's pixel that its centre falls in.

    Exact coordinates (PROJ, by way of pyproj) are computed on a lattice over the tile's footprint. Within
    a cell of 3 x 3 lattice nodes the mapping is replaced by its least-squares affine, evaluated in fixed
    point; cells shrink until no node is off by more than :data:`LOOKUP_ERROR` source pixels. GDAL's
    warper, by comparison, tolerates 0.125 by default.
    """

    def __init__(self, tile: Tile, empty: float, grid: GeoBox) -> None:
        super().__init__(tile, empty, grid)
        cell = _CELL
        self.error = self._fit(cell)
        while self.error > LOOKUP_ERROR and cell > _SMALLEST_CELL:
            cell //= 2
            self.error = self._fit(cell)

    @property
    def exact_enough(self) -> bool:
        return self.error <= LOOKUP_ERROR

    def _fit(self, cell: int) -> float:
        """Fit affine cells of ``cell`` pixels a side over the footprint; the largest error in source pixels."""
        self._size = cell
        top, left = self.footprint.top // cell, self.footprint.left // cell
        self._origin = top, left
        n_rows = -(-self.footprint.bottom // cell) - top
        n_cols = -(-self.footprint.right // cell) - left
        # Node k of an axis is the centre of pixel k * cell / 2, counted from the first cell.
        rows = (np.arange(2 * n_rows + 1) + 2 * top) * (cell / 2) + 0.5
        cols = (np.arange(2 * n_cols + 1) + 2 * left) * (cell / 2) + 0.5
        src_col, src_row = project_pixels(self.grid, self.tile.geobox, *np.meshgrid(cols, rows))
        self._rows, row_error = _affine_cells(src_row, cell)
        self._cols, col_error = _affine_cells(src_col, cell)
        error = np.hypot(row_error, col_error)
        return float(error) if math.isfinite(error) else math.inf

    def _cells(self, window: Box) -> Iterator[_Cell]:
        """The cells that a window touches, each cut to the window."""
        size, (top, left) = self._size, self._origin
        for r in range(window.top // size, (window.bottom - 1) // size + 1):
            for c in range(window.left // size, (window.right - 1) // size + 1):
                part = window.overlap(Box(r * size, (r + 1) * size, c * size, (c + 1) * size))
                index = r - top, c - left
                row, col = self._rows[index].tolist(), self._cols[index].tolist()
                yield _Cell(part, part.shift(-r * size, -c * size), row, col)

    def source_box(self, window: Box) -> Box:
        boxes = [cell.source_box() for cell in self._cells(window)]
        box = Box(
            min(box.top for box in boxes),
            max(box.bottom for box in boxes),
            min(box.left for box in boxes),
            max(box.right for box in boxes),
        )
        return box.overlap(whole(self.tile.geobox))

    def resample(self, pixels: Pixels, source: Box, window: Box) -> Pixels:
        out: Pixels = np.empty(window.shape, pixels.dtype)
        flat = np.ascontiguousarray(pixels).ravel()
        height, width = source.shape
        scratch = np.empty((2, self._size * self._size), np.int32)  # large arrays are costly to come by
        for cell in self._cells(window):
            row, col = (buffer[: math.prod(cell.part.shape)].reshape(cell.part.shape) for buffer in scratch)
            _fixed(cell.row, cell.within, source.top, row)
            _fixed(cell.col, cell.within, source.left, col)
            missing = None
            if cell.source_box().overlap(source) != cell.source_box():
                missing = (row < 0) | (row >= height) | (col < 0) | (col >= width)
            row *= width
            row += col
            there = out[cell.part.within(window).slices]
            np.take(flat, row, out=there, mode="clip")
            if missing is not None:
                there[missing] = self.empty
        return out


class _Cell(NamedTuple):
    """A part of the target grid on which a lookup is affine.

    ``part`` on the grid and ``within`` the cell; ``row`` and ``col`` give the source coordinate of the cell's first
    pixel and its steps per target row and column.
    """

    part: Box
    within: Box
    row: tuple[float, float, float]
    col: tuple[float, float, float]

    def source_box(self) -> Box:
        """The source pixels it looks up, and one more on each side for the rounding."""
        top, bottom = _range(self.row, self.within)
        left, right = _range(self.col, self.within)
        return Box(math.floor(top) - 1, math.floor(bottom) + 2, math.floor(left) - 1, math.floor(right) + 2)


def _range(affine: tuple[float, float, float], within: Box) -> tuple[float, float]:
    """Smallest and largest value of an affine over a part of its cell."""
    first, down, across = affine
    rows = (down * within.top, down * (within.bottom - 1))
    cols = (across * within.left, across * (within.right - 1))
    return first + min(rows) + min(cols), first + max(rows) + max(cols)


def _affine_cells(nodes: NDArray[np.float64], cell: int) -> tuple[NDArray[np.float64], float]:
    """Least-squares affines of all cells of 3 x 3 nodes, and the largest residual at a node.

    ``nodes`` has shape ``(2 * rows + 1, 2 * cols + 1)``; the result has shape ``(rows, cols, 3)``: the value
    at a cell's first pixel, and its steps per target row and column.
    """
    rows, cols = nodes.shape[0] // 2, nodes.shape[1] // 2
    patch = np.stack(
        [nodes[i : i + 2 * rows : 2, j : j + 2 * cols : 2] for i in range(3) for j in range(3)], axis=-1
    ).reshape(rows, cols, 3, 3)
    mean = patch.mean(axis=(2, 3))
    # On a 3 x 3 lattice the least-squares slope is the mean difference of the outer rows or columns.
    down = (patch[:, :, 2, :] - patch[:, :, 0, :]).mean(axis=-1) / cell
    across = (patch[:, :, :, 2] - patch[:, :, :, 0]).mean(axis=-1) / cell
    steps = np.arange(3) * (cell / 2) - cell / 2
    fitted = mean[..., None, None] + down[..., None, None] * steps[:, None] + across[..., None, None] * steps
    first = mean - (down + across) * (cell / 2)
    return np.stack([first, down, across], axis=-1), float(np.abs(fitted - patch).max())


def _fixed(affine: tuple[float, float, float], within: Box, origin: int, out: NDArray[np.int32]) -> None:
    """Whole source rows (or columns) of a part of a cell, counted from ``origin``, into ``out``.

    The outer sum of two vectors in fixed point, rounded once: off by at most 2**-_BITS pixels.
    """
    first, down, across = affine
    scale = 1 << _BITS
    rows = np.arange(within.top, within.bottom) * (down * scale) + ((first - origin) * scale + 0.5)
    cols = np.arange(within.left, within.right) * (across * scale) + 0.5
    np.add(np.floor(rows, out=rows).astype(np.int32)[:, None], np.floor(cols, out=cols).astype(np.int32), out=out)
    out >>= _BITS
