"""Choosing a placement: in which way a tile gets onto the grid."""

from __future__ import annotations

from dataclasses import replace

from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from thess_agg_dagster.mosaic.grid import is_aligned, near_factor, settled, split, whole_factor
from thess_agg_dagster.mosaic.lookup import Lookup
from thess_agg_dagster.mosaic.placement import Copy, Mean, Placement, Repeat
from thess_agg_dagster.mosaic.tiles import Tile
from thess_agg_dagster.mosaic.warp import Warp


def place(tile: Tile, empty: float, grid: GeoBox, resampling: Resampling) -> Placement:
    """Choose how a tile gets onto the grid: copied if possible; for nearest, repeated or looked up; averaged; otherwise
    warped."""
    tile = replace(tile, geobox=settled(tile.geobox, grid))
    if is_aligned(tile.geobox, grid):
        return Copy(tile, empty, grid)
    if resampling is Resampling.nearest and (factor := whole_factor(grid, tile.geobox)):
        return Repeat(tile, empty, grid, factor)
    if resampling is Resampling.average and (factor := near_factor(tile.geobox, grid)):
        samples = place(tile, empty, split(grid, factor), Resampling.nearest)
        return Mean(tile, empty, grid, factor, samples)
    if resampling is Resampling.nearest:
        lookup = Lookup(tile, empty, grid)
        if lookup.exact_enough:
            return lookup
    return Warp(tile, empty, grid, resampling)
