"""Runs that this process executes one after another: Dagster's own ``execute_in_process`` is the oracle."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from thess_agg_dagster.defs.resources import ParamsResource
from thess_agg_dagster.runs.instance import execute_here
from thess_agg_dagster.runs.sqlite import written_together
from thess_agg_dagster_tests.runs.test_sqlite import opened

PARTITIONS = dg.DynamicPartitionsDefinition(name="day")
MOSAIC = dg.AssetKey("mosaic")
#: Of a run, what is not kept, because other events say the same.
LEFT_OUT = {"RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "ENGINE_EVENT"}
FAILS = "2024-01-03"
SEEN: list[Any] = []


class Opened(dg.ConfigurableResource):  # type: ignore[type-arg]
    """A resource of somebody else's."""


@dg.asset(
    key=MOSAIC,
    partitions_def=PARTITIONS,
    check_specs=[dg.AssetCheckSpec(name, asset=MOSAIC) for name in ("whole", "valid")],
    required_resource_keys={"params", "opened"},
)
def _mosaic(context):  # type: ignore[no-untyped-def]
    SEEN.append((context.resources.params, context.resources.opened))
    context.log.info("merging")
    if context.partition_key == FAILS:
        raise dg.Failure("no tiles", allow_retries=False)
    yield dg.MaterializeResult(metadata={"pixels": 12})
    for name in ("whole", "valid"):
        yield dg.AssetCheckResult(check_name=name, passed=name == "whole")


@dg.asset
def other() -> None: ...


JOB = dg.Definitions(
    assets=[_mosaic, other], resources={"params": ParamsResource(), "opened": Opened()}, executor=dg.in_process_executor
).resolve_implicit_global_asset_job_def()


def config(method: str = "first") -> Mapping[str, Any]:
    return {"resources": {"params": {"config": {"merge_method": method}}}}


def kinds(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    found = [entry.dagster_event_type.value if entry.dagster_event_type else "" for entry in instance.all_logs(run_id)]
    return [kind for kind in found if kind not in LEFT_OUT]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with opened(tmp_path / "home", "ours") as found:
        found.add_dynamic_partitions("day", ["2024-01-01", "2024-01-02", FAILS])
        yield found


def failing(key: str) -> AbstractContextManager[object]:
    return pytest.raises(dg.Failure, match="no tiles") if key == FAILS else nullcontext()


def dagsters(instance: dg.DagsterInstance, key: str, method: str = "first") -> dg.DagsterRun:
    with failing(key):
        JOB.execute_in_process(
            run_config=config(method), instance=instance, partition_key=key, asset_selection=[MOSAIC]
        )
    return instance.get_runs(limit=1)[0]


def ours(instance: dg.DagsterInstance, key: str, method: str = "first") -> dg.DagsterRun:
    with failing(key):
        execute_here(JOB, instance, MOSAIC, key, config(method))
    return instance.get_runs(limit=1)[0]


@pytest.mark.parametrize("key", ["2024-01-01", FAILS])
def test_what_is_recorded_is_the_same(instance: dg.DagsterInstance, key: str) -> None:
    for method in ("first", "first", "max"):  # the second has what was kept of the first, the third another config
        oracle, found = dagsters(instance, key, method), ours(instance, key, method)
        assert found.status == oracle.status
        for name in (
            "job_name",
            "run_config",
            "asset_selection",
            "asset_check_selection",
            "step_keys_to_execute",
            "job_snapshot_id",
            "execution_plan_snapshot_id",
        ):
            assert getattr(found, name) == getattr(oracle, name), name
        assert oracle.tags.items() <= found.tags.items()
        assert kinds(instance, found.run_id) == kinds(instance, oracle.run_id)
        told = {str(entry.dagster_event_type) for entry in instance.all_logs(found.run_id)}
        assert not told & {f"DagsterEventType.{kind}" for kind in LEFT_OUT}


def test_checks_are_of_the_materialization_of_their_run(instance: dg.DagsterInstance) -> None:
    for key in ("2024-01-01", "2024-01-02", "2024-01-01"):
        run = ours(instance, key)
        made = instance.fetch_materializations(dg.AssetRecordsFilter(MOSAIC, asset_partitions=[key]), limit=1).records[
            0
        ]
        assert made.run_id == run.run_id
        records = instance.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION), limit=2, ascending=False
        )
        for record in records:
            evaluation = record.event_log_entry.asset_check_evaluation
            assert evaluation is not None
            assert evaluation.target_materialization_data is not None
            assert evaluation.target_materialization_data.run_id == run.run_id
            assert evaluation.target_materialization_data.storage_id == made.storage_id


def test_resources_are_made_once_for_a_config_but_not_those_of_others(instance: dg.DagsterInstance) -> None:
    SEEN.clear()
    for method in ("first", "first", "max"):
        ours(instance, "2024-01-01", method)
    (first, one), (again, two), (other_params, _) = SEEN
    assert first is again
    assert one is not two
    assert (first.merge_method, other_params.merge_method) == ("first", "max")


def test_whoever_reads_sees_what_waits(instance: dg.DagsterInstance) -> None:
    run = dagsters(instance, "2024-01-01")
    entries = instance.all_logs(run.run_id)
    waits = next(entry for entry in entries if entry.dagster_event_type == dg.DagsterEventType.STEP_OUTPUT)
    database = Path(instance.root_directory, "history", "runs", f"{run.run_id}.db")

    def written() -> int:
        with closing(sqlite3.connect(database)) as connection:
            return int(connection.execute("SELECT count(*) FROM event_logs").fetchone()[0])

    with written_together(instance, run.run_id):
        instance.handle_new_event(waits)
        assert written() == len(entries)
        assert len(instance.all_logs(run.run_id)) == len(entries) + 1
        instance.handle_new_event(waits)
    assert written() == len(entries) + 2


def test_a_group_of_which_one_cannot_be_written(instance: dg.DagsterInstance) -> None:
    """The others are, each by itself, and the one that cannot is told."""
    run = dagsters(instance, "2024-01-01")
    entries = instance.all_logs(run.run_id)
    planned = [entry for entry in entries if str(entry.dagster_event_type).endswith("_PLANNED")]
    index = Path(instance.root_directory, "history", "runs", "index.db")
    with closing(sqlite3.connect(index)) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON asset_check_executions BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        connection.commit()
    with pytest.raises(Exception, match="no"), written_together(instance, run.run_id):
        for entry in planned:
            instance.handle_new_event(entry)
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("DROP TRIGGER refuse")
        connection.commit()
    kept = [str(entry.dagster_event_type) for entry in instance.all_logs(run.run_id)]
    assert kept.count("DagsterEventType.ASSET_MATERIALIZATION_PLANNED") == 2
