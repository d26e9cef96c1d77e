"""Plans: everything that must be known about a mosaic before its first pixel is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from thess_agg_dagster.mosaic.bands import role_of
from thess_agg_dagster.mosaic.choices import ProblemKind
from thess_agg_dagster.mosaic.grid import footprint_on, is_aligned, project_pixels, whole
from thess_agg_dagster.mosaic.inspection import Inspected, Note, Source, inspect
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.rules import (
    resolve_dtype,
    resolve_nodata,
    resolve_resampling,
)
from thess_agg_dagster.mosaic.target import Target, fixed_step, resolve_crs, resolve_pixel, target_grid
from thess_agg_dagster.mosaic.tiles import PlanError, Problem, Tile, overview_of
from thess_agg_dagster.storage.paths import File

# A mosaic's pixels are larger than a tile's from this ratio on. (The same size in another zone differs by a thousandth.)
_REDUCED = 1.01


@dataclass(frozen=True)
class Layer:
    """A tile's part in a mosaic: its empty value, offset, mask and resampling.

    ``number`` is its place among all tiles given, from 1; tiles off the grid are counted, so that all bands use the
    same numbers.
    """

    tile: Tile
    empty: float
    offset: int
    scl: Tile | None
    resampling: Resampling
    number: int


@dataclass(frozen=True)
class MosaicPlan:
    """The plan of one band's mosaic: layers in merge order, target grid, dtype, nodata."""

    band: str
    layers: tuple[Layer, ...]
    grid: GeoBox
    dtype: str
    nodata: float
    options: MosaicOptions
    notes: tuple[Note, ...] = ()

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return tuple(layer.tile for layer in self.layers)

    def files(self) -> Iterator[File]:
        """Every file to read: tiles, and the SCL that masks them."""
        for layer in self.layers:
            yield layer.tile.path
            if layer.scl is not None:
                yield layer.scl.path

    @property
    def reprojected(self) -> tuple[Tile, ...]:
        """Tiles with another CRS or pixel grid than the mosaic's: resampled, or copied if their grid is equivalent."""
        return tuple(tile for tile in self.tiles if not is_aligned(tile.geobox, self.grid))


def plan_mosaic(paths: Sequence[Path], band: str, options: MosaicOptions) -> MosaicPlan:
    """Plan one band's mosaic from the headers of its tiles, in merge order. Raises :class:`PlanError` with all problems
    found."""
    plans, problems = plan_mosaics({band: [Source(path) for path in paths]}, options)
    if band in problems:
        raise PlanError(problems[band])
    return plans[band]


def plan_mosaics(
    sources: Mapping[str, Sequence[Source]], options: MosaicOptions
) -> tuple[dict[str, MosaicPlan], dict[str, Sequence[Problem]]]:
    """Plan the mosaics of several bands on the same ground, from the headers of their tiles, in merge order.

    Every band is in one of the two results: its plan, or all problems found.
    """
    inspected: dict[str, Inspected] = {}
    problems: dict[str, Sequence[Problem]] = {}
    for band, found in sources.items():
        try:
            inspected[band] = inspect(found, band, options)
        except PlanError as error:
            problems[band] = error.problems
    target = options.target
    shared: GeoBox | None = None
    plans: dict[str, MosaicPlan] = {}
    # The band whose grid the others get comes first.
    for band in sorted(inspected, key=lambda band: band != target.match_band):
        try:
            step = _step(inspected, target) if target.grid == "fixed" else None
            grid = shared or target_grid(inspected[band].tiles, target, step)
            plans[band] = _plan(band, inspected[band], grid, options)
            if band == target.match_band:
                shared = grid
        except PlanError as error:
            problems[band] = error.problems
    return {band: plans[band] for band in sources if band in plans}, problems


def _step(inspected: Mapping[str, Inspected], target: Target) -> float:
    """The length that the sides of a fixed grid are multiples of, so that all bands share pixel edges."""
    # Bands of one pixel size need no other edges than their own.
    bands = [band for band in inspected if target.match_band in (None, band)] or list(inspected)
    try:
        sizes: list[float] = []
        for band in bands:
            geoboxes = inspected[band].geoboxes
            crs = resolve_crs(geoboxes, target)
            sizes += resolve_pixel(geoboxes, crs, target.resolution)
        return fixed_step(sizes, crs, target)
    except ValueError as error:
        raise PlanError([Problem("unknown_crs", str(error))]) from error


def _plan(band: str, inspected: Inspected, grid: GeoBox, options: MosaicOptions) -> MosaicPlan:
    tiles = inspected.tiles

    def conflict(kind: ProblemKind, error: ValueError) -> PlanError:
        listed = ", ".join(f"{tile.scene_id or tile.path} ({tile.dtype})" for tile in tiles)
        return PlanError([Problem(kind, f"{error} [{listed}]")])

    # All tiles have their say, also those that do not touch a fixed grid: a series keeps its dtype.
    try:
        dtype = resolve_dtype([tile.dtype for tile in tiles], options.merge_method, options.dtype)
        dtype, nodata = resolve_nodata(options.nodata, dtype, inspected.empty_values[0])
    except ValueError as error:
        raise conflict("dtype_conflict", error) from error
    layers = list(_layers(band, inspected, grid, options))
    if not layers:
        what = "aoi" if options.target.aoi is not None and options.target.bounds is None else "grid"
        reason = f"no tile lies in the {what}; check the {what}, or take the row off the list"
        raise PlanError([Problem("outside_grid", reason)])
    return MosaicPlan(
        band, tuple(layers), grid, dtype, nodata, options, tuple(_notes(band, inspected, layers, grid, dtype, options))
    )


def _layers(band: str, inspected: Inspected, grid: GeoBox, options: MosaicOptions) -> Iterator[Layer]:
    """The tiles that touch the grid, each with all that is done to it."""
    for number, (tile, empty, scl, offset) in enumerate(
        zip(inspected.tiles, inspected.empty_values, inspected.scl, inspected.offsets, strict=True), 1
    ):
        try:
            touches = footprint_on(grid, tile.geobox).overlap(whole(grid))
        except ValueError as error:
            raise PlanError([Problem("unknown_crs", str(error), tile.path)]) from error
        if not touches:
            continue
        ratio = _reduction(tile.geobox, grid)
        reduced = options.target.other_pixels and ratio > _REDUCED
        # An overview mixes classes, and clouds into what is beside them.
        if reduced and options.overviews and scl is None and role_of(band) != "classes":
            tile = overview_of(tile, ratio)
        resampling = resolve_resampling(band, options.resampling, options.reduction if reduced else None)
        yield Layer(tile, empty, offset, scl, resampling, number)


def _reduction(tile: GeoBox, grid: GeoBox) -> float:
    """The number of a tile's pixels along the side of one of the grid's."""
    if tile.crs == grid.crs:
        return math.sqrt(abs(math.prod(grid.resolution.xy) / math.prod(tile.resolution.xy)))
    # By the area of the tile's middle pixel: a metre of one CRS is not always one of another.
    row, col = tile.shape[0] / 2, tile.shape[1] / 2
    corners = np.array([(col, row), (col + 1, row), (col, row + 1)])
    x, y = project_pixels(tile, grid, *corners.T)
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
    return float(1 / math.sqrt(area)) if area > 0 else 1.0


def _interpolates(layer: Layer, grid: GeoBox) -> bool:
    """Whether a tile's pixels become others on the grid, instead of being taken as they are."""
    taken = layer.resampling in (Resampling.nearest, Resampling.mode)
    return not taken and not is_aligned(layer.tile.geobox, grid)


def _notes(
    band: str, inspected: Inspected, layers: Sequence[Layer], grid: GeoBox, dtype: str, options: MosaicOptions
) -> Iterator[Note]:
    """Everything that was reconciled, for checks and the audit."""
    tiles = inspected.tiles
    yield from inspected.notes
    if others := sorted({tile.dtype for tile in tiles} - {dtype}):
        yield Note("dtype", f"dtype promoted from {', '.join(others)} to {dtype}")
    tags = dict.fromkeys(f"{value:g}" for value in inspected.empty_values)
    if len(tags) > 1:
        yield Note("empty_values", f"tiles have different nodata values ({', '.join(tags)})")
    sizes = dict.fromkeys(tile.geobox.resolution.map(abs).xy for tile in tiles if tile.geobox.crs == grid.crs)
    if len(sizes) > 1:
        yield Note("pixel_sizes", f"tiles of different pixel sizes resampled to {grid.resolution.x:g}")
    pixel = grid.resolution.map(abs).xy
    same = [layer.tile.geobox for layer in layers if layer.tile.geobox.resolution.map(abs).xy == pixel]
    if off := sum(tile.crs == grid.crs and not is_aligned(tile, grid) for tile in same):
        yield Note(
            "off_grid",
            f"{off} of {len(layers)} tiles resampled, because their pixels are not aligned with the mosaic's",
        )
    if role_of(band) == "unknown" and (options.harmonize or any(_interpolates(layer, grid) for layer in layers)):
        what = "it counts as neither classes (SCL) nor reflectance (B01 to B12)"
        yield Note("unknown_band", f"its name is not a known one; {what}")
    if len(layers) < len(tiles):
        yield Note("outside_grid", f"{len(tiles) - len(layers)} of {len(tiles)} tiles lie outside the grid")
    if any(layer.tile.overview is not None for layer in layers):
        yield Note("overviews", "reduced from overviews, which is not exact")
    if any(layer.offset for layer in layers):
        count = sum(bool(layer.offset) for layer in layers)
        yield Note("offset_removed", f"the radiometric offset was removed from {count} of {len(layers)} tiles")
