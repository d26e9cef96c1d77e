"""Which scenes belong together, which product of each is taken, and in which order."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from thess_agg_dagster.catalogue.overpass import group_overpasses
from thess_agg_dagster.catalogue.scene import UnusableItemError, scene_of
from thess_agg_dagster_tests.catalogue.items import FIRST, item, product_name, square

SHAPES = ("copernicus", "earth-search", "planetary-computer")


def grouped(*items: dict[str, Any]) -> list[list[str]]:
    return [[scene.scene_id for scene in each.scenes] for each in group_overpasses(map(scene_of, items))]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_scene_is_told_by_every_catalogue_in_the_same_way(shape: str) -> None:
    scene = scene_of(item("35TKF", shape=shape, cloud=12.5))
    assert scene.scene_id == "S2B_MSIL2A_20230202T092109_N0510_R093_T35TKF_20240815T155145"
    assert scene.overpass == ("S2B", datetime(2023, 2, 2, 9, 21, 9, tzinfo=UTC), 93)
    assert (scene.tile, scene.baseline, scene.strip, scene.cloud) == ("35TKF", "05.10", "20230202T092112", 12.5)
    assert scene.footprint.equals(square("35TKF"))
    assert scene.item == item("35TKF", shape=shape, cloud=12.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_times_that_differ_within_an_overpass_are_one_timestamp(shape: str) -> None:
    (overpass,) = group_overpasses(scene_of(item(tile, shape=shape)) for tile in ("34TFK", "34TFL", "35TKF"))
    seconds = "" if shape == "earth-search" else ".024000"
    assert overpass.timestamp == f"2023-02-02 09:21:09{seconds}+00:00"
    # From the last name to the first, as the lists of the pipeline before us have it.
    assert [scene.tile for scene in overpass.scenes] == ["35TKF", "34TFL", "34TFK"]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_overpass_across_midnight_is_one_timestamp(shape: str) -> None:
    late = datetime(2023, 2, 2, 23, 50, 9, tzinfo=UTC)
    items = [item(tile, late, shape=shape) for tile in ("34TFK", "34TFL")]
    days = {each["properties"]["datetime"][:10] for each in items}
    assert days == ({"2023-02-03"} if shape == "earth-search" else {"2023-02-02"})
    (overpass,) = group_overpasses(map(scene_of, items))
    assert overpass.timestamp.startswith("2023-02-02 23:50:09")


@pytest.mark.parametrize(
    "other",
    [
        {"platform": "S2A"},
        {"orbit": 136},
        {"datatake": FIRST + timedelta(minutes=5)},
        {"datatake": FIRST + timedelta(days=5)},
    ],
)
def test_another_platform_orbit_or_datatake_is_another_timestamp(other: dict[str, Any]) -> None:
    assert sorted(map(len, grouped(item("34TFK"), item("34TFL", **other)))) == [1, 1]


HALF = {"strip": FIRST, "footprint": square("34TFL", 0, 0.55)}
OTHER_HALF = {"strip": FIRST + timedelta(seconds=40), "footprint": square("34TFL", 0.45, 1)}
OLD, NEW = {"baseline": "04.00", "made": "20230202T120000"}, {"baseline": "05.10", "made": "20240815T155145"}


@pytest.mark.parametrize(
    ("products", "kept"),
    [
        # The newest baseline wins, also where an older one was made later.
        ([OLD, NEW], [1]),
        ([OLD | {"made": "20250101T000000"}, NEW], [1]),
        ([OLD, {"baseline": "05.00", "made": "20231231T000000"}, NEW], [2]),
        # Of one baseline, the one that was made last.
        ([NEW, NEW | {"made": "20240901T000000"}], [1]),
        # By hand (99.99) is no baseline.
        ([OLD, {"baseline": "99.99", "made": "20250101T000000"}], [0]),
        # Halves of a tile are both kept, whatever their footprints say.
        ([NEW | HALF, NEW | OTHER_HALF | {"made": "20240815T160000"}], [1, 0]),
        ([NEW | {"strip": FIRST}, NEW | {"strip": FIRST + timedelta(seconds=40), "made": "20240815T160000"}], [1, 0]),
        # Each half has its own history.
        ([OLD | HALF, OLD | OTHER_HALF | {"made": "20230202T130000"}, NEW | HALF], [1, 2]),
        (
            [
                OLD | HALF,
                OLD | OTHER_HALF | {"made": "20230202T130000"},
                NEW | HALF,
                NEW | OTHER_HALF | {"made": "20240815T160000"},
            ],
            [3, 2],
        ),
        # Halves that were processed into one.
        (
            [OLD | HALF, OLD | OTHER_HALF | {"made": "20230202T130000"}, NEW | {"strip": FIRST - timedelta(seconds=5)}],
            [2],
        ),
        # The same product twice.
        ([NEW, NEW], [0]),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_of_the_products_of_a_tile_the_newest_of_each_part_is_taken(
    products: list[dict[str, Any]], kept: list[int], shape: str
) -> None:
    items = [item("34TFL", shape=shape, **product) for product in products]
    expected = [scene_of(items[number]).scene_id for number in kept]
    (found,) = grouped(*items)
    assert sorted(found) == sorted(expected)
    if len(kept) == 2 and kept == [1, 0]:
        assert found == expected  # the datastrip that began later first, as tiles go from the last to the first


def test_halves_without_datastrips_are_told_by_their_footprints() -> None:
    items = [
        item("34TFL", footprint=square("34TFL", 0, 0.55)),
        item("34TFL", footprint=square("34TFL", 0.45, 1), made="20240815T160000"),
        item("34TFL", footprint=square("34TFL", 0.47, 1), made="20240815T150000"),
    ]
    for each in items:
        del each["properties"]["eopf:datastrip_id"]
    (found,) = group_overpasses(map(scene_of, items))
    assert {scene.made for scene in found.scenes} == {"20240815T155145", "20240815T160000"}
    assert [scene.made for scene in found.replaced] == ["20240815T150000"]


def test_an_item_with_no_product_name_is_told_by_its_properties() -> None:
    made = item("34TFL")
    made["id"] = "scene-17"
    scene = scene_of(made)
    assert (scene.scene_id, scene.tile, scene.baseline) == ("scene-17", "34TFL", "05.10")
    assert scene.overpass == scene_of(item("35TKF")).overpass


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"geometry": None}, "no footprint"),
        ({"geometry": {"type": "Point", "coordinates": [23, 40]}}, "no footprint"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[23, 40], [24, 40]]]}}, "no footprint"),
        ({"geometry": {"type": "Polygon", "coordinates": "?"}}, "no footprint"),
        ({"id": "../../etc/passwd"}, "not a plain name"),
        ({"id": 7, "properties": None}, "neither a product name nor"),
        ({"id": "x", "properties": {"datetime": "2023-02-02T09:21:09Z"}}, "neither a product name nor"),
        ({"properties": {"datetime": None}}, "datetime '' is not valid"),
        ({"properties": {"datetime": "yesterday"}}, "datetime 'yesterday' is not valid"),
        ({"id": "S2B_MSIL2A_20239902T092109_N0510_R093_T35TKF_20240815T155145"}, "is not valid"),
    ],
)
def test_an_item_that_is_no_scene_says_why(change: dict[str, Any], why: str) -> None:
    with pytest.raises(UnusableItemError, match=why):
        scene_of(item("34TFL") | change)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_order_of_answers_changes_nothing(data: st.DataObject) -> None:
    items = data.draw(
        st.lists(
            st.builds(
                lambda tile, minutes, baseline, shape, half, made: item(
                    tile,
                    FIRST + timedelta(minutes=minutes),
                    shape=shape,
                    baseline=baseline,
                    made=f"2024081{made}T155145",
                    strip=FIRST + timedelta(seconds=half * 40),
                ),
                st.sampled_from(["34TFK", "34TFL", "35TKF"]),
                st.sampled_from([0, 3]),
                st.sampled_from(["04.00", "05.10"]),
                st.sampled_from(SHAPES),
                st.integers(0, 1),
                st.integers(0, 3),
            ),
            max_size=12,
        )
    )
    # One catalogue at a time: the same product from two would be the same scene with other details.
    items = list({scene_of(each).scene_id: each for each in items}.values())
    expected = grouped(*items)
    assert grouped(*items, *items) == expected
    shuffled = list(items)
    random.Random(1).shuffle(shuffled)
    assert grouped(*shuffled) == expected
    # Nothing is lost: what is not taken is replaced by something that is.
    for overpass in group_overpasses(map(scene_of, items)):
        for old, newer in overpass.replaced.items():
            assert newer
            assert all(each in overpass.scenes and each.age > old.age for each in newer)


def test_names_are_read_back() -> None:
    assert scene_of(item("34TFL") | {"id": product_name("34TFL") + ".SAFE"}).scene_id == product_name("34TFL")
    assert isinstance(scene_of(item()).footprint, shapely.Polygon)
