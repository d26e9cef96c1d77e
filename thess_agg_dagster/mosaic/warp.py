"""Warps: all resampling that no other placement does, by GDAL's warper."""

from __future__ import annotations

import math

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

from thess_agg_dagster.mosaic.blocks import Pixels
from thess_agg_dagster.mosaic.grid import Box, crop, footprint_on, project_pixels, rasterio_crs, whole
from thess_agg_dagster.mosaic.placement import Placement
from thess_agg_dagster.mosaic.tiles import Tile

#: Largest distance, in source pixels, between the projection as GDAL's warper approximates it and the exact one.
WARP_ERROR = 0.01

# A kernel is widened where a target pixel spans at least so many source pixels.
_LEAST_SPAN = 1 / 0.95


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


def _kernel_span(span: float, resampling: Resampling) -> float:
    """Source pixels that a kernel of GDAL's is to be widened for, where a target pixel spans ``span`` of them."""
    # 1. Hardly more than one is one. GDAL's bilinear and cubic kernels hold it so; its Lanczos has no weight left, and its
    #    cubic spline negative ones, where the scale is a hair below 1.
    if span < _LEAST_SPAN:
        return 1.0
    # 2. The cubic spline, which reaches two pixels at that scale, goes negative beyond them: its reach is a whole number.
    return round(2 * span) / 2 if resampling is Resampling.cubic_spline else span
