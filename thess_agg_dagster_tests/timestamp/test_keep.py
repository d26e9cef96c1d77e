"""Bands that were published and are not asked for: they stay while they are up to date, and none goes without a word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from thess_agg_dagster.audit.event_log import latest_attempts
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.time_serie import read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.timestamp.freshness import is_due
from thess_agg_dagster_tests.conftest import FIRST, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.rasters import noise, read


@pytest.fixture
def made(small_lake: SmallLake) -> SmallLake:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    small_lake.read_list()
    assert small_lake.aggregate(FIRST, stac=True).attempt.status == "success"
    return small_lake


def published(lake: SmallLake) -> dict[str, str]:
    folder = lake.lake.published(FIRST).folder
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def due(lake: SmallLake, *bands: str) -> bool:
    params, fingerprints = TimestampsAggregationParams(bands=list(bands)), lake.lake.fingerprints()
    row = read_time_serie(lake.lake.time_serie).acquisitions[FIRST]
    return is_due(row, latest_attempts(lake.instance, AGGREGATED)[FIRST], lake.lake, params, fingerprints)


@in_folder_and_bucket
def test_they_stay_while_they_are_up_to_date(made: SmallLake) -> None:
    before = published(made)
    pixels = noise(77, (120, 120))
    made.add_tile(scene(FIRST, "T35TKF"), "B04", east=True, pixels=pixels)
    found = made.aggregate(FIRST, bands=["B04"]).attempt
    assert (found.status, [band.band for band in found.bands]) == ("success", ["B04", "B08", "SCL"])
    after = published(made)
    assert set(after) == set(before)
    assert {name for name in before if before[name] == after[name]} >= {"B08.tif", "SCL.tif"}
    assert np.isin(pixels, read(made.lake.mosaic(FIRST, "B04"))).all()
    # What stands beside them tells of all of them, and all are up to date.
    manifest = json.loads(made.lake.manifest(FIRST).read_bytes())
    assert [Path(each["file"]).name for each in manifest["outputs"]] == ["B04.tif", "B08.tif", "SCL.tif"]
    assert set(manifest["inputs"]) == {"B04", "B08", "SCL"} == set(manifest["parameters"]["bands"])
    assert {"B04", "B08", "SCL"} <= set(json.loads(made.lake.published(FIRST).item.read_bytes())["assets"])
    assert not due(made, "B04", "B08", "SCL")
    assert set(made.tables()["band_report"]["status"]) == {"success"}
    # More bands: those that are not asked for stay then, too.
    for scene_id in (scene(FIRST, "T35TKF"), scene(FIRST, "T34TFL")):
        made.add_tile(scene_id, "B05", east="T35" in scene_id)
    assert due(made, "B05")
    assert made.aggregate(FIRST, bands=["B05"]).attempt.status == "success"
    assert {"B04.tif", "B05.tif", "B08.tif", "SCL.tif"} <= set(published(made))
    assert made.left_behind() == []


@in_folder_and_bucket
def test_one_out_of_date_goes_by_word_only(made: SmallLake) -> None:
    before = published(made)
    made.add_tile(scene(FIRST, "T35TKF"), "B08", east=True, pixels=noise(77, (120, 120)))
    assert not due(made, "B04")  # which is as it was
    found = made.aggregate(FIRST, bands=["B04"]).attempt
    assert found.status == "exception"
    assert f"B08 in {made.lake.timestamp_folder(FIRST)} would be removed" in found.message
    assert "set bands to B04, B08, or set drop_bands" in found.message
    assert published(made) == before
    assert made.aggregate(FIRST, bands=["B04"], drop_bands=True).attempt.status == "success"
    assert {name for name in published(made) if name.endswith(".tif")} == {"B04.tif", "SCL.tif"}


def test_one_that_nobody_recorded_goes_by_word_only(made: SmallLake) -> None:
    own = made.lake.timestamp_folder(FIRST) / "own.tif"
    own.write_bytes(b"mine")
    assert "own in" in made.aggregate(FIRST).attempt.message
    assert own.read_bytes() == b"mine"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_a_damaged_one_is_not_passed_on(made: SmallLake) -> None:
    damage(made.lake.mosaic(FIRST, "B08"))
    before = published(made)
    found = made.aggregate(FIRST, bands=["B04"]).attempt
    assert {band.band: band.status for band in found.bands} == {
        "B04": "skipped", "B08": "merge_failed", "SCL": "skipped",
    }  # fmt: skip
    assert "was published; include B08 in the bands" in found.message
    assert published(made) == before


def test_what_was_removed_beside_the_mosaics_is_due(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST, ["B04"])))
    small_lake.read_list()
    lake, params = small_lake.lake, TimestampsAggregationParams(bands=["B04"], stac=True)
    acquisition = read_time_serie(lake.time_serie).acquisitions[FIRST]
    found = small_lake.aggregate(FIRST, bands=["B04"], stac=True)
    assert not is_due(acquisition, found, lake, params, lake.fingerprints())
    for path in (lake.published(FIRST).item, lake.published(FIRST).quicklook):
        kept = path.read_bytes()
        path.unlink()
        assert is_due(acquisition, found, lake, params, lake.fingerprints())
        path.write_bytes(kept)
