"""Dagster's own SQLite storage is the oracle: what one writes, the other reads, at the same time too."""

import multiprocessing
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import sqlalchemy

from thess_agg_dagster.defs.registering import register
from thess_agg_dagster.keys import timestamps
from thess_agg_dagster.runs.private import InstanceRef
from thess_agg_dagster.runs.sqlite import kept_open
from thess_agg_dagster_tests.disk import calls_with_paths, traced

KINDS = pytest.mark.parametrize("first", ["ours", "dagster's"])


@dg.asset(check_specs=[dg.AssetCheckSpec("whole", asset="mosaic")])
def mosaic(context: dg.AssetExecutionContext) -> Iterator[Any]:
    context.log.info("merging")
    yield dg.MaterializeResult(metadata={"pixels": 12})
    yield dg.AssetCheckResult(passed=True)


@contextmanager
def opened(home: Path, kind: str) -> Iterator[dg.DagsterInstance]:
    home.mkdir(exist_ok=True)
    ref = InstanceRef.from_dir(str(home), overrides={"telemetry": {"enabled": False}})
    with dg.DagsterInstance.from_ref(kept_open(ref) if kind == "ours" else ref) as instance:
        yield instance


def told(instance: dg.DagsterInstance, run_id: str) -> list[tuple[Any, ...]]:
    return [(entry.timestamp, entry.dagster_event_type, entry.message) for entry in instance.all_logs(run_id)]


def schema(database: Path) -> tuple[list[Any], list[Any], str]:
    connection = sqlite3.connect(database)
    try:
        tables = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
        revision = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        return tables, revision, connection.execute("PRAGMA journal_mode").fetchone()[0]
    finally:
        connection.close()


@KINDS
def test_one_reads_what_the_other_wrote(tmp_path: Path, first: str) -> None:
    second = "dagster's" if first == "ours" else "ours"
    with opened(tmp_path, first) as writing, opened(tmp_path, second) as reading:
        runs = [dg.materialize([mosaic], instance=instance).run_id for instance in (writing, reading, writing)]
        for run_id in runs:
            assert told(reading, run_id) == told(writing, run_id)
            assert len(told(reading, run_id)) > 10
            run = reading.get_run_by_id(run_id)
            assert run is not None
            assert run.is_success
        event = reading.get_latest_materialization_event(dg.AssetKey("mosaic"))
        assert event is not None
        assert event.run_id == runs[-1]
        checks = reading.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
        assert {record.run_id for record in checks} == set(runs)
    # And after both have gone.
    with opened(tmp_path, second) as later:
        assert {run.run_id for run in later.get_runs()} == set(runs)


def test_databases_are_as_dagster_makes_them(tmp_path: Path) -> None:
    databases = {}
    for kind in ("ours", "dagster's"):
        with opened(tmp_path / kind, kind) as instance:
            run_id = dg.materialize([mosaic], instance=instance).run_id
        folder = tmp_path / kind / "history"
        databases[kind] = [schema(folder / name) for name in (f"runs/{run_id}.db", "runs/index.db", "runs.db")]
        assert {path.stem for path in folder.glob("runs/*.db")} == {run_id, "index"}
        assert not list(folder.glob("runs/.empty-*"))
    assert databases["ours"] == databases["dagster's"]
    assert {mode for _, _, mode in databases["ours"]} == {"wal"}


def test_a_run_that_goes_on_is_followed(tmp_path: Path) -> None:
    """As the UI does, by Dagster's own storage: each line is told while the run has yet to end."""
    followed: list[str] = []
    seen = threading.Event()

    def look(entry: dg.EventLogEntry, cursor: str) -> None:
        followed.append(entry.user_message)
        if "second" in entry.user_message:
            seen.set()

    @dg.op
    def slow(context: dg.OpExecutionContext) -> None:
        context.log.info("first")
        ui.watch_event_logs(context.run_id, None, look)
        context.log.info("second")
        assert seen.wait(30), "nothing was told while the run went on"

    @dg.job
    def job() -> None:
        slow()

    with opened(tmp_path, "ours") as instance, opened(tmp_path, "dagster's") as ui:
        assert job.execute_in_process(instance=instance).success
    assert "first" in followed


def _begin(home: str, run_id: str, barrier: Any) -> None:
    with opened(Path(home), "ours") as instance:
        barrier.wait()
        instance.report_engine_event(f"from {os.getpid()}", run_id=run_id, job_name="job")


def test_processes_begin_the_database_of_a_run_at_once(tmp_path: Path) -> None:
    with opened(tmp_path, "ours") as instance:
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            run_id, barrier = str(uuid.uuid4()), context.Barrier(3)
            beginning = [context.Process(target=_begin, args=(str(tmp_path), run_id, barrier)) for _ in range(3)]
            for process in beginning:
                process.start()
            for process in beginning:
                process.join(120)
                assert process.exitcode == 0
            assert len(instance.all_logs(run_id)) == 3


def test_a_forked_process_opens_its_own(tmp_path: Path) -> None:
    with opened(tmp_path, "ours") as instance:
        run_id = str(uuid.uuid4())
        instance.report_engine_event("parent", run_id=run_id, job_name="job")
        child = os.fork()
        if not child:
            try:
                instance.report_engine_event("child", run_id=run_id, job_name="job")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        instance.report_engine_event("parent again", run_id=run_id, job_name="job")
        assert [entry.message for entry in instance.all_logs(run_id)] == ["parent", "child", "parent again"]


def test_a_database_that_was_begun_and_left_is_finished(tmp_path: Path) -> None:
    """Dagster's own storage makes it in the place where it is to be; a process may die in between."""
    with opened(tmp_path, "ours") as instance:
        run_id = str(uuid.uuid4())
        (tmp_path / "history" / "runs" / f"{run_id}.db").touch()
        instance.report_engine_event("here", run_id=run_id, job_name="job")
        assert [entry.message for entry in instance.all_logs(run_id)] == ["here"]


def test_many_runs_are_not_all_kept_open(tmp_path: Path) -> None:
    with opened(tmp_path, "ours") as instance:
        runs = [str(uuid.uuid4()) for _ in range(40)]
        for run_id in runs:
            instance.report_engine_event("one", run_id=run_id, job_name="job")
        folder = tmp_path / "history" / "runs"
        is_open = {Path(file.path) for file in psutil.Process().open_files()}
        assert 0 < len(is_open & {folder / f"{run_id}.db" for run_id in runs}) <= 16
        assert all(len(instance.all_logs(run_id)) == 1 for run_id in runs)


def test_everything_is_wiped(tmp_path: Path) -> None:
    """``dagster run wipe``."""
    with opened(tmp_path, "ours") as instance:
        run_id = dg.materialize([mosaic], instance=instance).run_id
        instance.wipe()
        assert not instance.get_runs()
        assert not instance.all_logs(run_id)
        assert dg.materialize([mosaic], instance=instance).success


def test_other_storages_stay_what_they_are(tmp_path: Path) -> None:
    postgres = {"storage": {"postgres": {"postgres_url": "postgresql://nobody@localhost/nothing"}}}
    ref = InstanceRef.from_dir(str(tmp_path), overrides=postgres)
    assert kept_open(ref) == ref


@pytest.mark.strace
def test_the_disk_is_waited_for_at_the_end_of_a_run_and_hardly_before(tmp_path: Path) -> None:
    """By the system calls: what was written of a run is synced when it has ended. (A power cut before that costs its last
    transactions: the databases have write-ahead logs.)"""
    home = tmp_path / "home"
    with opened(home, "ours") as instance:  # begun before
        dg.materialize([mosaic], instance=instance)

    def work() -> None:
        from thess_agg_dagster_tests.runs import test_sqlite as here  # an asset cannot be pickled

        with here.opened(home, "ours") as instance:
            dg.materialize([here.mosaic], instance=instance)

    code, log = traced(work, "-y", "-e", "trace=write,pwrite64,fsync,fdatasync")
    assert code == 0
    calls: dict[str, list[str]] = {}
    for _, name, path in calls_with_paths(log, home):
        calls.setdefault(path, []).append("sync" if "sync" in name else "write")
    logs = {path: found for path, found in calls.items() if path.endswith(".db-wal")}
    assert len(logs) >= 3  # of runs, of the run, of all events
    for path, found in logs.items():
        if not path.endswith("/runs.db-wal"):  # where the run's status comes last
            written = len(found) - found[::-1].index("write")
            assert "sync" in found[written:], path
    assert sum(found.count("sync") for found in calls.values()) < 25
    assert sum(found.count("write") for found in logs.values()) > 100


def test_a_process_that_registers_a_partition_at_the_same_time(tmp_path: Path) -> None:
    """Between Dagster's look at those that are there and its insert, another one adds one of them."""
    ref = InstanceRef.from_dir(str(tmp_path))
    raced: list[str] = []

    def be_quicker(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO dynamic_partitions") and not raced:
            raced.append(statement)
            with dg.DagsterInstance.from_ref(ref) as other:
                other.add_dynamic_partitions("timestamp", ["b"])

    with dg.DagsterInstance.from_ref(kept_open(ref)) as instance:
        instance.add_dynamic_partitions("timestamp", ["a"])
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", be_quicker)
        try:
            register(instance, timestamps, ["a", "b", "c"])
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", be_quicker)
        assert raced
        assert sorted(instance.get_dynamic_partitions("timestamp")) == ["a", "b", "c"]
