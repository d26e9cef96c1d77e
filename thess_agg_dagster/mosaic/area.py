"""Areas of interest: a polygon, and which pixels of a grid it touches."""

from __future__ import annotations

import math
import re
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj.exceptions import CRSError, ProjError
from rasterio.features import geometry_mask
from shapely.geometry.base import BaseGeometry

from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.mosaic.degrees import DEGREES, in_one_piece, longitude, outline, turned
from thess_agg_dagster.mosaic.grid import Box
from thess_agg_dagster.storage.paths import NotAFileError, open_file

# Well-known text, with the SRID that PostGIS puts in front of it.
_WKT = re.compile(r"\s*(?:SRID=(\d+);)?\s*((?:(?:MULTI)?POLYGON|GEOMETRYCOLLECTION)\b.*)", re.IGNORECASE | re.DOTALL)
# An edge that is straight in one CRS is curved in another: it is followed in steps of this part of the polygon's extent.
_STEPS = 200
# No file with an area is larger.
_MOST_BYTES = 2**28


def is_wkt(given: str) -> bool:
    """Whether this is a polygon in well-known text, not a file's name."""
    return _WKT.match(given) is not None


def read_area(given: str) -> Geometry:
    """A polygon from a GeoJSON, GeoPackage or WKT file, or from WKT itself.

    WKT is in longitude and latitude (EPSG:4326) unless it starts with ``SRID=32634;``. Several polygons are merged.
    Raises :class:`AreaError` if there is no such file, no polygon in it, or no CRS.
    """
    if is_wkt(given):
        return _from_wkt(given, "aoi")
    path = Path(given)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise AreaError(
            f"aoi {given[:200]!r}: cannot be found ({error.strerror}); give a GeoJSON or GeoPackage file, or WKT"
        ) from error
    return _read_file(path, changed)


@lru_cache(maxsize=8)
def _read_file(path: Path, changed: int) -> Geometry:
    try:
        with open_file(path, _MOST_BYTES) as file:  # which tells a pipe from a file, also for others
            text = file.read() if path.suffix.lower() in (".wkt", ".txt") else None
    except NotAFileError as error:
        raise AreaError(f"aoi {error}") from error
    except OSError as error:
        raise AreaError(f"aoi {path}: cannot be read ({error.strerror})") from error
    if text is not None:
        return _from_wkt(text.decode("utf-8-sig", errors="replace"), str(path))
    import pyogrio  # here, because it takes long to import, and few have an area in a file

    try:
        meta, _, shapes, _ = pyogrio.raw.read(path, columns=[], force_2d=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise AreaError(f"aoi {path}: cannot be read as GeoJSON or GeoPackage ({error})") from error
    try:
        polygons = [] if shapes is None else list(shapely.from_wkb(shapes, on_invalid="fix"))
    except shapely.errors.GEOSException as error:
        raise AreaError(f"aoi {path}: holds a broken polygon ({error})") from error
    return _united(polygons, meta["crs"], str(path))


def _from_wkt(text: str, where: str) -> Geometry:
    found = _WKT.match(text)
    if not found:
        raise AreaError(f"{where}: {text[:80]!r} is not a POLYGON or MULTIPOLYGON in well-known text")
    try:
        polygon = shapely.from_wkt(found[2])
    except shapely.errors.GEOSException as error:
        raise AreaError(f"{where}: {text[:80]!r} is not well-known text ({error})") from error
    return _united([polygon], f"EPSG:{found[1] or 4326}", where)


def _united(shapes: list[BaseGeometry], crs: str | None, where: str) -> Geometry:
    given = [shape for shape in shapes if shape is not None]
    polygons = [part for shape in given for part in shapely.get_parts(shape) if "Polygon" in part.geom_type]
    if not polygons:
        raise AreaError(f"{where}: holds no polygon")
    if not crs:
        raise AreaError(f"{where}: has no CRS; assign one, e.g. with `ogr2ogr -a_srs EPSG:4326`")
    if not np.isfinite(shapely.get_coordinates(polygons)).all():
        raise AreaError(f"{where}: a corner of the polygon is infinite or not a number")
    try:
        united = polygonal(shapely.union_all([polygonal(shapely.force_2d(polygon)) for polygon in polygons]))
        known = CRS(crs)
    except shapely.errors.GEOSException as error:
        raise AreaError(f"{where}: holds a broken polygon ({error})") from error
    except CRSError as error:
        raise AreaError(f"{where}: {error}") from error
    if not united.area:
        raise AreaError(f"{where}: the polygon has no area")
    if not (known.geographic or known.projected):
        raise AreaError(f"{where}: {crs} is neither geographic nor projected; give longitude and latitude")
    if known.geographic:
        west, south, east, north = united.bounds
        if west < -360 or east > 360 or south < -90 or north > 90:
            reach = f"longitude {west:g} to {east:g}, latitude {south:g} to {north:g}"
            raise AreaError(f"{where}: reaches {reach}, which is not on the Earth; are x and y swapped, or in metres?")
        united = in_one_piece(united)
    return Geometry(united, known)


def polygonal(shape: BaseGeometry) -> BaseGeometry:
    """The valid polygons of a shape, without the lines and points that repairing it may leave behind."""
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shape)))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon"])


def project_area(area: Geometry, crs: CRS, near: Geometry | None = None) -> Geometry:
    """The polygon in another CRS or, if ``near`` is given (in that CRS), the part of it that lies there, which may be
    empty.

    Raises :class:`AreaError` if it cannot be projected.
    """
    try:
        return _projected(area, crs, near)
    except (shapely.errors.GEOSException, ProjError) as error:
        raise AreaError(f"the aoi cannot be projected to {str(crs)[:60]} ({error})") from error


def _projected(area: Geometry, crs: CRS, near: Geometry | None) -> Geometry:
    assert area.crs is not None
    if near is not None and (area.crs != crs or area.crs.geographic):
        # A country or a continent has no place in a UTM zone as a whole.
        around = near.buffer(0.1 * max(near.boundingbox.span_x, near.boundingbox.span_y))
        if area.crs.geographic:
            # What lies around may be counted from the other side of the antimeridian.
            there = polygonal(around.geom if area.crs == crs else outline(around, _STEPS))
            shapes = [turned(area.geom, turns) for turns in (-1, 0, 1)]
        else:
            box = around.boundingbox
            there = polygonal(around.to_crs(area.crs, resolution=max(box.span_x, box.span_y) / _STEPS).geom)
            shapes = [area.geom]
        parts = [shapely.intersection(shape, there) for shape in shapes]
        area = Geometry(polygonal(shapely.union_all(parts)), area.crs)
        if area.is_empty:
            return Geometry(area.geom, crs)
    left, bottom, right, top = area.boundingbox.bbox
    projected = area.to_crs(crs, resolution=max(right - left, top - bottom) / _STEPS)
    if projected.is_empty or not all(map(math.isfinite, projected.boundingbox.bbox)):
        raise AreaError(f"the aoi cannot be projected to {str(crs)[:60]}")
    if near is None:
        return projected
    return Geometry(polygonal(shapely.intersection(polygonal(projected.geom), near.geom)), crs)


def utm_zone(area: Geometry) -> CRS:
    """The UTM zone of an area's centre. Raises :class:`AreaError` if there is none."""
    lon, lat = area.centroid.to_crs(DEGREES).coords[0]
    if not -80 <= lat <= 84:
        raise AreaError(
            f"the centre of the aoi lies at latitude {lat:g}, where there is no UTM zone; give target_crs, e.g. EPSG:3413 "
            "in the north, EPSG:3031 in the south"
        )
    return CRS.utm(longitude(lon), lat)


@dataclass(frozen=True)
class AreaOnGrid:
    """An area in the pixel coordinates of a grid, which tells the pixels of a window that it contains."""

    polygon: shapely.Geometry
    # A prepared polygon makes its indices when it is first asked; two threads at once would crash the process.
    _asking: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of(cls, area: Geometry, grid: GeoBox) -> AreaOnGrid:
        assert grid.crs is not None
        # With a rim, so that the grid's own edge cuts off no pixel.
        projected = project_area(area, grid.crs, grid.pad(1).extent).geom
        # A polygon may come out of a projection with its edges crossed by a hair.
        polygon = polygonal(shapely.transform(projected, lambda xy: np.stack(grid.wld2pix(*xy.T), axis=-1)))
        shapely.prepare(polygon)
        return cls(polygon)

    def touched(self, window: Box) -> Box:
        """The smallest part of a window that contains all of the area's pixels; falsy if there are none."""
        there = shapely.intersection(self.polygon, _rectangle(window))
        if there.is_empty:
            return Box(window.top, window.top, window.left, window.left)
        left, top, right, bottom = there.bounds
        return Box(math.floor(top), math.ceil(bottom), math.floor(left), math.ceil(right)).overlap(window)

    def inside(self, window: Box) -> NDArray[np.bool_] | None:
        """Which pixels of a window have their centre in the area; ``None`` means all."""
        with self._asking:
            if shapely.covers(self.polygon, _rectangle(window)):
                return None
        translation = Affine.translation(window.left, window.top)
        mask: NDArray[np.bool_] = geometry_mask([self.polygon], window.shape, translation, invert=True)
        return mask


def _rectangle(box: Box) -> shapely.Polygon:
    return shapely.box(box.left, box.top, box.right, box.bottom)
