"""Plans: everything a mosaic needs to know before its first pixel is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from thess_agg_dagster.mosaic.grid import footprint_on, target_grid
from thess_agg_dagster.mosaic.rules import resolve_dtype, resolve_empty_value, resolve_nodata, resolve_resampling
from thess_agg_dagster.mosaic.tiles import MAX_PIXELS, Problem, ProblemKind, Tile, TileError, inspect_tile

# A mosaic this many times larger than its tiles is not one overpass: some tile lies elsewhere.
_MAX_SPREAD = 50


@dataclass(frozen=True)
class MosaicOptions:
    """How mosaics are made; the defaults are the product's.

    ``nodata=NaN`` means no override, ``dtype=None`` the tiles' own, ``threads=None`` one per core.
    """

    merge_method: str = "first"
    resampling: str = "nearest"
    nodata: float = math.nan
    dtype: str | None = None
    compress: str = "zstd"
    threads: int | None = None


@dataclass(frozen=True)
class MosaicPlan:
    """One band's mosaic, decided: tiles in merge order, target grid, dtype, nodata."""

    band: str
    tiles: tuple[Tile, ...]
    empty_values: tuple[float, ...]
    grid: GeoBox
    dtype: str
    nodata: float
    resampling: Resampling
    options: MosaicOptions
    notes: tuple[str, ...] = field(default=())

    @property
    def reprojected(self) -> tuple[Tile, ...]:
        """The tiles in another CRS than the mosaic's."""
        return tuple(tile for tile in self.tiles if tile.geobox.crs != self.grid.crs)


class PlanError(Exception):
    """A mosaic cannot be planned. Carries every :class:`Problem` found, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def plan_mosaic(paths: Sequence[Path], band: str, options: MosaicOptions) -> MosaicPlan:
    """Decide one band's mosaic from its tiles' headers, in the order they are to be merged.

    The first path gives CRS, origin and pixel size. Raises :class:`PlanError` with all problems found.
    """
    tiles: list[Tile] = []
    empty_values: list[float] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            tile = inspect_tile(path)
        except TileError as error:
            problems.append(error.problem)
            continue
        try:
            empty_values.append(resolve_empty_value(tile.dtype, tile.nodata_tag))
            tiles.append(tile)
        except ValueError as error:
            problems.append(Problem("dtype_conflict", str(error), path))
    if problems or not tiles:
        raise PlanError(problems or [Problem("missing_input", "no tiles are listed")])

    def conflict(kind: ProblemKind, error: ValueError) -> PlanError:
        listed = ", ".join(f"{tile.path.parent.name} ({tile.dtype})" for tile in tiles)
        return PlanError([Problem(kind, f"{error} [{listed}]")])

    try:
        dtype = resolve_dtype([tile.dtype for tile in tiles], options.merge_method, options.dtype)
        dtype, nodata = resolve_nodata(options.nodata, dtype, empty_values[0])
    except ValueError as error:
        raise conflict("dtype_conflict", error) from error
    grid = _grid_of(tiles)
    return MosaicPlan(
        band=band,
        tiles=tuple(tiles),
        empty_values=tuple(empty_values),
        grid=grid,
        dtype=dtype,
        nodata=nodata,
        resampling=resolve_resampling(band, options.resampling),
        options=options,
        notes=tuple(_notes(tiles, empty_values, grid, dtype)),
    )


def _grid_of(tiles: Sequence[Tile]) -> GeoBox:
    anchor = tiles[0]
    areas = []
    for tile in tiles:
        try:
            rows, cols = footprint_on(anchor.geobox, tile.geobox).shape
        except ValueError as error:
            raise PlanError([Problem("unknown_crs", str(error), tile.path)]) from error
        areas.append(rows * cols)
    grid = target_grid([tile.geobox for tile in tiles])
    rows, cols = grid.shape
    if rows * cols > min(MAX_PIXELS, _MAX_SPREAD * sum(areas)):
        positions = "; ".join(f"{tile.path} at {_position(tile)}" for tile in tiles)
        raise PlanError(
            [
                Problem(
                    "unreadable_input",
                    f"the tiles lie too far apart: the mosaic would be {cols} x {rows} pixels ({positions}); "
                    "download again the one in the wrong place",
                )
            ]
        )
    return grid


def _position(tile: Tile) -> str:
    centre = tile.geobox.geographic_extent.centroid.coords[0]
    return f"{centre[1]:.2f}, {centre[0]:.2f} (latitude, longitude)"


def _notes(tiles: Sequence[Tile], empty_values: Sequence[float], grid: GeoBox, dtype: str) -> list[str]:
    """What was reconciled, in words, for the audit."""
    notes = []
    if others := sorted({tile.dtype for tile in tiles} - {dtype}):
        notes.append(f"dtype promoted from {', '.join(others)} to {dtype}")
    tags = dict.fromkeys(f"{value:g}" for value in empty_values)
    if len(tags) > 1:
        notes.append(f"tiles call different values empty ({', '.join(tags)})")
    sizes = dict.fromkeys(tile.geobox.resolution.map(abs).xy for tile in tiles if tile.geobox.crs == grid.crs)
    if len(sizes) > 1:
        notes.append(f"tiles of different pixel sizes brought to {grid.resolution.x:g}")
    return notes
