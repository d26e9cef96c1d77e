"""Shapes in longitude and latitude, where 180 and -180 degrees are the same line (RFC 7946, 3.1.9 and 5.2).

Internally, a shape is in one piece, with longitudes beyond 180; in GeoJSON it is cut there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

Bbox = tuple[float, float, float, float]

DEGREES = CRS("EPSG:4326")


def longitude(degrees: float) -> float:
    """The same longitude between -180 and 180."""
    return degrees if -180 <= degrees <= 180 else (degrees + 180) % 360 - 180


def turned(shape: BaseGeometry, turns: int) -> BaseGeometry:
    """The same shape, moved by this many turns around the Earth."""
    return shapely.transform(shape, lambda xy: xy + np.array((360.0 * turns, 0.0))) if turns else shape


def in_one_piece(shape: BaseGeometry) -> BaseGeometry:
    """Join a shape that is cut at the antimeridian, if that makes it narrower."""
    parts = shapely.get_parts(shape)
    joined = shapely.union_all([turned(part, int(part.bounds[2] <= 0)) for part in parts])
    return joined if _width(joined) < _width(shape) else shape


def outline(shape: Geometry, steps: int) -> BaseGeometry:
    """A projected shape, in one piece, its edges followed in ``steps`` steps."""
    box = shape.boundingbox
    there = shape.to_crs(DEGREES, resolution=max(box.span_x, box.span_y) / steps).geom
    (middle, _), *_ = shape.centroid.to_crs(DEGREES).coords

    def around_the_middle(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([(xy[:, 0] - middle + 180) % 360 - 180 + middle, xy[:, 1]], axis=-1)

    return shapely.make_valid(shapely.transform(there, around_the_middle))


def cut(shape: BaseGeometry) -> BaseGeometry:
    """A shape in one piece, cut at the antimeridian."""
    earth = shapely.box(-180, -90, 180, 90)
    if earth.covers(shape):
        return shape
    return shapely.union_all([shapely.intersection(turned(shape, turns), earth) for turns in (-1, 0, 1)])


def bbox_of(shape: BaseGeometry) -> Bbox:
    """West, south, east, north of a shape in one piece; west is the larger where it crosses the antimeridian."""
    west, south, east, north = shape.bounds
    return (longitude(west), south, longitude(east), north) if east - west < 360 else (-180.0, south, 180.0, north)


def bbox_of_all(boxes: Sequence[Bbox]) -> Bbox:
    """The narrowest one around all."""
    pieces = [shapely.box(west, south, east + 360 * (east < west), north) for west, south, east, north in boxes]
    turned_east = [turned(piece, int(piece.bounds[0] < 0)) for piece in pieces]
    return bbox_of(min((shapely.union_all(shapes) for shapes in (pieces, turned_east)), key=_width))


def _width(shape: BaseGeometry) -> float:
    west, _, east, _ = shape.bounds
    return float(east - west)
