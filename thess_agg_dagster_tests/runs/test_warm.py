"""Which runs are launched from the process that waits: ours, from a code location that Dagster started itself.

What becomes of them then: ``test_dagster_dev.py``.
"""

from __future__ import annotations

import sys
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

from thess_agg_dagster.runs.warm import is_ours

OURS = ModuleCodePointer("thess_agg_dagster.definitions", "defs", "/somewhere")
HERE = GrpcServerCodeLocationOrigin("localhost", socket="/tmp/x", location_name="thess_agg_dagster")


def run(pointer: CodePointer, location: CodeLocationOrigin, executable: str = sys.executable) -> dg.DagsterRun:
    code = JobPythonOrigin("job", RepositoryPythonOrigin(executable, pointer))
    place = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "job")
    return dg.DagsterRun("job", job_code_origin=code, remote_job_origin=place)


def test_a_run_of_these_definitions_here() -> None:
    assert is_ours(run(OURS, HERE))
    assert is_ours(run(OURS, HERE, str(Path(sys.executable).with_name("python3"))))


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
    assert not is_ours(other)
