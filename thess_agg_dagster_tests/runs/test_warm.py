"""Which runs are launched from the process that waits: ours, from a code location that Dagster started itself.

What becomes of them then: ``test_dagster_dev.py``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.code_pointer import CodePointer, FileCodePointer, ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    CodeLocationOrigin,
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from thess_agg_dagster.definitions import defs
from thess_agg_dagster.runs import warm
from thess_agg_dagster.runs.instance import PROCESS_TAG, process_tags
from thess_agg_dagster.runs.private import LaunchRunContext
from thess_agg_dagster.runs.warm import WarmLauncher, pointer_of
from thess_agg_dagster_tests.conftest import SmallLake

OURS = ModuleCodePointer("thess_agg_dagster.definitions", "defs", "/somewhere")
HERE = GrpcServerCodeLocationOrigin("localhost", socket="/tmp/x", location_name="thess_agg_dagster")


def run(pointer: CodePointer, location: CodeLocationOrigin, executable: str = sys.executable) -> dg.DagsterRun:
    code = JobPythonOrigin("job", RepositoryPythonOrigin(executable, pointer))
    place = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "job")
    return dg.DagsterRun("job", job_code_origin=code, remote_job_origin=place)


def test_a_run_of_these_definitions_here() -> None:
    assert pointer_of(run(OURS, HERE)) == OURS
    assert pointer_of(run(OURS, HERE, str(Path(sys.executable).with_name("python3")))) == OURS


@pytest.mark.parametrize(
    "other",
    [
        run(ModuleCodePointer("someone.definitions", "defs"), HERE),
        run(FileCodePointer("definitions.py", "defs"), HERE),
        run(OURS, HERE, "/another/venv/bin/python"),
        run(OURS, GrpcServerCodeLocationOrigin("localhost", port=4000, location_name="thess_agg_dagster")),
        run(OURS, GrpcServerCodeLocationOrigin("localhost", socket="/tmp/x", location_name="crete")),
        dg.DagsterRun("job"),
    ],
    ids=["module", "file", "environment", "server", "lake", "no origin"],
)
def test_a_run_of_another(other: dg.DagsterRun) -> None:
    assert pointer_of(other) is None


def test_a_run_that_has_not_begun_is_not_taken_for_its_parent(
    small_lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is re-executed inherits the tag of its parent's process, which may be alive, and do other work: this one."""
    monkeypatch.setenv("DATA_LAKE", str(small_lake.root))
    small_lake.list_rows()
    instance = small_lake.instance
    tags = process_tags()
    launched = create_report(instance, tags)
    launcher = WarmLauncher()
    launcher.register_instance(instance)
    launcher.launch_run(LaunchRunContext(launched, workspace=None))
    launcher.terminate(launched.run_id)  # would have interrupted this process
    until = time.monotonic() + 120
    while not (found := instance.get_run_by_id(launched.run_id)) or not found.is_finished:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert found.tags[PROCESS_TAG] not in ("", *tags.values())


def test_a_run_told_to_stop_before_it_begins(small_lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a process takes longer to begin than the launcher waits to interrupt it."""
    monkeypatch.setenv("DATA_LAKE", str(small_lake.root))
    launched = create_report(small_lake.instance, {})
    small_lake.instance.report_run_canceling(launched)
    warm._execute(small_lake.instance, launched.run_id)
    run = small_lake.instance.get_run_by_id(launched.run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.CANCELED


def create_report(instance: dg.DagsterInstance, tags: dict[str, str]) -> dg.DagsterRun:
    code = JobPythonOrigin("report_only", RepositoryPythonOrigin(sys.executable, OURS, entry_point=["dagster"]))
    place = RemoteJobOrigin(RemoteRepositoryOrigin(HERE, "__repository__"), "report_only")
    job = defs.resolve_job_def("report_only")
    return instance.create_run_for_job(job, job_code_origin=code, remote_job_origin=place, tags=tags)
