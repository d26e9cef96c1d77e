"""Sensors, jobs and the schedule, on a real SQLite instance; ``runs/test_dagster_dev.py`` lets a real daemon run them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from thess_agg_dagster.audit.event_log import inputs_observed
from thess_agg_dagster.audit.tables import EVENTS_UP_TO, newest_event
from thess_agg_dagster.definitions import defs
from thess_agg_dagster.defs.checks import details_of
from thess_agg_dagster.defs.environment import LAKE
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.lake_definition import LakeDefinition, Pace
from thess_agg_dagster.defs.sensors.new_rows import time_serie_sensor_of
from thess_agg_dagster.defs.sensors.reports import missing_or_failed_sensor_of, report_sensor_of
from thess_agg_dagster.defs.sensors.tiles import changed_inputs_sensor_of, late_tiles_sensor_of
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, HERE, RAW_TILES, REPORT, TIME_SERIE, VERIFICATION
from thess_agg_dagster.mosaic.plan import plan_mosaics
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster.runs.instance import UNFINISHED, claim_run, fail_abandoned_runs, process_tags
from thess_agg_dagster.timestamp import plan as timestamp_plan
from thess_agg_dagster_tests.conftest import FIRST, SECOND, THIRD, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.rasters import noise

HASTE = Pace(settle_seconds=0)


class Sensor:
    """A sensor as the daemon ticks it: keeps the cursor, launches a run key once, registers partitions.

    Files of a test are as young as the test; only where it matters must they settle.
    """

    def __init__(
        self, sensor_of: Callable[[LakeDefinition], dg.SensorDefinition], lake: SmallLake, pace: Pace = HASTE
    ) -> None:
        self.sensor_of, self.lake, self.pace = sensor_of, lake, pace
        self.cursor: str | None = None
        self.run_keys: set[str | None] = set()
        self.requests: dict[str, dg.RunRequest] = {}

    def tick(self) -> tuple[list[str], str]:
        """Partition keys launched ("" for an unpartitioned asset) and the reason for launching none."""
        resources: dict[str, Any] = {
            "io_manager": DataLakeIOManager(data_lake=str(self.lake.root)),
            "params": TimestampsAggregationParams(),
        }
        sensor = self.sensor_of(replace(LAKE, pace=self.pace))
        needed = {name: resources[name] for name in sensor.required_resource_keys}
        with dg.build_sensor_context(self.lake.instance, self.cursor, resources=needed, definitions=defs) as context:
            found = sensor(context)
        if isinstance(found, dg.SkipReason):
            self.cursor = context.cursor or None  # as the daemon does
            return [], str(found.skip_message)
        assert isinstance(found, dg.SensorResult)
        for event in found.asset_events:
            self.lake.instance.report_runless_asset_event(event)
        self.cursor = found.cursor or context.cursor
        for added in found.dynamic_partitions_requests or ():
            self.lake.instance.add_dynamic_partitions(added.partitions_def_name, list(added.partition_keys))
        new = [request for request in found.run_requests or () if request.run_key not in self.run_keys]
        self.run_keys |= {request.run_key for request in new}
        self.requests |= {request.partition_key or "": request for request in new}
        reason = str(found.skip_reason.skip_message) if found.skip_reason else ""
        return [request.partition_key or "" for request in new], reason


@pytest.fixture
def ready(small_lake: SmallLake) -> SmallLake:
    """Two timestamps, the second without one of its tiles."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, small_lake.add_timestamp(SECOND)))
    tile_of(small_lake, SECOND).unlink()
    return small_lake


def tile_of(lake: SmallLake, timestamp: str, band: str = "B08") -> Path:
    (scene,) = (path.parent for path in lake.root.glob(f"cache/s2/*{timestamp[:10].replace('-', '')}*T34TFL*/B04.tif"))
    return scene / f"{band}.tif"


def test_a_new_list_registers_and_launches_its_timestamps_once(ready: SmallLake) -> None:
    sensor = Sensor(time_serie_sensor_of, ready)
    assert sensor.tick() == (["", FIRST, SECOND], "")
    assert set(ready.instance.get_dynamic_partitions("timestamp")) == {FIRST, SECOND}
    assert sensor.tick() == ([], f"{ready.lake.time_serie} has not changed")


@in_folder_and_bucket
def test_only_new_and_changed_rows_are_launched(ready: SmallLake) -> None:
    sensor = Sensor(time_serie_sensor_of, ready)
    sensor.tick()
    ready.read_list()
    for key in (FIRST, SECOND):
        ready.aggregate(key)
    ids = ready.add_timestamp(THIRD)
    rows = [(FIRST, ready.add_timestamp(FIRST)), (SECOND, ready.add_timestamp(SECOND)), (THIRD, ids)]
    ready.list_rows(*rows)
    written = ready.lake.time_serie.stat().st_mtime
    assert sensor.tick()[0] == ["", THIRD]
    ready.aggregate(THIRD)
    # Fewer tiles of the first, the second gone.
    ready.list_rows((FIRST, rows[0][1][:1]), (THIRD, ids))
    assert sensor.tick()[0] == ["", FIRST]
    ready.aggregate(FIRST)
    # And back: the same tiles as once, but not as the last time. (A bucket tells times in whole seconds.)
    ready.list_rows(*rows)
    while ready.lake.time_serie.stat().st_mtime == written:
        time.sleep(0.1)
        ready.list_rows(*rows)
    assert sensor.tick()[0] == ["", FIRST]


def test_a_reset_cursor_launches_nothing_twice(ready: SmallLake) -> None:
    sensor = Sensor(time_serie_sensor_of, ready)
    sensor.tick()
    sensor.cursor = None  # before the runs left anything
    assert sensor.tick()[0] == []
    ready.aggregate(FIRST)
    ready.aggregate(SECOND)
    sensor.cursor = None
    assert sensor.tick()[0] == []


def test_a_replaced_list_with_the_same_time_is_noticed(ready: SmallLake) -> None:
    sensor = Sensor(time_serie_sensor_of, ready)
    sensor.tick()
    before = ready.lake.time_serie.stat()
    text = ready.lake.time_serie.read_text().replace("2023-02-02 09:21:09", "2023-02-02 09:21:08")
    new = ready.root / "new.csv"
    new.write_text(text)
    new.replace(ready.lake.time_serie)
    os.utime(ready.lake.time_serie, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = ready.lake.time_serie.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert sensor.tick()[0] == ["", FIRST.replace("09:21:09", "09:21:08")]


def test_a_list_in_the_making_or_unusable_waits_and_is_looked_at_again(
    ready: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(time_serie_sensor_of, ready)
    good = ready.lake.time_serie.read_text()
    ready.lake.time_serie.unlink()
    assert "no such file yet" in sensor.tick()[1]
    assert ready.checks(TIME_SERIE) == {}
    ready.lake.time_serie.write_text("acq_date,tiles\n")
    assert "lacks the column" in sensor.tick()[1]
    assert "lacks the column" in str(ready.checks(TIME_SERIE)["schema"].description)
    assert "is unusable, and has not changed" in sensor.tick()[1]
    ready.lake.time_serie.write_text(good[:60])
    sensor.pace = Pace(settle_seconds=0.5)
    assert "may not be complete" in sensor.tick()[1]
    ready.lake.time_serie.write_text(good)
    time.sleep(0.6)
    assert sensor.tick()[0] == ["", FIRST, SECOND]


def test_an_unusable_list_fails_its_check_once_for_each_state(ready: SmallLake) -> None:
    """Where an alert can see it; a list that is good again passes, and is looked at as before."""
    sensor, path = Sensor(time_serie_sensor_of, ready), ready.lake.time_serie
    good = path.read_text()
    assert sensor.tick()[0] == ["", FIRST, SECOND]
    ready.read_list()
    path.write_bytes(b"\xff\xfe garbage")
    sensor.tick()
    path.unlink()
    for _ in range(3):
        sensor.tick()
    failed = ready.instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
    found = [record.event_log_entry.dagster_event.asset_check_evaluation_data for record in failed]  # type: ignore[union-attr]
    said = [check.description for check in found if not check.passed]
    assert ["is gone" in str(said[0]), "cannot be read" in str(said[1]), len(said)] == [True, True, 2]
    path.write_text(good)
    assert sensor.tick()[0] == [""]  # nothing but the list itself: it has changed
    ready.read_list()
    assert ready.checks(TIME_SERIE)["schema"].passed


def test_a_long_list_is_launched_over_several_ticks(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"2024-01-01 00:00:{second:02d}" for second in range(7)]
    ready.list_rows(*((key, ["A"]) for key in keys))
    sensor = Sensor(time_serie_sensor_of, ready, replace(HASTE, most_runs=3))
    assert [sensor.tick()[0] for _ in range(4)] == [["", *keys[:3]], keys[3:6], keys[6:], []]


def test_a_long_list_is_looked_through_over_several_ticks(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tick reads more attempts than Dagster has patience for; the last row is found as well."""
    keys = [f"2024-01-01 00:00:{second:02d}" for second in range(5)]
    ready.list_rows(*((key, ["A"]) for key in keys))
    sensor = Sensor(time_serie_sensor_of, ready, replace(HASTE, most_attempts=2))
    assert [sensor.tick()[0] for _ in range(4)] == [["", *keys[:2]], keys[2:4], keys[4:], []]
    ready.read_list()
    for key in keys:
        ready.aggregate(key)
    ready.list_rows(*((key, ["A"]) for key in keys[:4]), (keys[4], ["B"]))
    assert [sensor.tick()[0] for _ in range(4)] == [[""], [], keys[4:], []]


@in_folder_and_bucket
def test_late_tiles_are_noticed_once(ready: SmallLake) -> None:
    sensor = Sensor(late_tiles_sensor_of, ready)
    assert sensor.tick() == ([], "No timestamp waits for tiles")
    ready.read_list()
    ready.aggregate(FIRST)
    assert ready.aggregate(SECOND).attempt.status == "failed_missing_inputs"
    for _ in range(2):
        assert sensor.tick() == ([], "1 timestamps wait for tiles")
    # An error page instead of the tile: launched, and it fails for that; then the tile itself.
    tile_of(ready, SECOND).write_text("<html>")
    assert sensor.tick()[0] == [SECOND]
    assert sensor.tick()[0] == []
    assert ready.aggregate(SECOND).attempt.status == "failed_invalid_inputs"
    assert sensor.tick()[0] == []
    ready.add_timestamp(SECOND)
    assert sensor.tick()[0] == [SECOND]
    assert ready.aggregate(SECOND).attempt.status == "success"
    assert sensor.tick() == ([], "No timestamp waits for tiles")


def test_only_new_failures_are_read_and_the_others_still_wait(
    ready: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_of(ready, FIRST).unlink()
    sensor = Sensor(late_tiles_sensor_of, ready, replace(HASTE, look_back=0))
    ready.read_list()
    for number, key in enumerate((FIRST, SECOND), 1):
        ready.aggregate(key)
        assert sensor.tick() == ([], f"{number} timestamps wait for tiles")
    ready.list_rows((FIRST, []), (SECOND, ready.add_timestamp(SECOND)))
    assert ready.aggregate(FIRST).attempt.status == "failed_no_tiles"  # for which other tiles are no help
    assert sensor.tick()[0] == [SECOND]
    assert sensor.tick() == ([], "No timestamp waits for tiles")


def test_many_failures_are_read_over_several_ticks(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    tile_of(ready, FIRST).unlink()
    ready.read_list()
    for key in (SECOND, FIRST):
        ready.aggregate(key)
    sensor = Sensor(late_tiles_sensor_of, ready, replace(HASTE, look_back=0, most_attempts=1))
    assert [sensor.tick()[1] for _ in range(3)] == [f"{number} timestamps wait for tiles" for number in (1, 2, 2)]


def test_scl_that_masks_is_waited_for_as_well(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THESS_BANDS", "B04")
    monkeypatch.setenv("THESS_MASK_SCL_CLASSES", "8,9")
    ready.add_timestamp(SECOND)
    scl = tile_of(ready, SECOND).with_name("SCL.tif")
    pixels = scl.read_bytes()
    scl.unlink()
    ready.read_list()
    found = ready.aggregate(SECOND, bands=["B04"], mask_scl_classes=[8, 9]).attempt
    assert found.status == "failed_missing_inputs"
    sensor = Sensor(late_tiles_sensor_of, ready)
    assert sensor.tick()[0] == []
    scl.write_bytes(pixels)
    assert sensor.tick()[0] == [SECOND]


@in_folder_and_bucket
def test_what_changed_is_stale_and_nothing_else(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the UI asks Dagster for it."""

    def stale() -> dict[str, bool]:
        with dg.build_sensor_context(ready.instance, definitions=defs) as context:
            assert context.repository_def is not None
            graph = context.repository_def.asset_graph
            resolver = CachingStaleStatusResolver(ready.instance, graph, LoadingContextForTest(ready.instance))
            return {key: resolver.get_status(AGGREGATED, key).value == "STALE" for key in (FIRST, SECOND)}

    def told(key: str) -> object:
        where = dg.AssetRecordsFilter(RAW_TILES, asset_partitions=[key])
        (record,) = ready.instance.fetch_observations(where, limit=1).records
        event = record.event_log_entry.dagster_event
        assert event is not None
        observed = event.asset_observation_data.asset_observation
        assert observed.description == observed.metadata["changed"].value
        return observed.description

    ready.add_timestamp(SECOND)
    ready.read_list()
    sensor = Sensor(changed_inputs_sensor_of, ready)
    for key in (FIRST, SECOND):
        ready.aggregate(key)
    assert sensor.tick() == ([], "0 published timestamps are stale")
    ready.read_list()  # reading the list again changes nothing
    assert stale() == {FIRST: False, SECOND: False}
    ready.add_tile(scene(SECOND, "T34TFL"), "B04", pixels=noise(77, (120, 120)))
    sensor.tick()
    assert stale() == {FIRST: False, SECOND: True}
    assert told(SECOND) == "tiles: files, checksums or STAC items have changed"
    assert sensor.tick() == ([], "1 published timestamps are stale")  # told once
    ready.aggregate(SECOND)
    sensor.tick()
    assert stale() == {FIRST: False, SECOND: False}
    monkeypatch.setenv("THESS_MERGE_METHOD", "max")
    sensor.tick()
    assert stale() == {FIRST: True, SECOND: True}
    assert told(FIRST) == told(SECOND) == "merge_method: default -> max"  # the UI: "cache/s2 has a new data version"
    for key in (FIRST, SECOND):
        ready.aggregate(key, merge_method="max")
    sensor.tick()
    assert stale() == {FIRST: False, SECOND: False}


def test_what_changed_is_looked_for_a_few_at_a_tick(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.add_timestamp(SECOND)
    ready.read_list()
    for key in (FIRST, SECOND):
        ready.aggregate(key)
    sensor = Sensor(changed_inputs_sensor_of, ready, replace(HASTE, most_attempts=1))
    tile = tile_of(ready, SECOND)
    tile.write_bytes(tile.read_bytes())
    said = [sensor.tick()[1] for _ in range(4)]
    stale = "1 published timestamps are stale"
    new = "1 published timestamps became stale, 1 are"
    assert said == ["0 published timestamps are stale", new, stale, stale]  # told once, at the second
    ready.aggregate(SECOND)
    assert [sensor.tick()[1] for _ in range(2)][1] == "0 published timestamps are stale"


def test_a_tile_still_being_written_is_waited_for(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.read_list()
    ready.aggregate(SECOND)
    sensor = Sensor(late_tiles_sensor_of, ready, Pace(settle_seconds=0.5))
    ready.add_timestamp(SECOND)
    assert sensor.tick()[0] == []
    time.sleep(0.6)
    assert sensor.tick()[0] == [SECOND]


def test_what_someone_else_repaired_is_not_launched(ready: SmallLake) -> None:
    ready.read_list()
    ready.aggregate(SECOND)
    sensor = Sensor(late_tiles_sensor_of, ready)
    sensor.tick()
    ready.add_timestamp(SECOND)
    ready.aggregate(SECOND)
    assert sensor.tick() == ([], "No timestamp waits for tiles")


def test_a_row_that_was_edited_is_for_the_other_sensor(ready: SmallLake) -> None:
    late, listed = Sensor(late_tiles_sensor_of, ready), Sensor(time_serie_sensor_of, ready)
    listed.tick()
    ready.read_list()
    ready.aggregate(FIRST)
    ready.aggregate(SECOND)
    ready.list_rows((FIRST, ready.add_timestamp(FIRST)), (SECOND, ready.add_timestamp(SECOND)[:1]))
    assert (late.tick()[0], listed.tick()[0]) == ([], ["", SECOND])


def test_a_tile_that_lands_while_its_run_plans_is_late(ready: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.read_list()
    plan = plan_mosaics

    def landing(*args: Any) -> Any:
        try:
            return plan(*args)
        finally:
            ready.add_timestamp(SECOND)

    monkeypatch.setattr(timestamp_plan, "plan_mosaics", landing)
    assert ready.aggregate(SECOND, bands=["B08"]).attempt.status == "failed_missing_inputs"
    assert Sensor(late_tiles_sensor_of, ready).tick()[0] == [SECOND]


def test_the_report_follows_successes_failures_and_killed_runs_and_waits_for_the_busy(ready: SmallLake) -> None:
    sensor = Sensor(report_sensor_of, ready)
    assert sensor.tick() == ([], "Nothing new to report")
    ready.read_list()
    ready.aggregate(FIRST)
    job = defs.resolve_implicit_global_asset_job_def()
    busy = ready.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert "1 runs are not finished" in sensor.tick()[1]
    ready.instance.delete_run(busy.run_id)
    assert sensor.tick()[0] == [""]
    assert sensor.tick()[0] == []  # asked for, and not yet there
    ready.tables()
    assert sensor.tick() == ([], "Nothing new to report")
    ready.aggregate(SECOND)  # fails
    assert sensor.tick()[0] == [""]
    ready.tables()
    # Something happens while the report is being written.
    report = newest_event(ready.instance, HERE)
    ready.aggregate(SECOND)
    run_report_that_knew_only(ready, report)
    assert sensor.tick()[0] == [""]
    ready.tables()
    # A report that failed is no news for the next one.
    failed_report = ready.instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, asset_selection=frozenset([REPORT])
    )
    ready.instance.report_run_failed(failed_report)
    assert sensor.tick() == ([], "Nothing new to report")
    # A run that ends without a word.
    killed = ready.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    ready.instance.report_run_failed(killed)
    assert sensor.tick()[0] == [""]


def run_report_that_knew_only(lake: SmallLake, event: int) -> None:
    lake.instance.report_runless_asset_event(dg.AssetMaterialization(REPORT, metadata={EVENTS_UP_TO: event}))


def test_the_run_of_a_process_that_is_gone_keeps_nobody_waiting(ready: SmallLake) -> None:
    sensor = Sensor(report_sensor_of, ready)
    ready.read_list()
    ready.aggregate(FIRST)
    job = defs.resolve_implicit_global_asset_job_def()
    zombie = ready.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    gone = subprocess.run(
        [sys.executable, "-c", "from thess_agg_dagster.runs.instance import *; print(process_tags())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ready.instance.add_run_tags(zombie.run_id, ast.literal_eval(gone.stdout))
    assert sensor.tick()[0] == [""]
    ended = ready.instance.get_run_by_id(zombie.run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.FAILURE
    # Its retry has its tags, until the process that executes it puts its own.
    family: dict[str, Any] = {"parent_run_id": zombie.run_id, "root_run_id": zombie.run_id, "tags": ended.tags}
    retry = ready.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, **family)
    fail_abandoned_runs(ready.instance)
    assert [run.run_id for run in ready.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))] == [retry.run_id]
    claim_run(ready.instance, retry)
    claimed = ready.instance.get_run_by_id(retry.run_id)
    assert claimed is not None
    assert dict(claimed.tags) == {**ended.tags, **process_tags()} != ended.tags
    other = {name: tag.replace(":", ":9999999", 1) for name, tag in process_tags().items()}
    ready.instance.add_run_tags(retry.run_id, other)  # killed, too
    fail_abandoned_runs(ready.instance)
    assert not ready.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))


def test_a_report_written_by_the_command_is_not_written_again(ready: SmallLake) -> None:
    ready.read_list()
    ready.aggregate(FIRST)
    ready.tables()
    sensor = Sensor(report_sensor_of, ready)
    assert sensor.tick() == ([], "Nothing new to report")
    job = defs.resolve_implicit_global_asset_job_def()
    ready.instance.report_run_failed(ready.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED))
    assert sensor.tick()[0] == [""]  # a run that was killed meanwhile


def test_what_becomes_stale_is_reported_where_somebody_is_told(
    ready: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(report_sensor_of, ready)
    ready.read_list()
    ready.tables()
    ready.instance.report_runless_asset_event(inputs_observed(HERE, FIRST, "other", [], "a tile"))
    assert sensor.tick() == ([], "Nothing new to report")  # the tables would say the same
    monkeypatch.setenv("THESS_WEBHOOK_URL", "http://127.0.0.1:9/nobody-there")
    assert sensor.tick()[0] == [""]
    run_asset(ready.instance, ready.resources(), REPORT)
    assert sensor.tick() == ([], "Nothing new to report")


def test_tables_that_are_gone_or_not_those_of_the_report_are_written_again(ready: SmallLake) -> None:
    sensor = Sensor(report_sensor_of, ready)
    ready.read_list()
    assert sensor.tick()[0] == [""]
    ready.tables()
    assert sensor.tick() == ([], "Nothing new to report")
    good = {path: path.read_bytes() for path in map(ready.lake.audit_table, ("status", "summary", "band_report"))}
    summary = ready.lake.audit_table("summary")
    for broken in (None, b"timestamp,success\n", None):  # gone; those of another lake; gone again
        summary.unlink()
        if broken:
            summary.write_bytes(broken)
        assert [sensor.tick()[0] for _ in range(2)] == [[""], []]
        ready.tables()
        assert sensor.tick() == ([], "Nothing new to report")
    assert {path: path.read_bytes() for path in good} == good
    summary.write_bytes(good[summary])  # touched, and the same
    assert sensor.tick() == ([], "Nothing new to report")


def test_rows_that_vanish_lose_nothing_and_are_told(ready: SmallLake) -> None:
    ready.add_timestamp(SECOND)
    ready.read_list()
    ready.aggregate(FIRST)
    ready.aggregate(SECOND)
    before = ready.lake.mosaic(FIRST, "B04").read_bytes()
    ready.list_rows((SECOND, ready.add_timestamp(SECOND)))
    assert Sensor(time_serie_sensor_of, ready).tick()[0] == [""]
    ready.read_list()
    status = ready.tables()["status"].set_index("timestamp")
    assert status["listed"].to_dict() == {FIRST: "False", SECOND: "True"}
    assert status.loc[FIRST, "status"] == "success"
    assert str(status.loc[FIRST, "message"]).startswith("no longer in time_serie.csv (files on disk stay)")
    assert ready.lake.mosaic(FIRST, "B04").read_bytes() == before
    # A list that cannot be used says nothing about what vanished from it.
    ready.lake.time_serie.write_text("rubbish\n")
    assert set(ready.tables()["status"]["listed"]) == {"True"}


def test_everything_missing_or_failed_is_launched_once_with_the_parameters_of_the_job(
    ready: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(missing_or_failed_sensor_of, ready)
    assert sensor.tick() == ([], "No run of missing_or_failed has found anything since")
    ready.read_list()
    ready.aggregate(FIRST)
    # The second failed, the third is new. They come over two ticks.
    ready.aggregate(SECOND)
    rows = [(FIRST, ready.add_timestamp(FIRST)), (SECOND, []), (THIRD, ready.add_timestamp(THIRD))]
    ready.list_rows(*rows)
    sensor.pace = replace(HASTE, most_runs=1)
    job = missing_or_failed(ready, compress="zstd")
    assert [sensor.tick()[0] for _ in range(3)] == [["", FIRST], [SECOND], [THIRD]]
    assert set(ready.instance.get_dynamic_partitions("timestamp")) == {FIRST, SECOND, THIRD}
    assert sensor.requests[FIRST].run_config == {"resources": ready.resources(compress="zstd")}
    assert sensor.requests[FIRST].tags["thess_agg_dagster/parent_run"] == job.run_id
    assert "missing or failed" in sensor.requests[FIRST].tags.values()
    assert sensor.tick()[0] == []
    # What is queued already is not launched again; what has succeeded is not due.
    ready.aggregate(FIRST)
    defined = defs.resolve_implicit_global_asset_job_def()
    ready.instance.create_run_for_job(
        defined,
        asset_selection=frozenset([AGGREGATED]),
        tags={"dagster/partition": SECOND},
        status=dg.DagsterRunStatus.STARTED,
    )
    missing_or_failed(ready)
    assert [sensor.tick()[0] for _ in range(2)] == [["", THIRD], []]


def missing_or_failed(lake: SmallLake, **params: Any) -> dg.ExecuteInProcessResult:
    job = defs.resolve_job_def("missing_or_failed")
    result = job.execute_in_process(instance=lake.instance, run_config={"resources": lake.resources(**params)})
    assert result.success
    return result


@in_folder_and_bucket
def test_published_mosaics_are_checked_against_what_was_recorded(ready: SmallLake) -> None:
    ready.read_list()
    ready.aggregate(FIRST)
    run_asset(ready.instance, ready.resources(), VERIFICATION)
    assert ready.checks(VERIFICATION)["unchanged"].passed
    rotten, lost, swapped = (ready.lake.mosaic(FIRST, band) for band in ("B04", "B08", "SCL"))
    rotten.write_bytes(rotten.read_bytes()[:-1])
    lost.unlink()
    data = bytearray(swapped.read_bytes())
    data[:4] = b"JUNK"
    swapped.write_bytes(data)
    # A later failure does not hide what is published.
    tile_of(ready, FIRST).unlink()
    ready.aggregate(FIRST)
    run_asset(ready.instance, ready.resources(), VERIFICATION)
    check = ready.checks(VERIFICATION)["unchanged"]
    details = details_of(check.metadata)
    assert not check.passed
    assert [path.name in line for path, line in zip((rotten, lost, swapped), details, strict=True)] == [True] * 3
    assert "bytes" in details[0]
    assert "cannot be found" in details[1]
    assert "cannot be opened" in details[2]


def test_what_runs_by_itself_and_what_does_not() -> None:
    sensors = {sensor.name: sensor for sensor in defs.sensors or ()}
    assert {name: sensor.default_status for name, sensor in sensors.items()} == dict.fromkeys(
        (
            "time_serie_sensor",
            "late_tiles_sensor",
            "changed_inputs_sensor",
            "missing_or_failed_sensor",
            "missing_or_failed_periods_sensor",
            "composites_sensor",
            "report_sensor",
        ),
        dg.DefaultSensorStatus.RUNNING,
    )
    schedules = list(defs.schedules or ())
    assert {schedule.name for schedule in schedules} == {"verify_published_schedule", "update_catalogue_schedule"}
    assert {schedule.default_status for schedule in schedules} == {dg.DefaultScheduleStatus.STOPPED}
    assert {TIME_SERIE, AGGREGATED, COMPOSITES, REPORT, VERIFICATION} <= {
        spec.key for spec in defs.resolve_all_asset_specs()
    }
