"""Targets: the grid of a timestamp's mosaics, either that of its tiles or one for a whole series."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.mosaic.area import project_area, utm_zone
from thess_agg_dagster.mosaic.choices import FIRST, MAJORITY, Grid
from thess_agg_dagster.mosaic.grid import ALIGNED, Box, crop, enclosing, footprint_on, union
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2
from thess_agg_dagster.mosaic.tiles import MAX_PIXELS, PlanError, Problem, Tile

# A mosaic this many times larger than its tiles is not one overpass: some tile lies elsewhere.
_MAX_SPREAD = 50
# Pixel sizes whose edges meet less often than every so many pixels do not belong together.
_LONGEST_STEP = 1000


@dataclass(frozen=True)
class Target:
    """Which grid mosaics are to have; the defaults are the first tile's, extended over all tiles.

    Parameters
    ----------
    target_crs
        ``first`` (the first tile's), ``majority`` (that of most tiles, the first among equals), or any CRS.
        For a fixed grid around an area, the first two stand for the UTM zone of the area's centre.
    grid
        ``fixed``: one grid whatever the tiles are, of ``bounds`` or those of ``aoi``.
    bounds
        Left, bottom, right, top in units of ``target_crs``: whole pixels of every band.
    resolution
        Pixel size in units of the CRS; ``None``: the tiles'.
    aoi
        What the mosaics are clipped to: its bounds in the CRS of the grid.
    match_band
        The band whose grid all bands get; ``None``: each its own, on the same ground.
    """

    target_crs: str = FIRST
    grid: Grid = "tiles"
    bounds: tuple[float, float, float, float] | None = None
    resolution: float | None = None
    aoi: Geometry | None = None
    match_band: str | None = None

    @property
    def other_pixels(self) -> bool:
        """Whether the mosaics are requested with other pixels than the tiles'."""
        return self.resolution is not None or self.match_band is not None


def resolve_crs(tiles: Sequence[GeoBox], target: Target) -> CRS:
    """The CRS of a mosaic."""
    # 1. The one asked for.
    if target.target_crs not in (FIRST, MAJORITY):
        return CRS(target.target_crs)
    # 2. One grid for all timestamps cannot ask the tiles of one: the UTM zone of the area's centre.
    if target.grid == "fixed":
        assert target.aoi is not None
        return utm_zone(target.aoi)
    # 3. The one of most tiles; among equals the first.
    if target.target_crs == MAJORITY:
        return Counter(_crs(tile) for tile in tiles).most_common(1)[0][0]
    # 4. The first tile's.
    return _crs(tiles[0])


def resolve_pixel(tiles: Sequence[GeoBox], crs: CRS, resolution: float | None) -> tuple[float, float]:
    """Width and height of a mosaic's pixels in units of its CRS. Raises ``ValueError`` if the tiles do not determine
    them."""
    # 1. What is asked for.
    if resolution is not None:
        return resolution, resolution
    # 2. The first tile's in that CRS, else the first tile's in the same units.
    tile = next((tile for tile in tiles if tile.crs == crs), tiles[0])
    if _crs(tile).units == crs.units:
        return abs(tile.resolution.x), abs(tile.resolution.y)
    raise ValueError(
        f"{crs} is in {crs.units[0]} and the tiles in {_crs(tile).units[0]}; give resolution, in {crs.units[0]}"
    )


def common_step(sizes: Sequence[float]) -> float:
    """The smallest length that is a whole multiple of each pixel size. Raises ``ValueError`` if there is none of
    reasonable size."""
    fractions = [Fraction(repr(round(size, 12))) for size in sizes]
    step = Fraction(math.lcm(*(f.numerator for f in fractions)), math.gcd(*(f.denominator for f in fractions)))
    if step > _LONGEST_STEP * max(fractions):
        listed = ", ".join(f"{size:g}" for size in dict.fromkeys(sizes))
        raise ValueError(f"pixels of {listed} have no edges in common; give resolution, or match_band")
    return float(step)


def fixed_step(sizes: Sequence[float], crs: CRS, target: Target) -> float:
    """The length that the sides of a fixed grid are multiples of, so that the pixel edges of all bands coincide.

    ``sizes`` are the pixel sizes of the bands. Around an area, the grid is also aligned to multiples of this length.
    """
    if target.bounds is None and not target.other_pixels and crs.units[0] == "metre":
        sizes = [*sizes, SENTINEL_2.lattice]
    return common_step(sizes)


def target_grid(tiles: Sequence[Tile], target: Target, step: float | None = None) -> GeoBox:
    """The grid of one band's mosaic: CRS, transform, and shape ``(rows, cols)``.

    Unless ``target`` says otherwise: the first tile's CRS, origin and pixel size, extended to cover all tiles. Anchored
    on the first tile, its pixels arrive bit for bit; no tile chooses an origin of its own.

    ``step`` is from :func:`fixed_step`, for fixed grids. Raises :class:`PlanError`.
    """
    geoboxes = [tile.geobox for tile in tiles]
    try:
        crs = resolve_crs(geoboxes, target)
        size = resolve_pixel(geoboxes, crs, target.resolution)
        if target.grid == "fixed":
            anchor, box = _fixed(target, crs, size, step or max(size))
        else:
            anchor, box = _around(tiles, crs, size)
        if target.aoi is not None and target.grid != "fixed":
            there = project_area(target.aoi, crs, crop(anchor, box).extent)
            box = box.overlap(enclosing(anchor, there.boundingbox.bbox)) if there else Box(0, 0, 0, 0)
    except AreaError as error:
        raise PlanError([Problem("outside_grid", str(error))]) from error
    except ValueError as error:
        raise PlanError([Problem("unknown_crs", str(error))]) from error
    if not box:
        raise PlanError(
            [Problem("outside_grid", "no tile lies in the aoi; check the aoi, or take the row off the list")]
        )
    if (
        target.aoi is not None
        and target.bounds is not None
        and not project_area(target.aoi, crs, crop(anchor, box).extent)
    ):
        raise PlanError([Problem("outside_grid", "the aoi lies outside the bounds; correct one of them")])
    rows, cols = box.shape
    if rows * cols > MAX_PIXELS:
        raise PlanError(
            [
                Problem(
                    "outside_grid",
                    f"the grid would have {cols} x {rows} pixels; give a coarser resolution, or a smaller area",
                )
            ]
        )
    return crop(anchor, box)


def _fixed(target: Target, crs: CRS, size: tuple[float, float], step: float) -> tuple[GeoBox, Box]:
    if target.bounds is not None:
        bounds = target.bounds
        origin = bounds[0], bounds[3]
    else:
        assert target.aoi is not None
        bounds = project_area(target.aoi, crs).boundingbox.bbox
        origin = (0.0, 0.0)
    steps = enclosing(_grid_at(origin, (step, step), crs), bounds)
    if target.bounds is not None:
        left, bottom, right, top = bounds
        grown = left + steps.right * step, top - steps.bottom * step
        if max(grown[0] - right, bottom - grown[1]) > ALIGNED * min(size):
            reason = (
                f"bounds are {right - left:g} x {top - bottom:g}, which are not whole pixels of all bands (they share edges "
                f"every {step:g}); give {left:.15g},{grown[1]:.15g},{grown[0]:.15g},{top:.15g}"
            )
            raise PlanError([Problem("outside_grid", reason)])
    down, across = round(step / size[1]), round(step / size[0])
    return _grid_at(origin, size, crs), Box(
        steps.top * down, steps.bottom * down, steps.left * across, steps.right * across
    )


def _around(tiles: Sequence[Tile], crs: CRS, size: tuple[float, float]) -> tuple[GeoBox, Box]:
    """A grid on the origin of the first tile in that CRS (else on whole pixels), and its part that covers all tiles."""
    first = next((tile.geobox for tile in tiles if tile.geobox.crs == crs), None)
    if first is not None and size == (abs(first.resolution.x), abs(first.resolution.y)):
        anchor = first
    else:
        anchor = _grid_at(first.pix2wld(0, 0) if first is not None else (0.0, 0.0), size, crs)
    boxes = []
    for tile in tiles:
        try:
            boxes.append(footprint_on(anchor, tile.geobox))
        except ValueError as error:
            raise PlanError([Problem("unknown_crs", str(error), tile.path)]) from error
    box = union(boxes)
    rows, cols = box.shape
    if rows * cols > _MAX_SPREAD * sum(math.prod(box.shape) for box in boxes):
        positions = "; ".join(f"{tile.path} at {_position(tile)}" for tile in tiles)
        reason = (
            f"the tiles lie too far apart: the mosaic would be {cols} x {rows} pixels ({positions}); "
            "download again the one in the wrong place"
        )
        raise PlanError([Problem("unreadable_input", reason)])
    return anchor, box


def _grid_at(origin: tuple[float, float], size: tuple[float, float], crs: CRS) -> GeoBox:
    """A grid with that upper-left corner and pixel size; its shape does not matter."""
    return GeoBox((1, 1), Affine(size[0], 0, origin[0], 0, -size[1], origin[1]), crs)


def _crs(tile: GeoBox) -> CRS:
    assert tile.crs is not None
    return tile.crs


def _position(tile: Tile) -> str:
    centre = tile.geobox.geographic_extent.centroid.coords[0]
    return f"{centre[1]:.2f}, {centre[0]:.2f} (latitude, longitude)"
