"""Placements: how one tile lies on the target grid, and how its pixels get there.

Five ways, each with the same two questions (which of the tile's pixels does this window need, and what do they look
like on the window): a plain copy, pixels repeated, a nearest-neighbour lookup, a mean of such, and GDAL's warper.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

from thess_agg_dagster.mosaic.blocks import Pixels
from thess_agg_dagster.mosaic.grid import ALIGNED, Box, crop, footprint_on, project_pixels, rasterio_crs, settled, whole
from thess_agg_dagster.mosaic.tiles import Tile

Mask = NDArray[np.bool_]

#: Largest distance, in source pixels, between a nearest lookup and the exact projection.
LOOKUP_ERROR = 1 / 32

#: The same for GDAL's warper, as far as it approximates the projection.
WARP_ERROR = 0.01

# A lookup is affine within a cell of at most this many target pixels a side. Between neighbouring UTM zones at
# 10 m such a cell bends by about 0.01 pixel, and its index arithmetic fits in a core's cache.
_CELL = 256
_SMALLEST_CELL = 16

# Fixed-point bits of a lookup's coordinates: 2**-12 of a pixel leaves 2**19 pixels of range in 32 bits.
_BITS = 12

# A kernel is widened where a target pixel spans at least so many source pixels.
_LEAST_SPAN = 1 / 0.95


class Placement(ABC):
    """A tile on the target grid. ``footprint`` is the rectangle of the grid outside which it has no pixel."""

    def __init__(self, tile: Tile, empty: float, grid: GeoBox) -> None:
        self.tile = tile
        self.empty = empty
        self.grid = grid
        self.footprint = footprint_on(grid, tile.geobox).overlap(whole(grid))

    @abstractmethod
    def source_box(self, window: Box) -> Box:
        """The tile's pixels that a window inside the footprint needs; falsy where there are none."""

    @abstractmethod
    def resample(self, pixels: Pixels, source: Box, window: Box) -> Pixels:
        """Bring ``pixels`` (of the tile's rectangle ``source``) onto ``window``, ``empty`` where there are none."""

    def gives(self, dtype: np.dtype[Any], nodata: float) -> bool:
        """Whether the tile's pixels are of that dtype and every empty one holds ``nodata``, as they come."""
        if self.tile.dtype != dtype:
            return False
        if dtype.kind == "f":  # NaN is empty, whatever else is
            return math.isnan(self.empty) and math.isnan(nodata)
        return self.empty == nodata

    def is_empty(self, pixels: Pixels) -> Mask:
        """Which pixels hold nothing: the tile's empty value, and NaN in any case."""
        if pixels.dtype.kind != "f":
            return pixels == pixels.dtype.type(self.empty)  # type: ignore[no-any-return]
        mask: Mask = np.isnan(pixels)
        if not math.isnan(self.empty):
            mask |= pixels == pixels.dtype.type(self.empty)
        return mask


class Copy(Placement):
    """A tile whose pixels are the grid's pixels: taken bit for bit."""

    def __init__(self, tile: Tile, empty: float, grid: GeoBox) -> None:
        super().__init__(tile, empty, grid)
        left, top = grid.wld2pix(*tile.geobox.pix2wld(0, 0))
        self._offset = -round(top), -round(left)

    def source_box(self, window: Box) -> Box:
        return window.shift(*self._offset)

    def resample(self, pixels: Pixels, source: Box, window: Box) -> Pixels:
        return pixels


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


class Repeat(Copy):
    """Nearest neighbour where each of the tile's pixels fills whole pixels of the grid: repeated."""

    def __init__(self, tile: Tile, empty: float, grid: GeoBox, factor: int) -> None:
        super().__init__(tile, empty, grid)
        self._factor = factor

    def source_box(self, window: Box) -> Box:
        k, there = self._factor, super().source_box(window)
        return Box(there.top // k, -(-there.bottom // k), there.left // k, -(-there.right // k))

    def resample(self, pixels: Pixels, source: Box, window: Box) -> Pixels:
        k, there = self._factor, super().source_box(window)
        height, width = pixels.shape
        # Assignments, unlike `numpy.repeat`, let other threads go on.
        wide: Pixels = np.empty((height, width * k), pixels.dtype)
        repeated: Pixels = np.empty((height * k, width * k), pixels.dtype)
        for col in range(k):
            wide[:, col::k] = pixels
        for row in range(k):
            repeated[row::k] = wide
        return repeated[there.within(Box(source.top * k, 0, source.left * k, 0)).slices]


class Mean(Placement):
    """Coarser pixels: the mean of ``factor`` x ``factor`` samples, evenly spread over each; empty ones do not count.

    A sample is the tile's pixel that its centre falls in. Where the tile's pixels fill the grid's exactly this is their
    mean; between neighbouring zones each of them still counts about once.
    """

    def __init__(self, tile: Tile, empty: float, grid: GeoBox, factor: int) -> None:
        super().__init__(tile, empty, grid)
        self._factor = factor
        self._samples = place(tile, empty, split(grid, factor), Resampling.nearest)

    def _box(self, window: Box) -> Box:
        """A window's samples."""
        k = self._factor
        return Box(window.top * k, window.bottom * k, window.left * k, window.right * k)

    def source_box(self, window: Box) -> Box:
        covered = self._box(window).overlap(self._samples.footprint)
        return self._samples.source_box(covered) if covered else Box(0, 0, 0, 0)

    def resample(self, pixels: Pixels, source: Box, window: Box) -> Pixels:
        box = self._box(window)
        covered = box.overlap(self._samples.footprint)
        samples = self._samples.resample(pixels, source, covered)
        if covered != box:
            padded = np.full(box.shape, self.empty, pixels.dtype)
            padded[covered.within(box).slices] = samples
            samples = padded
        valid = ~self.is_empty(samples)
        total = self._sums(np.where(valid, samples, pixels.dtype.type(0)))
        count = self._sums(valid).astype(np.int64)
        if total.dtype != np.float64:
            total = total.astype(np.int64)
        filled = np.maximum(count, 1)
        # Integers are rounded to the nearest, halves upwards.
        mean = total / filled if pixels.dtype.kind == "f" else (2 * total + filled) // (2 * filled)
        out: Pixels = mean.astype(pixels.dtype)
        if not math.isnan(self.empty):  # a mean that happens to be the empty value moves by as little as there is
            value = out.dtype.type(self.empty)
            out[out == value] = np.nextafter(value, out.dtype.type(np.inf)) if out.dtype.kind == "f" else value + 1
        out[count == 0] = self.empty
        return out

    def _sums(self, samples: Pixels) -> Pixels:
        """Sums of ``factor`` x ``factor`` samples: of rows first, then of columns."""
        k = self._factor
        # The smallest dtype that no sum overflows: most windows are uint16, and there are many pixels in them.
        small = samples.dtype.itemsize <= 2 and k * k <= 2**15
        dtype = np.float64 if samples.dtype.kind == "f" else np.int32 if small else np.int64
        rows: Pixels = np.zeros((samples.shape[0] // k, samples.shape[1]), dtype)
        for row in range(k):
            rows += samples[row::k]
        sums: Pixels = np.zeros((rows.shape[0], rows.shape[1] // k), dtype)
        for col in range(k):
            sums += rows[:, col::k]
        return sums


class Warp(Placement):
    """Every other resampling: GDAL's warper, on the arrays of one window at a time.

    Each window gets the source pixels its kernel can reach, so windows join without seams.
    """

    def __init__(self, tile: Tile, empty: float, grid: GeoBox, resampling: Resampling) -> None:
        super().__init__(tile, empty, grid)
        self._resampling = resampling
        self._grid_crs = rasterio_crs(grid)
        # Source pixels that a target pixel spans, to the right and down, in the middle of the footprint. GDAL would
        # guess it for each window anew, and widen its kernel by as much as the window happens to be rotated.
        row, col = (self.footprint.top + self.footprint.bottom) // 2, (self.footprint.left + self.footprint.right) // 2
        corners = np.array([(col, row), (col + 1, row), (col, row + 1)], float)
        pixel = np.stack(project_pixels(grid, tile.geobox, *corners.T), axis=-1)
        self._span = tuple(_kernel_span(float(np.hypot(*(pixel[corner] - pixel[0]))), resampling) for corner in (1, 2))
        # GDAL's Lanczos loses its largest weight where a wider kernel meets the centre of a pixel, as it does throughout
        # a reduction by an odd factor. So little beside it, all is well.
        self._aside = 2**-16 if resampling is Resampling.lanczos and max(self._span) > 1 else 0.0
        self._reach = math.ceil(4 * max(self._span))  # the widest kernel, Lanczos, reaches 3 pixels at that scale

    def source_box(self, window: Box) -> Box:
        box = footprint_on(self.tile.geobox, crop(self.grid, window))
        reach = self._reach
        grown = Box(box.top - reach, box.bottom + reach, box.left - reach, box.right + reach)
        return grown.overlap(whole(self.tile.geobox))

    def resample(self, pixels: Pixels, source: Box, window: Box) -> Pixels:
        try:
            return self._warped(pixels, source, window)
        except RasterioError as error:  # the tile's pixels were read, the mosaic's are not yet written
            raise RuntimeError(f"{self.tile.path}: cannot be warped ({error})") from error

    def _warped(self, pixels: Pixels, source: Box, window: Box) -> Pixels:
        height, width = window.shape
        nodata = self.empty
        if pixels.dtype.kind == "f" and not math.isnan(nodata):  # GDAL knows one empty value, and NaN is empty, too
            pixels, nodata = np.where(self.is_empty(pixels), pixels.dtype.type(np.nan), pixels), math.nan
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                height=source.shape[0],
                width=source.shape[1],
                count=1,
                dtype=pixels.dtype,
                crs=rasterio_crs(self.tile.geobox),
                transform=crop(self.tile.geobox, source).affine * Affine.translation(self._aside, self._aside),
            ) as tile:
                tile.write(pixels, 1)
            # `rasterio.warp.reproject` would do without a file, but is up to 0.1 pixel off: it always approximates the
            # projection to 0.125 pixel.
            with (
                memory.open() as tile,
                WarpedVRT(
                    tile,
                    crs=self._grid_crs,
                    transform=crop(self.grid, window).affine,
                    height=height,
                    width=width,
                    src_nodata=nodata,
                    nodata=nodata,
                    resampling=self._resampling,
                    tolerance=WARP_ERROR,
                    XSCALE=1 / self._span[0],
                    YSCALE=1 / self._span[1],
                ) as warped,
            ):
                out: Pixels = warped.read(1)
        return out


def place(tile: Tile, empty: float, grid: GeoBox, resampling: Resampling) -> Placement:
    """Choose how a tile gets onto the grid: copied where it can be, repeated or looked up for nearest, averaged, else
    warped."""
    tile = replace(tile, geobox=settled(tile.geobox, grid))
    if is_aligned(tile.geobox, grid):
        return Copy(tile, empty, grid)
    if resampling is Resampling.nearest and (factor := whole_factor(grid, tile.geobox)):
        return Repeat(tile, empty, grid, factor)
    if resampling is Resampling.average and (factor := near_factor(tile.geobox, grid)):
        return Mean(tile, empty, grid, factor)
    if resampling is Resampling.nearest:
        lookup = Lookup(tile, empty, grid)
        if lookup.exact_enough:
            return lookup
    return Warp(tile, empty, grid, resampling)


def _kernel_span(span: float, resampling: Resampling) -> float:
    """Source pixels that a kernel of GDAL's is to be widened for, where a target pixel spans ``span`` of them."""
    # 1. Hardly more than one is one. GDAL's bilinear and cubic kernels hold it so; its Lanczos has no weight left, and its
    #    cubic spline negative ones, where the scale is a hair below 1.
    if span < _LEAST_SPAN:
        return 1.0
    # 2. The cubic spline, which reaches two pixels at that scale, goes negative beyond them: its reach is a whole number.
    return round(2 * span) / 2 if resampling is Resampling.cubic_spline else span


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
    """How many pixels of ``fine`` fill one of ``coarse``, a side, where they do so exactly; else ``None``."""
    if fine.crs != coarse.crs:
        return None
    factor = round(abs(coarse.resolution.x / fine.resolution.x))
    return factor if factor and is_aligned(split(coarse, factor), fine) else None


def near_factor(fine: GeoBox, coarse: GeoBox) -> int | None:
    """The same by size alone, in one CRS or two of the same unit, two or more; else ``None``."""
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
