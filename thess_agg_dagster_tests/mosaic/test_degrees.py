"""What lies beside, across and on both sides of 180 degrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from odc.geo.geobox import GeoBox
from rasterio.warp import transform

from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.mosaic.area import AreaOnGrid, read_area
from thess_agg_dagster.mosaic.degrees import bbox_of, bbox_of_all, cut, outline
from thess_agg_dagster.mosaic.grid import whole
from thess_agg_dagster.mosaic.target import Target, target_grid
from thess_agg_dagster.mosaic.tiles import PlanError, Tile, inspect_tile
from thess_agg_dagster_tests.rasters import Array, noise, write_tile

SOUTH, NORTH = -17.004, -16.995


def ring(west: float, east: float) -> str:
    return f"(({west} {NORTH}, {east} {NORTH}, {east} {SOUTH}, {west} {SOUTH}, {west} {NORTH}))"


# Each with the longitudes it holds, as an angle from the antimeridian.
AREAS = {
    "west of it": (f"POLYGON{ring(179.995, 179.999)}", -0.005, -0.001),
    "east of it": (f"POLYGON{ring(-179.999, -179.995)}", 0.001, 0.005),
    "cut at it": (f"MULTIPOLYGON({ring(179.995, 180)}, {ring(-180, -179.995)})", -0.005, 0.005),
    "beyond it": (f"POLYGON{ring(179.995, 180.005)}", -0.005, 0.005),
    "before it": (f"POLYGON{ring(-180.005, -179.995)}", -0.005, 0.005),
}


@pytest.fixture(params=["EPSG:32760", "EPSG:32701"])
def tile(tmp_path: Path, request: pytest.FixtureRequest) -> Tile:
    """Two kilometres on both sides of it, in either zone."""
    (x,), (y,) = transform("EPSG:4326", request.param, [180.0], [-17.0])
    corner = (round(x) - 1000, round(y) + 1000)
    return inspect_tile(write_tile(tmp_path / "a.tif", noise(1, (200, 200)), crs=request.param, corner=corner))


def longitudes_and_latitudes(grid: GeoBox) -> tuple[Array, Array]:
    """Of every pixel's centre, by PROJ; as angles from the antimeridian."""
    rows, cols = np.indices(tuple(grid.shape)) + 0.5
    x, y = grid.affine * (cols.ravel(), rows.ravel())
    lon, lat = map(np.array, transform(str(grid.crs), "EPSG:4326", x, y))
    return (lon % 360 - 180).reshape(rows.shape), lat.reshape(rows.shape)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", AREAS)
def test_an_area_is_where_it_is_however_it_is_written(tile: Tile, name: str, fixed: bool) -> None:
    """Oracle: each pixel centre's longitude and latitude."""
    wkt, west, east = AREAS[name]
    area = read_area(wkt)
    grid = target_grid([tile], Target(aoi=area, grid="fixed" if fixed else "tiles"), 60 if fixed else None)
    lon, lat = longitudes_and_latitudes(grid)
    expected = (west < lon) & (lon < east) & (lat > SOUTH) & (lat < NORTH)
    inside = AreaOnGrid.of(area, grid).inside(whole(grid))
    assert inside is not None
    near_edge = (
        np.minimum.reduce([np.abs(lon - west), np.abs(lon - east), np.abs(lat - SOUTH), np.abs(lat - NORTH)]) < 1e-6
    )
    np.testing.assert_array_equal(inside[~near_edge], expected[~near_edge])
    assert inside.mean() > 0.7  # the grid is no larger than the area's bounds
    assert inside.sum() * 100 == pytest.approx(
        (east - west) * (NORTH - SOUTH) * 111e3**2 * np.cos(np.radians(17)), rel=0.02
    )


def test_the_outline_is_cut_and_its_bounds_say_where_they_begin(tile: Tile) -> None:
    ground = outline(tile.geobox.extent, 16)
    parts = shapely.get_parts(cut(ground))
    assert [part.is_valid for part in parts] == [True, True]
    assert sorted(part.bounds[2] for part in parts)[1] == 180
    assert sorted(part.bounds[0] for part in parts)[0] == -180
    west, south, east, north = bbox_of(ground)
    assert 179.98 < west < 180
    assert -180 < east < -179.98
    assert south < -17 < north
    assert cut(ground).area == pytest.approx(ground.area)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(20.0, 1.0, 21.0, 2.0), (22.0, 0.0, 23.0, 1.0)], (20, 0, 23, 2)),
        ([(-10.0, 0.0, -5.0, 1.0), (5.0, 0.0, 6.0, 1.0)], (-10, 0, 6, 1)),
        ([(179.0, 0.0, -179.0, 1.0)], (179, 0, -179, 1)),
        ([(178.0, 0.0, 179.5, 1.0), (-179.0, 0.0, -178.0, 1.0)], (178, 0, -178, 1)),
        ([(179.0, 0.0, -179.0, 1.0), (-178.5, 0.0, -178.0, 1.0), (170.0, 0.0, 171.0, 1.0)], (170, 0, -178, 1)),
        ([(-180.0, 0.0, 180.0, 1.0)], (-180, 0, 180, 1)),
    ],
)
def test_bounds_of_many(boxes: list[tuple[float, float, float, float]], expected: tuple[float, ...]) -> None:
    assert bbox_of_all(boxes) == expected


@pytest.mark.parametrize(
    ("wkt", "message"),
    [
        ("POLYGON((inf 0, 1 1, 2 0, inf 0))", "a corner of the polygon is infinite or not a number"),
        ("POLYGON((0 nan, 1 1, 2 0, 0 nan))", "well-known text|no number"),
        ("POLYGON((20 85, 25 85, 25 95, 20 85))", "latitude 85 to 95, which is not on the Earth"),
        ("POLYGON((600000 4500000, 600100 4500000, 600100 4500100, 600000 4500000))", "are x and y swapped, or in metres"),
        ("SRID=4978;POLYGON((0 0, 1 1, 2 0, 0 0))", "neither geographic nor projected"),
        ("SRID=99999999999;POLYGON((0 0, 1 1, 2 0, 0 0))", "aoi: "),
    ],
)  # fmt: skip
def test_what_is_nowhere_is_refused_by_name(wkt: str, message: str) -> None:
    with pytest.raises(AreaError, match=message):
        read_area(wkt)


def test_a_folder_is_no_area(tmp_path: Path) -> None:
    for name in ("a.wkt", "a.geojson"):
        (tmp_path / name).mkdir()
        with pytest.raises(AreaError, match=f"{name}: cannot be read"):
            read_area(str(tmp_path / name))


@pytest.mark.parametrize("latitudes", [(85, 89), (-89, -81)])
def test_beyond_utm_a_fixed_grid_needs_a_crs(tile: Tile, latitudes: tuple[int, int]) -> None:
    low, high = latitudes
    area = read_area(f"POLYGON((20 {low}, 25 {low}, 25 {high}, 20 {high}, 20 {low}))")
    with pytest.raises(PlanError, match="there is no UTM zone; give target_crs, e.g. EPSG:3413"):
        target_grid([tile], Target(aoi=area, grid="fixed"), 60)
    grid = target_grid(
        [tile], Target("EPSG:3413" if low > 0 else "EPSG:3031", aoi=area, grid="fixed", resolution=1000), 1000
    )
    assert min(grid.shape) > 100
