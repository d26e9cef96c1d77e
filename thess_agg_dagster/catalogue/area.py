"""The search area: in longitude and latitude for APIs, in an equal-area projection for measuring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyproj
import shapely
import shapely.affinity
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.mosaic.area import polygonal, project_area

# Edges are followed in steps of so many degrees: off by 5 m in their middles, at most.
_STEP = 0.1
# Servers refuse longer polygons, or take minutes over them: they are asked about the convex hull.
_MOST_POINTS = 500
_WIDEST = 90


@dataclass(frozen=True)
class SearchArea:
    """An area of interest, measured around its own centre (Lambert azimuthal equal-area), far from any antimeridian."""

    shape: BaseGeometry
    centre: tuple[float, float]
    #: Polygons in longitude and latitude, none across the antimeridian.
    pieces: tuple[BaseGeometry, ...]

    @classmethod
    def of(cls, area: Geometry) -> SearchArea:
        """Edges take the shorter way around the Earth. Raises :class:`AreaError` for an area wider than a quarter of
        it."""
        degrees = project_area(area, CRS("EPSG:4326")).geom
        centre = _centre(shapely.get_coordinates(degrees))
        if np.ptp(_near(shapely.get_coordinates(degrees), centre[0])[:, 0]) > _WIDEST:
            raise AreaError(f"the aoi is wider than {_WIDEST} degrees of longitude; give smaller ones, one at a time")
        unrolled = _unrolled(degrees, centre[0])
        return cls(_projected(unrolled, centre), centre, _pieces(unrolled))

    def project(self, footprint: BaseGeometry) -> BaseGeometry:
        """Project a polygon in longitude and latitude, however it crosses the antimeridian, to the area's plane."""
        return _projected(_unrolled(footprint, self.centre[0]), self.centre)


def _centre(points: NDArray[np.float64]) -> tuple[float, float]:
    """The mean direction of points on the sphere, which knows no antimeridian."""
    longitude, latitude = np.radians(points).T
    x, y, z = (
        np.mean(np.cos(latitude) * np.cos(longitude)),
        np.mean(np.cos(latitude) * np.sin(longitude)),
        np.mean(np.sin(latitude)),
    )
    return math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))


def _near(points: NDArray[np.float64], longitude: float) -> NDArray[np.float64]:
    """Points with their longitudes within 180 degrees of one."""
    return np.column_stack([(points[:, 0] - longitude + 180) % 360 - 180 + longitude, points[:, 1]])


def _unrolled(shape: BaseGeometry, longitude: float) -> BaseGeometry:
    """The shape around a longitude, in one piece where it was cut or jumped at the antimeridian, valid."""
    return polygonal(shapely.transform(shape, lambda points: _near(points, longitude)))


@lru_cache(maxsize=2)
def _plane(centre: tuple[float, float]) -> pyproj.Transformer:
    plane = f"+proj=laea +lon_0={centre[0]!r} +lat_0={centre[1]!r} +ellps=WGS84"
    return pyproj.Transformer.from_crs("EPSG:4326", plane, always_xy=True)


def _projected(degrees: BaseGeometry, centre: tuple[float, float]) -> BaseGeometry:
    transformer = _plane(centre)
    followed = shapely.segmentize(degrees, _STEP)
    there = shapely.transform(followed, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1])))
    return polygonal(there) if np.isfinite(shapely.get_coordinates(there)).all() else shapely.Polygon()


def _pieces(unrolled: BaseGeometry) -> tuple[BaseGeometry, ...]:
    found = []
    for turn in (-360.0, 0.0, 360.0):
        piece = polygonal(shapely.intersection(unrolled, shapely.box(turn - 180, -90, turn + 180, 90)))
        if not piece.is_empty:
            asked = piece if shapely.get_num_coordinates(piece) <= _MOST_POINTS else shapely.convex_hull(piece)
            found.append(shapely.affinity.translate(asked, -turn))
    return tuple(found)
