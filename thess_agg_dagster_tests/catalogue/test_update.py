"""The list and what stands beside it: written once, added to later, never overruling a person."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from thess_agg_dagster.catalogue.area import SearchArea
from thess_agg_dagster.catalogue.choose import Thresholds
from thess_agg_dagster.catalogue.outcome import Outcome, Request
from thess_agg_dagster.catalogue.update import take_items
from thess_agg_dagster.lake.catalogue import manifest_value, read_item
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster_tests.catalogue.items import FIRST, item, product_name, square

SECOND, THIRD = datetime(2023, 4, 13, 9, 20, 29, tzinfo=UTC), datetime(2023, 6, 22, 9, 15, 59, tzinfo=UTC)
KEYS = ("2023-02-02 09:21:09.024000+00:00", "2023-04-13 09:20:29.024000+00:00", "2023-06-22 09:15:59.024000+00:00")
COLUMNS = "anchor_date,acq_datetime,tile_ids,tiles_count,cloud_score,coverage_frac,coverage_area"
AREA = SearchArea.of(Geometry(shapely.union(square("34TFL"), square("34TFK")).buffer(-0.1), CRS("EPSG:4326")))
REQUEST = Request("http://nowhere", "sentinel-2-l2a", AREA, date(2023, 1, 1), date(2023, 12, 31))


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    return DataLake(tmp_path / "lake")


def both(datatake: datetime = FIRST, **options: Any) -> list[dict[str, Any]]:
    return [item(tile, datatake, files="https://example.org", **options) for tile in ("34TFK", "34TFL")]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def update(lake: DataLake, *items: dict[str, Any], **changes: Any) -> Outcome:
    dry_run = changes.pop("dry_run", False)
    return take_items(lake, replace(REQUEST, **changes), items, dry_run=dry_run)


def reasons(lake: DataLake) -> dict[str, str]:
    return {row["scene_id"]: row["reason"] for row in rows(lake.catalogue_scenes) if row["taken"] == "False"}


def test_an_empty_lake_gets_a_list_that_the_pipeline_reads(lake: DataLake) -> None:
    outcome = update(lake, *both(SECOND, cloud=20.0), *both())
    assert lake.time_serie.read_text().splitlines()[0] == COLUMNS
    first, second = rows(lake.time_serie)
    assert first == {
        "anchor_date": "2023-02-02",
        "acq_datetime": KEYS[0],
        "tile_ids": f"{product_name('34TFL')}|{product_name('34TFK')}",
        "tiles_count": "2",
        "cloud_score": "10.0",
        "coverage_frac": "1.0",
        "coverage_area": first["coverage_area"],
    }
    assert float(first["coverage_area"]) == pytest.approx(AREA.shape.area)
    assert (second["acq_datetime"], second["cloud_score"]) == (KEYS[1], "20.0")
    assert list(read_time_serie(lake.time_serie).acquisitions) == list(KEYS[:2])
    assert [choice.timestamp for choice in outcome.added] == list(KEYS[:2])
    # What belongs to it: items as they came, and the addresses of the bands' own resolution, by https.
    for made in both(SECOND):
        name = product_name(made["id"][39:44], SECOND)
        assert read_item(lake.scene_item(name))["assets"] == made["assets"]
        for band, size in {"B04": 10, "B08": 10, "SCL": 20}.items():
            expected = f"https://example.org/{name}/T{name[39:44]}_{band}_{size}m.jp2"
            assert manifest_value(lake, "href", name, band) == expected
    assert {row["taken"] for row in rows(lake.catalogue_scenes)} == {"True"}


def test_every_scene_is_accounted_for(lake: DataLake) -> None:
    old: dict[str, Any] = {"baseline": "04.00", "made": "20230202T120000"}
    items = [
        *both(),
        item("34TFL", **old),
        item("35TKF", footprint=shapely.box(10, 10, 11, 11)),
        item("34TGL", footprint=square("34TFL", 0.4, 0.6)),
        *both(SECOND, cloud=99.0),
        item("34TFL", THIRD, footprint=square("34TFL", 0, 0.2)),
        item("34TFL") | {"id": "no-footprint", "geometry": None},
    ]
    update(lake, *items, *items)
    assert reasons(lake) == {
        product_name("34TFL", **old): f"is an older product of {product_name('34TFL')}",
        product_name("35TKF"): "lies outside the area",
        product_name("34TGL"): "adds nothing to what the others show of the area",
        product_name("34TFL", SECOND): "99.0 % clouds; at most 60 % is allowed",
        product_name("34TFK", SECOND): "99.0 % clouds; at most 60 % is allowed",
        product_name("34TFL", THIRD): reasons(lake)[product_name("34TFL", THIRD)],
        "no-footprint": "cannot be used: it has no footprint",
    }
    assert "% of the area; at least 50.0% is required" in reasons(lake)[product_name("34TFL", THIRD)]
    assert [row["tile_ids"] for row in rows(lake.time_serie)] == [f"{product_name('34TFL')}|{product_name('34TFK')}"]


def test_the_dates_are_those_of_the_overpass(lake: DataLake) -> None:
    late = datetime(2023, 12, 31, 23, 58, 0, tzinfo=UTC)
    items = [*both(late, shape="earth-search"), *both(late - timedelta(days=365), shape="earth-search")]
    assert all(each["properties"]["datetime"][:10] in ("2024-01-01", "2023-01-01") for each in items)
    update(lake, *items)  # the first began on the last day, the second on the day before the first
    assert [row["acq_datetime"] for row in rows(lake.time_serie)] == ["2023-12-31 23:58:00+00:00"]


def test_again_changes_nothing_at_all(lake: DataLake) -> None:
    update(lake, *both(), *both(SECOND))
    before = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*") if path.is_file()}
    assert len(before) == 7
    outcome = update(lake, *both(), *both(SECOND))
    assert {path: path.stat().st_mtime_ns for path in lake.root.rglob("*") if path.is_file()} == before
    assert (outcome.added, outcome.better, outcome.listed) == ([], {}, 2)


def test_a_dry_run_writes_nothing(lake: DataLake) -> None:
    outcome = update(lake, *both(), dry_run=True)
    assert len(outcome.added) == 1
    assert not lake.root.exists()


def test_an_update_adds_and_keeps_what_a_person_edited(lake: DataLake) -> None:
    lake.tables_folder.mkdir(parents=True)
    by_hand = (
        "tile_ids;not,note,acq_datetime,tile_ids\n"
        f',"mine, all of it",{KEYS[0]},{product_name("34TFL")}\n'
        ",short,broken\n"
        f",,2023-04-13 11:20:29.024+02:00,scene-a\n"
    )
    lake.time_serie.write_text(by_hand)
    lake.assets_manifest.write_text("scene_id,href_b02,who\nscene-a,https://example.org/a,me\n")
    update(lake, *both(), *both(SECOND), *both(THIRD))
    header, *lines = lake.time_serie.read_text().splitlines()
    assert header.startswith("tile_ids;not,note,acq_datetime,tile_ids,anchor_date,")
    for line, before in zip(lines, by_hand.splitlines()[1:], strict=False):
        assert line == before
    assert [row["acq_datetime"] for row in rows(lake.time_serie)][3:] == [KEYS[2]]
    assert len(read_time_serie(lake.time_serie).acquisitions) == 3
    first, *others = rows(lake.assets_manifest)
    assert (first["scene_id"], first["href_b02"], first["who"]) == ("scene-a", "https://example.org/a", "me")
    assert {row["scene_id"] for row in others} == {product_name(tile, THIRD) for tile in ("34TFK", "34TFL")}
    assert reasons(lake)[product_name("34TFK")] == "time_serie.csv lists this overpass without it"


def test_a_row_that_was_taken_off_stays_off(lake: DataLake) -> None:
    update(lake, *both(), *both(SECOND))
    text = lake.time_serie.read_text().splitlines()
    lake.time_serie.write_text("\n".join([text[0], text[2]]) + "\n")
    outcome = update(lake, *both(), *both(SECOND))
    assert [row["acq_datetime"] for row in rows(lake.time_serie)] == [KEYS[1]]
    assert outcome.left == {KEYS[0]: "was taken off time_serie.csv by hand"}
    assert len(reasons(lake)) == 2
    update(lake, *both(), *both(SECOND))  # and so ever after
    assert [row["acq_datetime"] for row in rows(lake.time_serie)] == [KEYS[1]]
    lake.time_serie.unlink()
    lake.catalogue_scenes.unlink()
    update(lake, *both(), *both(SECOND))
    assert [row["acq_datetime"] for row in rows(lake.time_serie)] == list(KEYS[:2])


OLD: dict[str, Any] = {"baseline": "04.00", "made": "20230202T120000"}


def test_a_better_baseline_is_told_and_taken_when_that_is_wanted(lake: DataLake) -> None:
    update(lake, *both(**OLD), *both(SECOND))
    before = lake.time_serie.read_text()
    outcome = update(lake, *both(**OLD), *both(cloud=30.0), *both(SECOND))
    change = " and ".join(product_name(tile) for tile in ("34TFL", "34TFK"))
    change += " instead of " + " and ".join(product_name(tile, **OLD) for tile in ("34TFL", "34TFK"))
    assert outcome.better == {KEYS[0]: change}
    assert lake.time_serie.read_text() == before
    assert reasons(lake)[product_name("34TFL")] == "time_serie.csv lists this overpass without it"

    outcome = update(lake, *both(cloud=30.0), *both(SECOND), upgrade=True)  # the archive has dropped the old ones
    assert outcome.upgraded == [KEYS[0]]
    first, second = rows(lake.time_serie)
    assert first["tile_ids"] == f"{product_name('34TFL')}|{product_name('34TFK')}"
    assert first["cloud_score"] == "30.0"
    assert second["tile_ids"] == f"{product_name('34TFL', SECOND)}|{product_name('34TFK', SECOND)}"
    assert lake.scene_item(product_name("34TFL")).exists()
    assert manifest_value(lake, "href", product_name("34TFL"), "B04")
    assert update(lake, *both(cloud=30.0), *both(SECOND), upgrade=True).upgraded == []


def test_an_upgrade_keeps_the_order_and_the_choice_of_a_person(lake: DataLake) -> None:
    update(lake, *both(**OLD))
    text = lake.time_serie.read_text()
    pair = [product_name(tile, **OLD) for tile in ("34TFL", "34TFK")]
    lake.time_serie.write_text(text.replace("|".join(pair), f"{pair[1]};scene-of-my-own"))
    outcome = update(lake, *both(), upgrade=True)
    (row,) = rows(lake.time_serie)
    assert row["tile_ids"] == f"{product_name('34TFK')}|scene-of-my-own"
    assert outcome.upgraded == [KEYS[0]]


def test_a_tile_that_comes_late_is_told_and_taken_when_that_is_wanted(lake: DataLake) -> None:
    update(lake, item("34TFL"), thresholds=Thresholds(min_coverage=0.2))
    assert rows(lake.time_serie)[0]["tiles_count"] == "1"
    outcome = update(lake, *both())
    assert outcome.better == {KEYS[0]: f"{product_name('34TFK')} beside the others"}
    update(lake, *both(), upgrade=True)  # it was seen meanwhile, but it is not a person who left it out
    (row,) = rows(lake.time_serie)
    assert row["tile_ids"] == f"{product_name('34TFL')}|{product_name('34TFK')}"
    assert row["coverage_frac"] == "1.0"


def test_one_per_anchor_date(lake: DataLake) -> None:
    days = [FIRST + timedelta(days=number) for number in (0, 5, 10, 15, 20)]
    clouds = [30.0, 5.0, 20.0, 50.0, 40.0]
    items = [made for day, cloud in zip(days, clouds, strict=True) for made in both(day, cloud=cloud)]
    first = {"first": FIRST.date(), "every": 14}
    update(lake, *items[:4], **first)
    update(lake, *items, **first)  # the second anchor is new; the first has its overpass
    found = [(row["anchor_date"], row["acq_datetime"][:10]) for row in rows(lake.time_serie)]
    assert found == [("2023-02-02", "2023-02-07"), ("2023-02-16", "2023-02-12")]
    why = reasons(lake)
    assert why[product_name("34TFL", days[0])] == "the list already has one for the anchor date 2023-02-02"
    assert "is better for the anchor date 2023-02-16" in why[product_name("34TFL", days[3])]


def test_a_list_that_cannot_be_read_is_left_alone(lake: DataLake) -> None:
    lake.tables_folder.mkdir(parents=True)
    lake.time_serie.write_bytes(b"acq_datetime,tile_ids\n\xff\xfe\n")
    with pytest.raises(TimeSerieError, match="UTF-8"):
        update(lake, *both())
    lake.time_serie.write_text("when,what\n1,2\n")
    with pytest.raises(TimeSerieError, match="lacks the column"):
        update(lake, *both())
    assert lake.time_serie.read_text() == "when,what\n1,2\n"
    assert [path.name for path in lake.root.rglob("*") if path.is_file()] == ["time_serie.csv"]


def test_an_item_with_a_path_for_a_name_goes_nowhere(lake: DataLake) -> None:
    made = both()
    made[0]["id"] = "../../../evil"
    update(lake, *made, thresholds=Thresholds(min_coverage=0.1))
    assert reasons(lake)["../../../evil"] == "cannot be used: its id is not a plain name"
    assert not list(lake.root.parent.rglob("evil*"))
    assert json.loads(lake.scene_item(product_name("34TFL")).read_text())["id"] == product_name("34TFL")
