"""Layers: the pixels of one tile for one part of the grid, masked, harmonized and resampled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from thess_agg_dagster.mosaic.blocks import BlockCache, Pixels
from thess_agg_dagster.mosaic.grid import Box
from thess_agg_dagster.mosaic.place import place
from thess_agg_dagster.mosaic.placement import Mask
from thess_agg_dagster.mosaic.plan import Layer
from thess_agg_dagster.mosaic.radiometry import remove_offset


class Needs(NamedTuple):
    """The pixels that a part of the grid needs from a layer's tile, and from the SCL tile that masks it."""

    part: Box
    source: Box
    scl: Box | None


class LayerReader:
    """One layer on the grid. ``tile`` and ``scl`` are the numbers of its files in the :class:`BlockCache`."""

    def __init__(self, layer: Layer, grid: GeoBox, mask: tuple[int, ...], tile: int, scl: int | None) -> None:
        self.placement = place(layer.tile, layer.empty, grid, layer.resampling)
        self.number = layer.number
        self._tile = tile
        self._offset = layer.offset
        self._scl = scl
        self._mask = mask
        # The tile is masked where it lies, before it is resampled, so that no cloud bleeds into its neighbours.
        self._classes = None if layer.scl is None else place(layer.scl, 0, layer.tile.geobox, Resampling.nearest)

    def needs(self, part: Box, within: Needs | None = None) -> Needs | None:
        """The pixels needed for a part of the grid (of those announced); ``None`` if the tile has none there."""
        source = self.placement.source_box(part)
        if within is not None:
            source = source.overlap(within.source)
        if not source:
            return None
        return Needs(part, source, None if self._classes is None else self._classes.source_box(source))

    def pieces(self, part: Box, most: int) -> Iterator[Needs]:
        """The same for a part of any size, in pieces that are reduced from at most so many pixels of the tile."""
        part = part.overlap(self.placement.footprint)
        needs = self.needs(part) if part else None
        if needs is None:
            return
        rows, cols = part.shape
        # A whole window in a neighbouring zone lies askew: that is no reduction.
        if math.prod(needs.source.shape) <= max(most, 1.3 * rows * cols) or rows * cols == 1:
            yield needs
        elif rows >= cols:
            middle = part.top + rows // 2
            yield from self.pieces(part._replace(bottom=middle), most)
            yield from self.pieces(part._replace(top=middle), most)
        else:
            middle = part.left + cols // 2
            yield from self.pieces(part._replace(right=middle), most)
            yield from self.pieces(part._replace(left=middle), most)

    def announce(self, cache: BlockCache, needs: Needs) -> None:
        cache.announce(self._tile, needs.source)
        if needs.scl is not None and self._scl is not None:
            cache.announce(self._scl, needs.scl)

    def skip(self, cache: BlockCache, needs: Needs) -> None:
        cache.skip(self._tile, needs.source)
        if needs.scl is not None and self._scl is not None:
            cache.skip(self._scl, needs.scl)

    def read(self, cache: BlockCache, needs: Needs, announced: Needs) -> tuple[Pixels, Pixels | None]:
        """The layer on ``needs.part``; and, if the mask removes anything, the layer without the mask."""
        pixels = cache.read(self._tile, needs.source, announced.source)
        if self._offset:
            pixels = remove_offset(pixels, self._offset, self.placement.empty)
        hidden = self._hidden(cache, needs, announced)
        resampled = self.placement.resample(pixels, needs.source, needs.part)
        if hidden is None:
            return resampled, None
        masked = pixels.copy()
        np.copyto(masked, pixels.dtype.type(self.placement.empty), where=hidden)
        return self.placement.resample(masked, needs.source, needs.part), resampled

    def _hidden(self, cache: BlockCache, needs: Needs, announced: Needs) -> Mask | None:
        """Which of the tile's pixels SCL hides; ``None``: none."""
        if self._classes is None or self._scl is None or needs.scl is None or announced.scl is None:
            return None
        classes = cache.read(self._scl, needs.scl, announced.scl)
        hides = np.logical_or.reduce([classes == hidden for hidden in self._mask])
        return self._classes.resample(hides, needs.scl, needs.source) if hides.any() else None
