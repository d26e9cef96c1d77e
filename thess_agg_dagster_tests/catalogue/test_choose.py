"""What an overpass shows of an area, against areas that are known; and which overpasses are taken."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pyproj
import pytest
import shapely
import shapely.affinity
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from thess_agg_dagster.catalogue.area import SearchArea
from thess_agg_dagster.catalogue.choose import Seen, Thresholds, anchor_of, best_per_anchor, look
from thess_agg_dagster.catalogue.overpass import Overpass, group_overpasses
from thess_agg_dagster.catalogue.scene import scene_of
from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.sample import TILE_SIZE
from thess_agg_dagster_tests.catalogue.items import FIRST, TILES, item, square

GEODESIC = pyproj.Geod(ellps="WGS84")


def area_of(shape: BaseGeometry, crs: str = "EPSG:4326") -> SearchArea:
    return SearchArea.of(Geometry(shape, CRS(crs)))


def overpass(*items: dict[str, object]) -> Overpass:
    (found,) = group_overpasses(map(scene_of, items))
    return found


def tile_area(tile: str, left: float, right: float, top: float, bottom: float) -> SearchArea:
    """A part of a tile, in shares of its sides from its upper left corner."""
    code, x, y = TILES[tile]
    return area_of(
        shapely.box(x + left * TILE_SIZE, y - bottom * TILE_SIZE, x + right * TILE_SIZE, y - top * TILE_SIZE),
        f"EPSG:{code}",
    )


def test_coverage_and_clouds_are_weighted_by_area() -> None:
    # Two tiles show a quarter and three quarters of a strip. (34TFL lies over 34TFK; they share 9.78 km.)
    area = tile_area("34TFL", 0.2, 0.8, 0.1, 0.5)
    left, right = square("34TFL", 0, 0.35), square("34TFL", 0.35, 1)
    seen = look(
        overpass(
            item("34TFL", footprint=left, cloud=80.0, strip=FIRST),
            item("34TFL", footprint=right, cloud=0.0, strip=FIRST + timedelta(seconds=9), made="20240815T160000"),
        ),
        area,
    )
    assert seen.coverage_frac == pytest.approx(1)
    assert seen.cloud == pytest.approx(20, abs=0.01)
    geodesic = abs(GEODESIC.geometry_area_perimeter(shapely.intersection(square("34TFL"), _degrees(area)))[0])
    assert seen.coverage_area == pytest.approx(geodesic, rel=1e-4)


def _degrees(area: SearchArea) -> BaseGeometry:
    return area.pieces[0]


def test_a_part_of_the_area_is_covered() -> None:
    seen = look(overpass(item("34TFL", footprint=square("34TFL", 0, 0.5))), tile_area("34TFL", 0.25, 0.75, 0.25, 0.75))
    assert seen.coverage_frac == pytest.approx(0.5, abs=1e-4)
    assert seen.clear == pytest.approx(0.45, abs=1e-4)


def test_the_edge_of_a_footprint_counts_not_its_box() -> None:
    triangle = shapely.Polygon([(23, 40), (24, 40), (24, 41)])
    seen = look(overpass(item("34TFL", footprint=triangle)), area_of(shapely.box(23, 40, 24, 41)))
    areas = [
        abs(GEODESIC.geometry_area_perimeter(shapely.segmentize(shape, 0.01))[0])
        for shape in (triangle, shapely.box(23, 40, 24, 41))
    ]
    assert seen.coverage_frac == pytest.approx(areas[0] / areas[1], rel=1e-4)


def test_tiles_that_add_nothing_are_not_taken() -> None:
    area = tile_area("34TFL", 0.3, 0.7, 0.3, 1.04)  # reaches a little into 34TFK
    seen = look(overpass(*(item(tile) for tile in TILES)), area)
    assert [scene.tile for scene in seen.scenes] == ["34TFL", "34TFK"]
    assert {scene.tile for scene in seen.outside} == {"34TGL", "35TKE", "35TKF"}
    within = look(overpass(*(item(tile) for tile in TILES)), tile_area("34TFL", 0.3, 0.7, 0.3, 0.99))
    assert [scene.tile for scene in within.scenes] == ["34TFL"]
    assert [scene.tile for scene in within.superfluous] == ["34TFK"]


def test_unknown_clouds_count_for_nothing_where_others_are_known() -> None:
    area = tile_area("34TFL", 0.3, 0.7, 0.3, 1.04)
    assert look(overpass(item("34TFL", cloud=None), item("34TFK", cloud=30.0)), area).cloud == pytest.approx(30)
    unknown = look(overpass(item("34TFL", cloud=None)), area)
    assert unknown.cloud is None
    assert unknown.clear == 0
    assert Thresholds(max_cloud=1).refuse(unknown) is None


# --- the antimeridian -----------------------------------------------------------------------------------------

WEST, EAST = shapely.box(179.4, -17.5, 180, -16.5), shapely.box(-180, -17.5, -179.2, -16.5)
BEYOND = shapely.box(179.4, -17.5, 180.8, -16.5)
JUMPING = shapely.Polygon([(179.4, -17.5), (-179.2, -17.5), (-179.2, -16.5), (179.4, -16.5)])
SPLIT = shapely.MultiPolygon([WEST, EAST])


@pytest.mark.parametrize("written", [BEYOND, JUMPING, SPLIT, shapely.affinity.translate(BEYOND, -360)])
@pytest.mark.parametrize("footprint", [BEYOND, JUMPING, SPLIT])
def test_an_area_across_the_antimeridian_however_it_is_written(written: BaseGeometry, footprint: BaseGeometry) -> None:
    area = area_of(written)
    assert len(area.pieces) == 2
    assert shapely.union_all(area.pieces).equals_exact(shapely.normalize(shapely.union_all([WEST, EAST])), 1e-9) or (
        shapely.union_all(area.pieces).symmetric_difference(SPLIT).area < 1e-9
    )
    seen = look(overpass(item("34TFL", footprint=footprint)), area)
    assert seen.coverage_frac == pytest.approx(1)
    assert seen.coverage_area == pytest.approx(abs(GEODESIC.geometry_area_perimeter(BEYOND)[0]), rel=1e-3)
    half = look(overpass(item("34TFL", footprint=WEST)), area)
    assert half.coverage_frac == pytest.approx(0.6 / 1.4, abs=1e-4)


def test_an_area_in_a_utm_zone_at_the_antimeridian() -> None:
    area = area_of(shapely.box(700000, 8100000, 900000, 8200000), "EPSG:32760")
    assert len(area.pieces) == 2
    assert area.shape.area == pytest.approx(200000 * 100000, rel=3e-3)


@pytest.mark.parametrize("half", [50, 100, 179])
def test_half_of_the_earth_is_no_area(half: int) -> None:
    with pytest.raises(AreaError, match="wider than 90 degrees"):
        area_of(shapely.segmentize(shapely.box(-half, -10, half, 10), 30))


def test_a_long_border_is_asked_for_by_its_hull() -> None:
    circle = shapely.Point(23, 40).buffer(1, quad_segs=1000)
    (piece,) = area_of(circle.difference(shapely.Point(23, 40).buffer(0.5, quad_segs=1000))).pieces
    assert piece.covers(circle.buffer(-1e-6))


# --- choosing -------------------------------------------------------------------------------------------------


def seen_at(day: str, coverage: float = 1.0, cloud: float | None = 0.0) -> Seen:
    at = datetime.fromisoformat(day).replace(hour=9, tzinfo=UTC)
    found = overpass(item("34TFL", at))
    return Seen(found, found.scenes, (), (), coverage, coverage, cloud)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (seen_at("2023-02-02"), None),
        (seen_at("2023-02-02", cloud=60), None),
        (seen_at("2023-02-02", cloud=60.1), "60.1 % clouds; at most 60 % is allowed"),
        (seen_at("2023-02-02", 0.5), None),
        (seen_at("2023-02-02", 0.49), "covers 49.0% of the area; at least 50.0% is required"),
    ],
)
def test_thresholds(seen: Seen, why: str | None) -> None:
    assert Thresholds().refuse(seen) == why


def test_the_best_of_each_anchor_date() -> None:
    first = date(2023, 1, 1)
    candidates = [
        seen_at("2023-01-01", 1.0, 40),
        seen_at("2023-01-04", 0.9, 10),  # the clearest of the first five days
        seen_at("2023-01-05", 1.0, None),
        seen_at("2023-01-12", 1.0, 5),
        seen_at("2023-01-10", 1.0, 5),  # as clear, and nearer to the eleventh
        seen_at("2023-01-22", 1.0, 0),
    ]
    best, others = best_per_anchor(candidates, first, 10, {date(2023, 1, 21)})
    assert {anchor: seen.overpass.acquired.date() for anchor, seen in best.items()} == {
        first: date(2023, 1, 4),
        date(2023, 1, 11): date(2023, 1, 10),
    }
    reasons = {seen.overpass.timestamp[:10]: why for seen, why in others}
    assert reasons["2023-01-01"] == "2023-01-04 09:00:00.024000+00:00 is better for the anchor date 2023-01-01"
    assert reasons["2023-01-22"] == "the list already has one for the anchor date 2023-01-21"
    assert len(reasons) == 4


@given(st.integers(0, 5000), st.integers(1, 400))
def test_the_anchor_is_the_nearest_one(days: int, every: int) -> None:
    first = date(2020, 2, 28)
    day = first + timedelta(days=days)
    anchors = [first + timedelta(days=every * number) for number in range(days // every + 2)]
    assert anchor_of(day, first, every) == min(anchors, key=lambda each: (abs(each - day), each))
