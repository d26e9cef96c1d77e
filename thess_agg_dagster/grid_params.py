"""Parameters of grids: which pixels a mosaic has, and which area it shows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from pydantic import field_validator, model_validator

from thess_agg_dagster.mosaic.choices import FIRST, MAJORITY, RESAMPLINGS, Grid
from thess_agg_dagster.parameter import Parameters, parameter

# What knows CRSs and areas is imported where one is given: every process that loads the definitions imports this module.

# The launchpad knows the values of this type, see params.py.
if TYPE_CHECKING:
    Resampling: TypeAlias = str
else:
    Resampling = Literal[RESAMPLINGS]


class GridParams(Parameters):
    """The grid of mosaics, and the area that they are clipped to."""

    target_crs: str = parameter(FIRST, "Grid", pixels=True, metavar="first|majority|CRS")
    """CRS of the mosaics: that of the first tile, that of most tiles, or any other, e.g. EPSG:32634. With a fixed grid around an
    aoi, first and majority both mean the UTM zone of its centre."""

    grid: Grid = parameter("tiles", "Grid", pixels=True)
    """Extent of the mosaics: what the tiles of the timestamp cover, or fixed by bounds or the aoi (then all timestamps have the
    same CRS, transform and shape)."""

    bounds: list[float] | None = parameter(
        None, "Grid", pixels=True, metavar="LEFT,BOTTOM,RIGHT,TOP", unset="around the aoi"
    )
    """Bounds of a fixed grid, in units of target_crs; they must be whole pixels of all bands."""

    resolution: float | None = parameter(None, "Grid", pixels=True, unset="that of the tiles, per band")
    """Pixel size of all bands, in units of the CRS."""

    match_band: str | None = parameter(None, "Grid", pixels=True, metavar="BAND", unset="each band on its own grid")
    """Write all bands on the grid of this band, e.g. B04."""

    reduction: Resampling = parameter("average", "Grid", pixels=True)
    """How to resample tiles to the coarser pixels of resolution or match_band; SCL gets the most frequent class, or with nearest
    the nearest one."""

    overviews: bool = parameter(False, "Grid", pixels=True)
    """Start a reduction from a tile's overviews or JPEG 2000 resolution levels: much faster but not exact, and empty pixels
    bleed into the edge of the swath. Never used for SCL or masked bands."""

    aoi: str | None = parameter(None, "Area", pixels=True, metavar="FILE|WKT", unset="none")
    """Clip to the bounds of an area of interest: a GeoJSON or GeoPackage file, or a polygon as WKT (in EPSG:4326, or
    SRID=32634;POLYGON(...))."""

    aoi_mask: bool = parameter(False, "Area", pixels=True)
    """Empty the pixels within the bounds of the aoi but outside the polygon itself."""

    @field_validator("target_crs")
    @classmethod
    def _target_crs(cls, value: str) -> str:
        if value not in (FIRST, MAJORITY):
            from odc.geo.crs import CRS
            from pyproj.exceptions import CRSError

            try:
                crs = CRS(value)
            except CRSError as error:
                raise ValueError(
                    f"target_crs={value!r} is not one of {FIRST}, {MAJORITY}, and not a CRS ({error})"
                ) from error
            if not (crs.geographic or crs.projected):
                raise ValueError(f"target_crs={value!r} is neither geographic nor projected; a mosaic is flat")
        return value

    @field_validator("bounds")
    @classmethod
    def _bounds(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not (
            len(value) == 4 and all(map(math.isfinite, value)) and value[0] < value[2] and value[1] < value[3]
        ):
            raise ValueError(
                f"bounds={value} are not left, bottom, right, top; left must be below right and bottom below top"
            )
        return value

    @field_validator("aoi")
    @classmethod
    def _aoi(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from thess_agg_dagster.mosaic.area import is_wkt

        # A run may start in another folder.
        return value if is_wkt(value) else str(Path(value).expanduser().absolute())

    @field_validator("resolution")
    @classmethod
    def _resolution(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"resolution={value} is not a pixel size; give a number above 0")
        return value

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        if self.grid == "fixed" and self.bounds is None and self.aoi is None:
            raise ValueError("grid=fixed needs bounds (left, bottom, right, top) or an aoi")
        if self.bounds is not None and self.grid != "fixed":
            raise ValueError("bounds are for grid=fixed; to clip to an area, give an aoi")
        if self.bounds is not None and self.target_crs in (FIRST, MAJORITY):
            raise ValueError("bounds need target_crs, the CRS that they are in, e.g. EPSG:32634")
        if self.aoi_mask and self.aoi is None:
            raise ValueError("aoi_mask needs an aoi")
        if self.bounds is not None and self.aoi is not None and not self.aoi_mask:
            raise ValueError(
                "bounds and aoi both define what to clip to; leave one out, or set aoi_mask to empty what is outside the aoi"
            )
        if self.overviews and self.resolution is None and self.match_band is None:
            raise ValueError("overviews are for a reduction; give a resolution, or match_band")
        return self
