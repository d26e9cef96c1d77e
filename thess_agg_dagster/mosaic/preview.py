"""Previews: every n-th pixel of a raster under construction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from thess_agg_dagster.mosaic.grid import Box

#: Pixels of a raster's longer side in its preview, at most.
PREVIEW = 800


class Preview:
    """Every n-th pixel of a grid in ``pixels``, at most :data:`PREVIEW` a side, filled window by window."""

    def __init__(self, grid: GeoBox, fill: float, dtype: str | np.dtype[Any]) -> None:
        rows, cols = (int(size) for size in grid.shape)
        self._step = math.ceil(max(rows, cols) / PREVIEW)
        self.pixels: NDArray[Any] = np.full((-(-rows // self._step), -(-cols // self._step)), fill, dtype)

    def show(self, window: Box, pixels: NDArray[Any]) -> None:
        """Take a window's share of its pixels."""
        step = self._step
        seen = pixels[-window.top % step :: step, -window.left % step :: step]
        top, left = -(-window.top // step), -(-window.left // step)
        self.pixels[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
