"""A fleet for real: Postgres, Redis, code servers, webserver, daemon and workers, and what happens when they die."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import dagster as dg
import numpy as np
import psutil
import pytest
import rasterio.merge
import sqlalchemy

from thess_agg_dagster.audit.event_log import latest_successes
from thess_agg_dagster.keys import AGGREGATED, TIME_SERIE
from thess_agg_dagster.lake.checksums import checksum_of
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.runs.databases import opened
from thess_agg_dagster.runs.fleet import ONLY_LAKE
from thess_agg_dagster.runs.instance import PROCESS_TAG, UNFINISHED
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SmallLake, scene
from thess_agg_dagster_tests.rasters import noise, read
from thess_agg_dagster_tests.services import Fleet, Service, fleet

pytestmark = [pytest.mark.fleet]

QUEUED, STARTED = dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED
SUCCESS, FAILURE, CANCELED = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED

# Stopped where only backfills are to launch timestamps; the report still comes by itself.
LAUNCHING = ("time_serie_sensor", "late_tiles_sensor")


def impatient(profile: dict[str, Any]) -> None:
    """The shipped profile, for people who wait."""
    profile["run_launcher"]["config"]["patience_seconds"] = 4
    profile["run_coordinator"]["config"]["user_code_failure_retry_delay"] = 2
    profile["run_monitoring"] |= {"poll_interval_seconds": 2, "start_timeout_seconds": 90}


@pytest.fixture(scope="module")
def one_lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SmallLake, Fleet]]:
    """A fleet of one lake, which several tests share: it takes longer to start than they take."""
    folder = tmp_path_factory.mktemp("one-lake")
    with fleet(folder / "fleet", impatient) as opened:
        lake = SmallLake(folder / "lake", opened.instance)
        opened.start_dagster("workspace.yaml", {ONLY_LAKE: environment(lake)}, LAUNCHING)
        yield lake, opened


def environment(lake: SmallLake, **more: str) -> dict[str, str]:
    return {"DATA_LAKE": str(lake.root), "THESS_SENSOR_SECONDS": "8"} | more


def timestamps(count: int, day: int = 1) -> list[str]:
    return [f"2024-01-{day:02d} 00:00:{number:02d}" for number in range(count)]


def add_timestamp(lake: SmallLake, timestamp: str, seed: int) -> list[str]:
    """Two tiles of one zone that overlap by half, with pixels that no other timestamp has."""
    ids = [scene(timestamp, "T34TFL"), scene(timestamp, "T34TGL")]
    for number, scene_id in enumerate(ids):
        for band in BANDS:
            step = 2 if band == "SCL" else 1
            pixels = noise(seed * 1000 + number * 100 + ord(band[-1]), (120 // step, 120 // step), high=200)
            options: dict[str, Any] = {"pixel": 100 * step, "corner": (690000 + number * 6000, 4500000)}
            lake.add_tile(scene_id, band, pixels=pixels.astype("uint8" if band == "SCL" else "uint16"), **options)
    return ids


def check_published(lake: DataLake, timestamp: str, scene_ids: list[str]) -> None:
    """A whole set, as the manifest says, with the pixels that rasterio makes of its tiles."""
    folder = lake.timestamp_folder(timestamp)
    names = sorted([*(f"{band}.tif" for band in BANDS), "manifest.json", "quicklook.jpg"])
    assert sorted(path.name for path in folder.iterdir()) == names
    manifest = json.loads(lake.manifest(timestamp).read_text())
    found = {output["file"]: output["checksum"] for output in manifest["outputs"]}
    assert found == {f"{band}.tif": str(checksum_of(folder / f"{band}.tif")) for band in BANDS}
    for band in BANDS:
        expected, _ = rasterio.merge.merge([lake.tile(scene_id, band) for scene_id in scene_ids])
        np.testing.assert_array_equal(read(lake.mosaic(timestamp, band)), expected[0])


def pids_of(worker: Service) -> set[str]:
    return {str(child.pid) for child in psutil.Process(worker.process.pid).children(recursive=True)}


def executed_in(run: dg.DagsterRun) -> str:
    return run.tags.get(PROCESS_TAG, "::").split(":")[1]


def read_list(services: Fleet) -> None:
    run_id = services.materialize(TIME_SERIE)
    services.wait_until(lambda: services.status(run_id) == SUCCESS)


def launches_again(services: Fleet) -> bool:
    """Whether the webserver answers. (Connections that broke when the database restarted are noticed when they are used, which
    costs a request each.)"""
    try:
        return bool(services.materialize(TIME_SERIE))
    except HTTPError:
        return False


def test_a_backfill_in_which_everything_dies_once(one_lake: tuple[SmallLake, Fleet]) -> None:
    small_lake, services = one_lake
    lake, given, keys = small_lake.lake, environment(small_lake), timestamps(20)
    ids = {key: add_timestamp(small_lake, key, number) for number, key in enumerate(keys)}
    one = services.start_worker("one", given)
    two = services.start_worker("two", given)
    small_lake.list_rows(*ids.items())
    read_list(services)
    backfill_id = services.backfill(keys)
    backfill = {"dagster/backfill": backfill_id}

    def succeeded() -> int:
        return len(services.runs(SUCCESS, tags=backfill))

    def work_of_two() -> list[dg.DagsterRun]:
        return [run for run in services.runs(STARTED) if executed_in(run) in pids_of(two)]

    services.wait_until(lambda: succeeded() >= 2)
    lost: list[dg.DagsterRun] = []
    while not lost:  # a run may end just before the kill
        services.wait_until(lambda: bool(work_of_two()))
        doomed = work_of_two()
        services.stop(two, signal.SIGKILL)  # with its children, as when a machine is lost
        lost = [run for run in doomed if services.status(run.run_id) == STARTED]
        two = services.start_worker("two", given)

    services.wait_until(lambda: succeeded() >= 5)
    services.restart_redis()
    services.wait_until(lambda: succeeded() >= 8)
    # Dagster's daemon forgets a retry if the database goes away just when it launches it.
    services.wait_until(
        lambda: {run.run_id for run in lost} <= {run.parent_run_id for run in services.runs(tags=backfill)}
    )
    services.wait_until(lambda: bool(services.runs(STARTED)))
    services.restart_postgres(signal.SIGQUIT)  # "immediate": nobody is told, and it recovers when it starts

    services.wait_until(lambda: len(latest_successes(services.instance, AGGREGATED)) == len(keys))
    # No run of a backfill that ended is retried any more.
    services.wait_until(lambda: services.backfill_status(backfill_id).startswith("COMPLETED"))
    services.wait_until(lambda: not services.runs(*UNFINISHED))
    status = lake.audit_table("status")
    services.wait_until(lambda: status.exists() and status.read_text().count(",success,") == len(keys))

    # Every timestamp is whole, and right.
    for key in keys:
        check_published(lake, key, ids[key])
    assert list(lake.staging.iterdir()) == []
    # The killed run was told, and retried.
    for run in lost:
        assert services.status(run.run_id) == FAILURE
        assert any(each.parent_run_id == run.run_id for each in services.runs(tags=backfill))
    # None was published twice, but where Dagster was told that the first time had failed (the database went away while
    # it wrote the event down).
    made = services.instance.fetch_materializations(AGGREGATED, limit=1000).records
    successful = {run.run_id for run in services.runs(SUCCESS, tags=backfill)}
    assert {record.partition_key for record in made} == set(keys)
    assert set(Counter(r.partition_key for r in made if r.run_id in successful).values()) == {1}
    again = [record for record in made if record.run_id not in successful]
    assert {services.status(record.run_id) for record in again} <= {FAILURE}, services.story()
    assert len(again) <= 2  # as many as were at work then
    # The tables tell of all of it.
    tables = small_lake.tables_on_disk()
    assert dict(tables["status"][["timestamp", "status"]].to_numpy().tolist()) == dict.fromkeys(keys, "success")
    assert len(tables["summary"]) == len(keys)
    assert tables["band_report"]["status"].tolist() == ["success"] * 3 * len(keys)
    latest = {key: found.run_id for key, found in latest_successes(services.instance, AGGREGATED).items()}
    assert dict(tables["status"][["timestamp", "run_id"]].to_numpy().tolist()) == latest
    for worker in (one, two):
        services.stop(worker, signal.SIGKILL)


def test_what_is_stopped_and_what_goes_on(one_lake: tuple[SmallLake, Fleet]) -> None:
    small_lake, services = one_lake
    lake, given, keys = small_lake.lake, environment(small_lake), timestamps(3, day=2)
    ids = {key: add_timestamp(small_lake, key, number) for number, key in enumerate(keys)}
    small_lake.list_rows((FIRST, small_lake.add_slow_timestamp(FIRST, (3000, 3000))))
    services.wait_until(lambda: launches_again(services))
    worker = services.start_worker("alone", given)
    read_list(services)

    of_first = {"dagster/partition": FIRST}

    def at_work() -> dg.DagsterRun:
        """The run of the slow timestamp, when it is in the middle of it."""
        services.backfill([FIRST])
        services.wait_until(lambda: lake.staging.is_dir() and any(lake.staging.iterdir()))
        (run,) = services.runs(STARTED, tags=of_first)
        return run

    def retried() -> list[dg.DagsterRun]:
        return [run for run in services.runs(tags=of_first) if run.parent_run_id]

    # Stopped in the UI: at once, for good, and without a trace. The worker goes on.
    stopped = at_work()
    assert services.terminate(stopped.run_id) == "TerminateRunSuccess"
    services.wait_until(lambda: services.status(stopped.run_id) == CANCELED, 30)
    assert list(lake.staging.iterdir()) == []
    assert not lake.timestamp_folder(FIRST).exists()

    # A worker that is told to end finishes its run first, however long it is silent meanwhile.
    finished = at_work()
    services.services.remove(worker)
    worker.end(signal.SIGTERM, 120)
    assert worker.process.returncode == 0
    assert services.status(finished.run_id) == SUCCESS
    assert not retried()

    # A machine that shuts down tells all processes: the run is retried elsewhere.
    shutil.rmtree(lake.timestamp_folder(FIRST))
    worker = services.start_worker("second", given)
    interrupted = at_work()
    services.services.remove(worker)
    os.killpg(worker.process.pid, signal.SIGTERM)
    worker.process.wait(60)
    assert services.status(interrupted.run_id) == FAILURE
    worker = services.start_worker("third", given)
    services.wait_until(lambda: any(run.status == SUCCESS for run in retried()))
    (again,) = (run for run in retried() if run.status == SUCCESS)
    assert again.root_run_id == interrupted.run_id
    assert executed_in(again) in pids_of(worker)

    # Without Redis runs wait, and none fails.
    small_lake.list_rows(*ids.items())
    read_list(services)
    before = len(services.runs(FAILURE))
    services.stop(services.redis)
    services.backfill(keys)
    services.wait_until(lambda: "Redis cannot be reached" in services.daemon.log.read_text())
    services.wait_until(lambda: len(services.runs(QUEUED)) == len(keys))
    services.start_redis()
    services.wait_until(lambda: set(keys) <= set(latest_successes(services.instance, AGGREGATED)))
    assert len(services.runs(FAILURE)) == before, services.story()

    # What the job finds goes through the queue to the workers, too.
    shutil.rmtree(lake.timestamp_folder(keys[0]))
    everything = services.launch("missing_or_failed")
    launched = {"thess_agg_dagster/parent_run": everything, "dagster/partition": keys[0]}
    services.wait_until(lambda: bool(services.runs(SUCCESS, tags=launched)))
    (found,) = services.runs(tags=launched)
    assert executed_in(found) in pids_of(worker)
    for key in keys:
        check_published(lake, key, ids[key])


@pytest.mark.parametrize("who", ["daemon", "command"])
def test_connections_are_kept_and_made_anew_when_they_break(
    who: str, one_lake: tuple[SmallLake, Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are storages (runs, events, sensors), however much is asked."""
    _, services = one_lake
    for name in ("THESS_POSTGRES_URL", "THESS_REDIS_URL"):
        monkeypatch.setenv(name, services.environment[name])
    server = sqlalchemy.create_engine(services.environment["THESS_POSTGRES_URL"])
    monkeypatch.setenv("PGAPPNAME", who)
    known = f"FROM pg_stat_activity WHERE application_name = '{who}' AND pid != pg_backend_pid()"

    def ask(instance: dg.DagsterInstance) -> None:
        instance.get_runs_count()
        instance.get_dynamic_partitions("timestamp")
        instance.all_instigator_state()

    def backends() -> set[int]:
        """The server's processes for the instance."""
        with server.connect() as connection:
            return set(connection.execute(sqlalchemy.text(f"SELECT pid {known}")).scalars())

    with dg.DagsterInstance.from_config(str(services.home)) as instance:
        ask(instance)
    services.wait_until(lambda: not backends(), 30)  # the server notices later
    ref = instance.get_ref()
    with opened(ref) if who == "command" else dg.DagsterInstance.from_ref(ref) as instance:
        if who == "daemon":
            _ = instance.run_coordinator  # as it does first of all
        ask(instance)
        kept = backends()
        assert len(kept) == 3
        for _ in range(10):
            ask(instance)
        assert backends() == kept
        with server.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_terminate_backend(pid) {known}"))
        ask(instance)
        services.wait_until(lambda: len(backends() - kept) == len(backends()) == 3, 30)
    server.dispose()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path / "fleet", impatient) as opened:
        yield opened


def test_two_lakes_share_a_fleet(small_lake: SmallLake, services: Fleet) -> None:
    """The same timestamps in both, launched by the sensors of each: every run finds its own workers."""
    lakes = {"crete": small_lake, "thrace": SmallLake(small_lake.root.with_name("thrace"), small_lake.instance)}
    given = {name: environment(lake, THESS_LAKE=name) for name, lake in lakes.items()}
    keys, ids = timestamps(3), {}
    for number, (name, lake) in enumerate(lakes.items()):
        ids[name] = {key: add_timestamp(lake, key, 10 * number + index) for index, key in enumerate(keys)}
        lake.list_rows(*ids[name].items())
    services.start_dagster("workspace-two-lakes.yaml", given)
    workers = {name: services.start_worker(name, given[name]) for name in lakes}
    for lake in lakes.values():
        status = lake.lake.audit_table("status")
        services.wait_until(
            lambda status=status: status.exists() and status.read_text().count(",success,") == len(keys)  # type: ignore[misc]
        )
    for name, lake in lakes.items():
        for key in keys:
            check_published(lake.lake, key, ids[name][key])
        runs = [
            run
            for run in services.runs(SUCCESS)
            if run.asset_selection == {dg.AssetKey([name, "data_raw", "aggregated"])}
        ]
        assert Counter(run.tags["dagster/partition"] for run in runs) == Counter(keys)
        assert {run.tags["dagster-celery/queue"] for run in runs} == {name}
        assert {executed_in(run) for run in runs} <= pids_of(workers[name])
    assert not services.runs(FAILURE)
