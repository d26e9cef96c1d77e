"""Placements: how one tile lies on the target grid, and how its pixels get there.

Five ways, each with the same two questions (which of the tile's pixels does this window need, and what do they look
like on the window): a plain copy, pixels repeated, a nearest-neighbour lookup, a mean of such, and GDAL's warper.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from thess_agg_dagster.mosaic.blocks import Pixels
from thess_agg_dagster.mosaic.grid import Box, footprint_on, whole
from thess_agg_dagster.mosaic.tiles import Tile

Mask = NDArray[np.bool_]


class Placement(ABC):
    """A tile on the target grid, with pixels only inside ``footprint``, a rectangle of the grid."""

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
        """Whether the tile's pixels, without any conversion, have that dtype and ``nodata`` in every empty pixel."""
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


class Repeat(Copy):
    """Nearest neighbour if each of the tile's pixels covers whole pixels of the grid: pixels are repeated."""

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
    """Coarser pixels, each the mean of ``factor`` x ``factor`` evenly spaced samples, not counting empty ones.

    A sample is the tile's pixel that contains its centre. If the tile's pixels fill the grid's exactly, this is their
    mean; between neighbouring zones each of them still counts about once.
    """

    def __init__(self, tile: Tile, empty: float, grid: GeoBox, factor: int, samples: Placement) -> None:
        super().__init__(tile, empty, grid)
        self._factor = factor
        self._samples = samples  # the tile on a grid of that many times finer pixels

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
