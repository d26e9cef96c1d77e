"""Composites through Dagster on a real SQLite instance: pixels by brute force, what is stale, what is due, what goes wrong."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
from dagster._core.definitions.assets.graph.remote_asset_graph import RemoteWorkspaceAssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.loader import LoadingContextForTest
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import PythonFileTarget
from PIL import Image

import thess_agg_dagster
from thess_agg_dagster.audit.event_log import latest_attempts
from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.definitions import defs
from thess_agg_dagster.defs.checks import details_of
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.sensors.periods import composites_sensor_of
from thess_agg_dagster.defs.sensors.reports import missing_or_failed_periods_sensor_of
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, MOSAICS_BY_PERIOD, REPORT
from thess_agg_dagster.lake.publish import local_folder
from thess_agg_dagster.runs.batch import run_asset, tidy_up
from thess_agg_dagster.runs.instance import UNFINISHED
from thess_agg_dagster.storage.gdal import gdal_name
from thess_agg_dagster_tests.conftest import BANDS, Begin, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.defs.test_sensors import Sensor, missing_or_failed
from thess_agg_dagster_tests.rasters import Array, noise, read

#: Three times in April, two in May, one in July.
TIMES = [f"2023-{day}T09:20:29+00:00" for day in ("04-03", "04-13", "04-23", "05-03", "05-13", "07-02")]
APRIL, MAY, SPRING = "2023-04", "2023-05", "2023-Q2"
ON_ONE_GRID: dict[str, Any] = {
    "grid": "fixed", "bounds": [690000, 4488000, 702000, 4500000], "target_crs": "EPSG:32634",
}  # fmt: skip
ASKED: dict[str, Any] = ON_ONE_GRID | {"composites": ["month", "quarter"]}


def add(lake: SmallLake, timestamp: str, seed: int, **options: Any) -> list[str]:
    """One tile a band, a third of it empty, few classes."""
    ids = [scene(timestamp, "T34TFL")]
    for band in BANDS:
        size = 60 if band == "SCL" else 120
        pixels = noise(seed + ord(band[-1]), (size, size), high=5 if band == "SCL" else 4000)
        pixels[noise(seed + 7, (size, size), high=3) == 1] = 0
        given = {"pixels": pixels.astype("uint8" if band == "SCL" else "uint16")} | options
        lake.add_tile(ids[0], band, **given)
    return ids


def publish_all(lake: SmallLake) -> None:
    """Timestamps on one grid."""
    lake.list_rows(*((key, add(lake, key, seed)) for seed, key in enumerate(TIMES)))
    run_asset(lake.instance, lake.resources(**ASKED), dg.AssetKey("time_serie"))
    for key in TIMES:
        assert lake.aggregate(key, **ASKED).attempt.status == "success"


@pytest.fixture
def ready(begin_with: Begin) -> SmallLake:
    return begin_with(publish_all)


def compose(lake: SmallLake, period: str, **params: Any) -> RecordedAttempt:
    try:
        run_asset(lake.instance, lake.resources(**ASKED | params), COMPOSITES, period)
    except Exception as error:
        lake.error = error
    return latest_attempts(lake.instance, COMPOSITES)[period]


def stack(lake: SmallLake, band: str, times: list[str]) -> np.ma.MaskedArray[Any, Any]:
    return np.ma.masked_equal(np.stack([read(lake.lake.mosaic(key, band)) for key in times]), 0)


def composites_of(lake: SmallLake, period: str) -> dict[str, Array]:
    found = lake.lake.composites.published(period)
    return {band: read(found.folder / f"{band}.tif") for band in found.bands}


def median(stacked: np.ma.MaskedArray[Any, Any], least: int) -> Array:
    """By way of floats and NaN."""
    count = stacked.count(axis=0)
    with np.errstate(all="ignore"):
        values = np.rint(np.nanmedian(np.where(count == 0, 0, np.ma.filled(stacked.astype(float), np.nan)), axis=0))
    return np.where(count >= least, values, 0).astype(stacked.dtype)


def most_frequent(stacked: np.ma.MaskedArray[Any, Any], least: int) -> Array:
    classes: Array = stacked.filled(0)
    seen = np.stack([(classes == value).sum(axis=0) for value in range(1, 12)])
    return np.where(stacked.count(axis=0) >= least, seen.argmax(axis=0) + 1, 0).astype("uint8")


def left_behind(lake: SmallLake) -> list[Path]:
    folder = local_folder(lake.lake.composites.staging)
    return list(folder.iterdir()) if folder.exists() else []


@in_folder_and_bucket
def test_pixels_files_and_records(ready: SmallLake) -> None:
    for period, times in ((APRIL, TIMES[:3]), (MAY, TIMES[3:5]), (SPRING, TIMES[:5])):
        found = compose(ready, period, stac=True).attempt
        assert (found.status, list(found.scene_ids)) == ("success", times)
        pixels = composites_of(ready, period)
        assert set(pixels) == {*BANDS, "count"}
        for band in ("B04", "B08"):
            np.testing.assert_array_equal(pixels[band], median(stack(ready, band, times), 2), err_msg=band)
        np.testing.assert_array_equal(pixels["SCL"], most_frequent(stack(ready, "SCL", times), 2))
        count = stack(ready, "B04", times).count(axis=0)
        np.testing.assert_array_equal(pixels["count"], count)
        records = {band.band: band for band in found.bands}
        assert records["B04"].valid_share == pytest.approx((count >= 2).mean(), abs=1e-6)
        assert records["B04"].input_checksums == [
            band.output_checksum
            for key in times
            for band in latest_attempts(ready.instance, AGGREGATED)[key].attempt.bands
            if band.band == "B04"
        ] or str(ready.root).startswith("s3:")  # where they are ETags
        folder = ready.lake.composites.published(period).folder
        manifest = json.loads(ready.lake.composites.manifest(period).read_bytes())
        assert (manifest["period"], manifest["timestamps"]) == (period, times)
        assert [Path(each["file"]).name for each in manifest["outputs"]] == [
            "B04.tif",
            "B08.tif",
            "SCL.tif",
            "count.tif",
        ]
        item = pystac.Item.from_dict(json.loads((folder / "item.json").read_bytes()))
        assert item.datetime is None
        assert set(item.assets) == {*pixels, "thumbnail"}
        checks = ready.checks(COMPOSITES)
        assert {name: check.passed for name, check in checks.items()} == dict.fromkeys(
            ("inputs_complete", "mosaics_stack", "mosaics_valid"), True
        )
        if not str(ready.root).startswith("s3:"):
            with rasterio.open(gdal_name(folder / "B08.tif")) as file:
                assert file.tags()["timestamps"] == "|".join(times)
                assert (file.tags()["period"], file.tags()["composite_method"]) == (period, "median")
    assert left_behind(ready) == []
    tables = ready.tables(**ASKED)
    assert tables["status"]["status"].tolist() == ["success"] * 6
    table = pd.read_csv(io.BytesIO(ready.lake.audit_table("composites").read_bytes()), dtype=str).set_index("period")
    assert table["status"].to_dict() == {
        APRIL: "success", MAY: "success", SPRING: "success", "2023-07": "not_run", "2023-Q3": "not_run",
    }  # fmt: skip
    assert table.loc[MAY, "timestamps"] == "|".join(TIMES[3:5])
    collection = json.loads(ready.lake.composites.collection.read_bytes())
    assert collection["extent"]["temporal"]["interval"] == [["2023-04-01T00:00:00Z", "2023-06-30T23:59:59Z"]]
    assert len([link for link in collection["links"] if link["rel"] == "item"]) == 3


@pytest.mark.parametrize("least", [1, 3])
def test_how_many_observations_are_enough(ready: SmallLake, least: int) -> None:
    compose(ready, APRIL, min_observations=least, composite_method="mean")
    seen = stack(ready, "B08", TIMES[:3])
    expected = np.where(seen.count(axis=0) >= least, np.rint(seen.astype(float).mean(axis=0).filled(0)), 0)
    np.testing.assert_array_equal(composites_of(ready, APRIL)["B08"], expected)


@pytest.mark.parametrize("format", ["geotiff", "cog"])
def test_the_quarter_stands_in_and_a_band_says_where(ready: SmallLake, format: str) -> None:
    options: dict[str, Any] = {"quarter_stands_in": True, "min_observations": 3, "ndvi": "int16", "format": format}
    found = compose(ready, APRIL, **options).attempt
    assert found.status == "success", found.message
    pixels = composites_of(ready, APRIL)
    for band, reduce in (("B04", median), ("B08", median), ("SCL", most_frequent)):
        month, quarter = (reduce(stack(ready, band, times), 3) for times in (TIMES[:3], TIMES[:5]))
        np.testing.assert_array_equal(pixels[band], np.where(month == 0, quarter, month), err_msg=band)
    month, quarter = (stack(ready, "B04", times).count(axis=0) for times in (TIMES[:3], TIMES[:5]))
    np.testing.assert_array_equal(pixels["count"], np.where(month < 3, quarter, month))
    np.testing.assert_array_equal(pixels["period"], np.select([month >= 3, quarter >= 3], [1, 3], 0))
    assert {1, 3} <= set(np.unique(pixels["period"]))
    # NDVI of what was published, without the offset of 1000 that baseline 05.10 carries.
    red, nir = (pixels[band].astype(float) - 1000 for band in ("B04", "B08"))
    with np.errstate(all="ignore"):
        index = np.clip((nir - red) / (nir + red), -3, 3)
    nothing = (pixels["B04"] == 0) | (pixels["B08"] == 0) | ~np.isfinite(index)
    expected = np.where(nothing, -32768, np.rint(np.nan_to_num(index) * 10000))
    np.testing.assert_array_equal(pixels["NDVI"], expected)
    manifest = json.loads(ready.lake.composites.manifest(APRIL).read_bytes())
    assert manifest["stand_in"] == {"period": SPRING, "timestamps": TIMES[:5]}
    assert not [path for path in ready.lake.composites.published(APRIL).folder.iterdir() if path.is_dir()]


def stale(lake: SmallLake, *keys: str) -> dict[str, str]:
    """As the UI asks Dagster for it."""
    with dg.build_sensor_context(lake.instance, definitions=defs) as context:
        assert context.repository_def is not None
        graph = context.repository_def.asset_graph
        resolver = CachingStaleStatusResolver(lake.instance, graph, LoadingContextForTest(lake.instance))
        return {key: resolver.get_status(COMPOSITES, key).value for key in keys}


def test_a_timestamp_made_anew_makes_its_periods_stale(ready: SmallLake) -> None:
    everything = (APRIL, MAY, SPRING, "2023-07", "2023-Q3")
    assert stale(ready, *everything) == dict.fromkeys(everything, "MISSING")
    for period in everything:
        compose(ready, period)
    assert stale(ready, *everything) == dict.fromkeys(everything, "FRESH")
    ready.aggregate(TIMES[1], **ASKED)  # the same again
    assert stale(ready, *everything) == dict.fromkeys(everything, "FRESH")
    add(ready, TIMES[1], 77)
    ready.aggregate(TIMES[1], **ASKED)
    fresh = dict.fromkeys(everything, "FRESH")
    assert stale(ready, *everything) == fresh | {APRIL: "STALE", SPRING: "STALE"}
    for period in (APRIL, SPRING):
        compose(ready, period)
    assert stale(ready, *everything) == fresh


def test_the_daemon_finds_the_parents_of_a_period(ready: SmallLake) -> None:
    """A mapping of our own would be identity in the graph that it sees, and a backfill would fail for want of a parent."""
    target = PythonFileTarget(str(Path(__file__).parents[2] / "thess_agg_dagster" / "definitions.py"), None, None, None)
    with create_test_daemon_workspace_context(target, ready.instance) as workspace:
        graph = workspace.create_request_context().asset_graph
        assert isinstance(graph, RemoteWorkspaceAssetGraph)
        with partition_loading_context(dynamic_partitions_store=ready.instance):
            (parent,) = graph.get(COMPOSITES).parent_keys
            found = graph.get_parent_partition_keys_for_child(SPRING, parent, COMPOSITES)
            assert parent == MOSAICS_BY_PERIOD
            assert graph.get(parent).parent_keys == {AGGREGATED}
            assert list(found.partitions_subset.get_partition_keys()) == [SPRING]
            assert not list(found.required_but_nonexistent_subset.get_partition_keys())


def message_of(lake: SmallLake, name: str) -> str:
    check = lake.checks(COMPOSITES)[name]
    assert not check.passed
    return "\n".join(details_of(check.metadata))


def test_mosaics_on_other_grids_are_named(ready: SmallLake) -> None:
    ready.aggregate(TIMES[1], bands=["B04", "B08", "SCL"])  # on the grid of its tiles
    found = compose(ready, APRIL).attempt
    path = ready.lake.mosaic(TIMES[1], "B08")
    assert found.status == "failed_invalid_inputs"
    told = message_of(ready, "mosaics_stack")
    assert (
        f"{path} is on the grid of its own tiles, so {APRIL} has no B08; aggregate all timestamps with grid=fixed"
        in told
    )
    assert compose(ready, MAY).attempt.status == "success"
    ready.aggregate(TIMES[1], **ASKED | {"bounds": [690000, 4488000, 702000, 4499400]})
    found = compose(ready, APRIL).attempt
    assert {band.status for band in found.bands} == {"grid_conflict"}
    assert f"{path}: grid differs from that of {ready.lake.mosaic(TIMES[0], 'B08')}" in message_of(
        ready, "mosaics_stack"
    )
    assert f"{APRIL} cannot be made of them" in found.message
    assert not ready.lake.composites.timestamp_folder(APRIL).exists()


@in_folder_and_bucket
def test_one_period_that_fails_leaves_the_others_and_what_was_there(ready: SmallLake) -> None:
    assert compose(ready, APRIL).attempt.status == "success"
    before = composites_of(ready, APRIL)
    path = ready.lake.mosaic(TIMES[0], "B08")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = compose(ready, APRIL).attempt
    assert found.status == "failed_invalid_inputs", found.message
    assert {band.band: band.status for band in found.bands if band.status != "skipped"} == {"B08": "unreadable_input"}
    assert str(path) in found.message
    assert "run its timestamp again, with --force" in found.message
    assert compose(ready, MAY).attempt.status == "success"
    after = composites_of(ready, APRIL)
    assert all(np.array_equal(before[band], after[band]) for band in before)
    path.unlink()
    found = compose(ready, APRIL).attempt
    assert found.status == "failed_missing_inputs"
    assert f"no such file; run the timestamp {TIMES[0]} again" in found.message
    rows = ready.tables(**ASKED)["status"]
    assert set(rows["status"]) == {"success"}  # what became of composites is told elsewhere
    table = pd.read_csv(io.BytesIO(ready.lake.audit_table("composites").read_bytes()), dtype=str).set_index("period")
    assert table.loc[APRIL, "status"] == "failed_missing_inputs"


def test_other_bytes_than_were_published_are_not_composed(ready: SmallLake) -> None:
    path = ready.lake.mosaic(TIMES[0], "B04")
    path.write_bytes(ready.lake.mosaic(TIMES[1], "B04").read_bytes())
    found = compose(ready, APRIL).attempt
    assert {band.band: band.status for band in found.bands if band.status != "skipped"} == {"B04": "checksum_mismatch"}
    assert f"{path}: has xxh128:" in found.message
    assert left_behind(ready) == []


_KILLED = """
import json, os, signal, sys
import dagster as dg
from thess_agg_dagster.keys import COMPOSITES
from thess_agg_dagster.period import build
from thess_agg_dagster.runs.batch import run_asset

build.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    run_asset(instance, json.loads(sys.argv[2]), COMPOSITES, "2023-04")
"""


def test_a_killed_run_leaves_what_was_there(ready: SmallLake) -> None:
    compose(ready, APRIL)
    before = composites_of(ready, APRIL)
    home = Path(ready.instance.root_directory)
    shutil.copyfile(Path(thess_agg_dagster.__file__).with_name("dagster.yaml"), home / "dagster.yaml")
    resources = json.dumps(ready.resources(**ASKED | {"composite_method": "mean"}))
    command = [sys.executable, "-c", _KILLED, str(home), resources]
    killed = subprocess.run(command, env=os.environ | {"DAGSTER_HOME": str(home)}, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(left_behind(ready)) == 1
    after = composites_of(ready, APRIL)
    assert all(np.array_equal(before[band], after[band]) for band in before)
    tidy_up(ready.instance, ready.lake)
    assert left_behind(ready) == []
    assert ready.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) == []
    ready.tables(**ASKED)
    table = pd.read_csv(io.BytesIO(ready.lake.audit_table("composites").read_bytes()), dtype=str).set_index("period")
    assert table.loc[APRIL, "status"] == "exception"
    assert "the previous version stays published" in str(table.loc[APRIL, "message"])


def test_what_is_missing_of_a_period_is_said(ready: SmallLake) -> None:
    late = "2023-04-28T09:20:29+00:00"
    ready.list_rows(*((key, [scene(key, "T34TFL")]) for key in (*TIMES, late)))
    assert compose(ready, APRIL).attempt.status == "success"
    assert message_of(ready, "inputs_complete") == f"1 listed timestamps of {APRIL} are not published: {late}"
    ready.instance.add_dynamic_partitions("period", ["2023-09", "spring"])
    found = compose(ready, "2023-09").attempt
    assert (found.status, found.message) == (
        "failed_no_tiles", "no listed timestamp of 2023-09 is published; aggregate one first",
    )  # fmt: skip
    assert "'spring' is no period; those are as 2023-04 and 2023-Q2" in compose(ready, "spring").attempt.message
    # What is not listed any more does not count.
    ready.list_rows(*((key, [scene(key, "T34TFL")]) for key in TIMES if key != TIMES[0]))
    compose(ready, APRIL)
    np.testing.assert_array_equal(composites_of(ready, APRIL)["count"], stack(ready, "B04", TIMES[1:3]).count(axis=0))


@pytest.mark.parametrize("method", ["max_ndvi", "medoid", "geomedian"])
def test_bands_that_are_looked_at_together(ready: SmallLake, method: str) -> None:
    assert compose(ready, APRIL, composite_method=method).attempt.status == "success"
    pixels = composites_of(ready, APRIL)
    red, nir = (stack(ready, band, TIMES[:3]) for band in ("B04", "B08"))
    both = np.ma.getmaskarray(red) | np.ma.getmaskarray(nir)
    np.testing.assert_array_equal(pixels["count"], (~both).sum(axis=0))
    np.testing.assert_array_equal(pixels["SCL"], most_frequent(stack(ready, "SCL", TIMES[:3]), 2))
    if method == "max_ndvi":
        with np.errstate(all="ignore"):
            # Baseline 05.10 carries an offset of 1000, and no reflectance is less than 1.
            a, b = (np.maximum(band.data.astype(float) - 1000, 1) for band in (red, nir))
            when = np.argmax(np.where(both, -np.inf, (b - a) / (b + a)), axis=0)
        expected = np.where((~both).sum(axis=0) >= 2, np.take_along_axis(red.data, when[None], 0)[0], 0)
        np.testing.assert_array_equal(pixels["B04"], expected)


def test_an_asset_of_ones_own_receives_composites(ready: SmallLake) -> None:
    compose(ready, APRIL)
    received: list[Any] = []

    @dg.asset(ins={"spring": dg.AssetIn(COMPOSITES, partition_mapping=dg.SpecificPartitionsPartitionMapping([APRIL]))})
    def own(spring):  # type: ignore[no-untyped-def]
        received.append(spring.read("B04").filled(0))

    spec = dg.AssetSpec(COMPOSITES, partitions_def=dg.DynamicPartitionsDefinition(name="period"))
    io_manager = DataLakeIOManager(data_lake=str(ready.root))
    dg.materialize([own, spec], instance=ready.instance, resources={"io_manager": io_manager}, selection=[own])
    np.testing.assert_array_equal(received[0], composites_of(ready, APRIL)["B04"])


def test_the_sensor_asks_for_what_changed(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = Sensor(composites_sensor_of, ready)
    assert sensor.tick() == ([], "No composites are asked for; THESS_COMPOSITES=month,quarter asks for both")
    environment: Mapping[str, str] = {
        "COMPOSITES": "month,quarter", "GRID": "fixed", "BOUNDS": "690000,4488000,702000,4500000",
        "TARGET_CRS": "EPSG:32634",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(f"THESS_{name}", value)
    everything = [APRIL, MAY, "2023-07", SPRING, "2023-Q3"]
    job = defs.resolve_job_def("aggregate_timestamps")  # whose runs do not say which assets they make
    busy = ready.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert sensor.tick() == ([], "1 runs are not finished; composites wait for them")
    ready.instance.report_run_failed(busy)
    assert sorted(sensor.tick()[0]) == sorted(everything)
    for period in everything:
        compose(ready, period)
    assert sensor.tick() == ([], "No timestamp was published since")
    add(ready, TIMES[1], 77)
    ready.aggregate(TIMES[1], **ASKED)
    assert sensor.tick()[0] == [APRIL, SPRING]
    assert sensor.tick()[0] == []  # once
    for period in (APRIL, SPRING):
        compose(ready, period)
    monkeypatch.setenv("THESS_COMPOSITE_METHOD", "mean")
    assert sorted(sensor.tick()[0]) == sorted(everything)


def test_a_job_finds_the_periods_that_are_missing_failed_or_changed(ready: SmallLake) -> None:
    sensor = Sensor(missing_or_failed_periods_sensor_of, ready)
    assert sensor.tick() == ([], "No run of missing_or_failed has found anything since")
    everything = [APRIL, MAY, "2023-07", SPRING, "2023-Q3"]
    job = missing_or_failed(ready, **ASKED)
    assert sensor.tick()[0] == everything
    assert sensor.requests[APRIL].run_config == {"resources": ready.resources(**ASKED)}
    assert sensor.requests[APRIL].tags["thess_agg_dagster/parent_run"] == job.run_id
    assert set(ready.instance.get_dynamic_partitions("period")) == set(everything)
    assert sensor.tick()[0] == []
    for period in everything:
        compose(ready, period)
    missing_or_failed(ready, **ASKED)
    assert sensor.tick()[0] == []
    # A file that is gone, a period that failed, and timestamps published anew.
    (ready.lake.composites.published(MAY).folder / "count.tif").unlink()
    add(ready, TIMES[5], 77)
    ready.aggregate(TIMES[5], **ASKED)
    kept = ready.lake.mosaic(TIMES[0], "B04").read_bytes()
    ready.lake.mosaic(TIMES[0], "B04").unlink()
    assert compose(ready, APRIL).attempt.status == "failed_missing_inputs"
    ready.lake.mosaic(TIMES[0], "B04").write_bytes(kept)
    missing_or_failed(ready, **ASKED)
    assert sensor.tick()[0] == [APRIL, MAY, "2023-07", "2023-Q3"]
    # Periods that nobody asks for are none of its business.
    missing_or_failed(ready, **ON_ONE_GRID)
    assert sensor.tick()[0] == []


def test_what_cannot_be_looked_at_together_is_said(small_lake: SmallLake) -> None:
    """Bands of two pixel sizes, and scenes of which one carries an offset."""
    old = scene(TIMES[1], "T34TFL").replace("N0510", "N0209")
    ids = {TIMES[0]: scene(TIMES[0], "T34TFL"), TIMES[1]: old}
    for seed, scene_id in enumerate(ids.values()):
        for band, size in (("B04", 120), ("B08", 120), ("B11", 60)):
            small_lake.add_tile(scene_id, band, pixels=noise(seed, (size, size)), pixel=12000 // size)
    small_lake.list_rows(*((key, [scene_id]) for key, scene_id in ids.items()))
    bands = {"bands": ["B04", "B08", "B11"]}
    run_asset(small_lake.instance, small_lake.resources(**ASKED | bands), dg.AssetKey("time_serie"))
    for key in ids:
        assert small_lake.aggregate(key, **ASKED | bands).attempt.status == "success"
    found = compose(small_lake, APRIL, composite_method="medoid", **bands).attempt
    assert found.status == "failed_invalid_inputs"
    assert found.message == "B11: composite_method=medoid needs B11 on the pixels of B04; aggregate with match_band"
    found = compose(small_lake, APRIL, ndvi="float32", **bands).attempt
    assert found.message == "B04: NDVI needs to know one radiometric offset of all scenes; aggregate with harmonize"
    assert "NDVI needs" in message_of(small_lake, "mosaics_stack")
    assert compose(small_lake, APRIL, **bands).attempt.status == "success"
    told = message_of(small_lake, "mosaics_stack")
    assert told == "reflectances carry different radiometric offsets; aggregate with harmonize"
    # Without it, they are made anew, and NDVI can be.
    for key in ids:
        small_lake.aggregate(key, **ASKED | bands, harmonize=True)
    assert compose(small_lake, APRIL, ndvi="float32", **bands).attempt.status == "success"
    pixels = composites_of(small_lake, APRIL)
    red, nir = (pixels[band].astype(float) for band in ("B04", "B08"))
    np.testing.assert_allclose(pixels["NDVI"], (nir - red) / (nir + red), rtol=1e-6)
    assert pixels["B11"].shape == (60, 60)


def test_the_report_shows_the_months_of_a_year(ready: SmallLake) -> None:
    assert compose(ready, APRIL).attempt.status == "success"
    assert compose(ready, SPRING).attempt.status == "success"
    ready.tables()
    event = ready.instance.get_latest_materialization_event(REPORT)
    assert event is not None
    assert event.asset_materialization is not None
    shown = str(event.asset_materialization.metadata["year"].value)
    data = base64.b64decode(shown.removeprefix("![picture](data:image/webp;base64,").removesuffix(")"))
    cells = np.array_split(np.asarray(Image.open(io.BytesIO(data)).convert("L")), 3)[2]
    march, april = (np.array_split(cells, 4, axis=1)[column][40:-20, 20:-100] for column in (2, 3))
    assert np.ptp(march) < 10  # grey: there is none
    assert np.ptp(april) > 100
