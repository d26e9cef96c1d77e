"""Areas of interest: from files and text, and on the pixels of a grid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyogrio.raw import write
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.mosaic.area import AreaOnGrid, read_area
from thess_agg_dagster.mosaic.grid import Box

TRIANGLE = "POLYGON ((23 40, 24 40, 23.5 41, 23 40))"


def write_vector(path: Path, shapes: list[str], crs: str | None, kind: str = "Polygon") -> Path:
    geometry = np.array([shapely.to_wkb(shapely.from_wkt(wkt)) for wkt in shapes], object)
    write(path, geometry=geometry, field_data=[], fields=[], crs=crs, geometry_type=kind)
    return path


@pytest.mark.parametrize("name", ["aoi.geojson", "aoi.gpkg", "aoi.wkt", None])
def test_the_same_polygon_from_every_format(tmp_path: Path, name: str | None) -> None:
    if name is None:
        given = TRIANGLE
    elif name.endswith(".wkt"):
        (tmp_path / name).write_text(TRIANGLE + "\n")
        given = str(tmp_path / name)
    else:
        given = str(write_vector(tmp_path / name, [TRIANGLE], "EPSG:4326"))
    area = read_area(given)
    assert area.crs == "EPSG:4326"
    assert shapely.equals(area.geom, shapely.from_wkt(TRIANGLE))


def test_several_polygons_are_united_and_their_crs_is_kept(tmp_path: Path) -> None:
    squares = ["POLYGON((600000 4500000, 600100 4500000, 600100 4500100, 600000 4500100, 600000 4500000))"]
    squares += ["POLYGON((600050 4500000, 600150 4500000, 600150 4500100, 600050 4500100, 600050 4500000))"]
    area = read_area(str(write_vector(tmp_path / "two.gpkg", squares, "EPSG:32634")))
    assert (str(area.crs), area.geom.area) == ("EPSG:32634", 150 * 100)
    assert read_area(f"SRID=32634;{squares[0]}").crs == "EPSG:32634"


@pytest.mark.parametrize(
    "wkt",
    [
        "POLYGON Z((600000 4500000 1, 600100 4500000 1, 600100 4499900 1, 600000 4499900 1, 600000 4500000 1))",
        # A spike, which mending turns into a line.
        "POLYGON((600000 4500000, 600100 4500000, 600400 4500000, 600100 4500000, 600100 4499900, 600000 4499900, "
        "600000 4500000))",
        "GEOMETRYCOLLECTION(POINT(0 0), POLYGON((600000 4500000, 600100 4500000, 600100 4499900, 600000 4499900, 600000 4500000)))",
    ],
)
def test_what_is_left_of_odd_shapes_is_the_polygon(tmp_path: Path, wkt: str) -> None:
    (tmp_path / "aoi.wkt").write_text(f"SRID=32634;{wkt}")
    area = read_area(str(tmp_path / "aoi.wkt"))
    assert shapely.equals(area.geom, shapely.box(600000, 4499900, 600100, 4500000))
    grid = GeoBox((40, 40), Affine(10, 0, 600000, 0, -10, 4500000), "EPSG:32634")
    inside = AreaOnGrid.of(area, grid).inside(Box(0, 40, 0, 40))
    assert inside is not None
    assert inside.sum() == 100
    assert inside[:10, :10].all()


def test_a_ring_that_is_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [[[23, 40], [24, 40], [24, 41]]]}))
    assert read_area(str(path)).geom.area == 0.5


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    for width in (1, 2):
        ring = [[23, 40], [23 + width, 40], [23, 41], [23, 40]]
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
        assert read_area(str(path)).geom.area == width / 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.geojson", None, "cannot be found"),
        ("page.geojson", "<html>", "cannot be read as GeoJSON or GeoPackage"),
        ("line.geojson", '{"type": "LineString", "coordinates": [[1, 2], [3, 4]]}', "holds no polygon"),
        ("flat.wkt", "POLYGON((1 1, 2 2, 3 3, 1 1))", "has no area"),
        ("bad.wkt", "POLYGON((1 1, 2 2", "is not well-known text"),
        ("point.wkt", "POINT(1 1)", "is not a POLYGON or MULTIPOLYGON"),
        ("far.wkt", "SRID=999999;POLYGON((1 1, 2 1, 2 2, 1 1))", "far.wkt"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(AreaError, match=message):
        read_area(str(tmp_path / name))


@pytest.mark.parametrize("suffix", ["wkt", "geojson"])
def test_what_is_no_file_or_no_areas_is_not_read(tmp_path: Path, suffix: str) -> None:
    pipe, vast = tmp_path / f"pipe.{suffix}", tmp_path / f"vast.{suffix}"
    os.mkfifo(pipe)
    with pytest.raises(AreaError, match=f"aoi .*pipe.{suffix}: is a pipe or a device, not a regular file"):
        read_area(str(pipe))
    with vast.open("wb") as file:
        file.truncate(2**29)
    with pytest.raises(AreaError, match=f"vast.{suffix}: has 536870912 bytes, more than the"):
        read_area(str(vast))
    with pytest.raises(AreaError, match="cannot be read"):
        read_area(str(tmp_path))


def test_a_file_without_crs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AreaError, match="has no CRS; assign one"):
        read_area(str(write_vector(tmp_path / "blind.gpkg", [TRIANGLE], None)))


@example([(0.0, 45.0), (16.0, 29.0), (2.25, 0.0), (18.3, 36.0)], 22)  # an edge through many centres
@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 45)), min_size=3, max_size=7), st.integers(0, 30))
def test_pixels_of_a_window_against_one_rasterization(corners: list[tuple[float, float]], at: int) -> None:
    polygon = shapely.make_valid(shapely.Polygon(corners))
    if polygon.area < 1e-6:
        return
    grid = GeoBox((40, 40), Affine(10, 0, 600000, 0, -10, 4500000), "EPSG:32634")
    there = shapely.transform(polygon, lambda xy: np.stack([600000 + 10 * xy[:, 0], 4500000 - 10 * xy[:, 1]], axis=-1))
    there = shapely.make_valid(there)
    if _polygons(there).area < 1e-4:
        return
    area = AreaOnGrid.of(read_area(f"SRID=32634;{shapely.to_wkt(_polygons(there), rounding_precision=-1)}"), grid)
    expected = rasterize([_polygons(there)], (40, 40), transform=grid.affine).astype(bool)
    window = Box(at, min(40, at + 13), 40 - at - 10, min(40, 40 - at + 3))
    inside, touched = area.inside(window), area.touched(window)
    inside = np.ones(window.shape, bool) if inside is None else inside
    # A centre on the very edge may fall either way.
    steps = 10 * (np.arange(40) + 0.5)
    centres = shapely.points(*np.meshgrid(600000 + steps, 4500000 - steps))
    clear = (shapely.distance(centres, _polygons(there).boundary) > 1e-6)[window.slices]
    np.testing.assert_array_equal(inside[clear], expected[window.slices][clear])
    outside = np.ones(window.shape, bool)
    if touched:
        outside[touched.within(window).slices] = False
    assert not (inside & outside).any()


def _polygons(geometry: BaseGeometry) -> BaseGeometry:
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts)


ASKED_AT_ONCE = """
import threading
import numpy as np, shapely
from thess_agg_dagster.mosaic.area import AreaOnGrid
from thess_agg_dagster.mosaic.grid import Box

angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
ring = np.stack([500 + 400 * np.cos(angles), 500 + 400 * np.sin(angles)], axis=-1)
for _ in range(500):
    polygon = shapely.Polygon(ring)
    shapely.prepare(polygon)
    area, gate = AreaOnGrid(polygon), threading.Barrier(4)

    def ask(number):
        gate.wait()
        assert area.inside(Box(490 + number, 510 + number, 490, 510)) is None

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""


def test_threads_ask_of_an_area_at_once() -> None:
    """In a process of its own, which crashed."""
    done = subprocess.run([sys.executable, "-c", ASKED_AT_ONCE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
