"""The Celery app of a fleet's workers: ``celery -A thess_agg_dagster.runs.worker worker --concurrency 2``.

Broker and settings are those of the Dagster instance's run launcher (``DAGSTER_HOME``). The definitions are imported
before the worker forks, so runs start at once. A worker takes the runs of the lake named by ``THESS_LAKE``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import dagster as dg
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from kombu.entity import Queue

import thess_agg_dagster.definitions  # noqa: F401
from thess_agg_dagster.keys import HERE
from thess_agg_dagster.runs.fleet import ONLY_LAKE, FleetLauncher
from thess_agg_dagster.runs.postgres import keep_connections

# What Dagster's own Celery task calls; there is no public way to execute a run that was launched.
from thess_agg_dagster.runs.private.execution import execute_run as execute

# Read by Dagster's run retries, which leave a run alone whose step failed, unless it has this tag.
_RETRY = "dagster/retry_on_asset_or_op_failure"

# What a step fails of without being at fault: the database went away (as psycopg2, SQLAlchemy and dagster-postgres say
# it), or the worker is shut down. (A run that was stopped in the UI is canceled, which is never retried.)
_FAULTS_OF_OTHERS = {
    "OperationalError", "InterfaceError", "DatabaseError", "DagsterPostgresException", "DagsterExecutionInterruptedError",
}  # fmt: skip


def _launcher_of_the_instance() -> FleetLauncher:
    with dg.DagsterInstance.get() as instance:
        launcher = instance.run_launcher
    if not isinstance(launcher, FleetLauncher):
        raise SystemExit("DAGSTER_HOME has no dagster.yaml for a fleet; see deploy/fleet/dagster.yaml")
    return launcher


_launcher = _launcher_of_the_instance()
app = _launcher.celery
app.conf.task_queues = [Queue(HERE.name or ONLY_LAKE)]


@app.task(name=TASK_EXECUTE_JOB_NAME, bind=True)  # type: ignore[untyped-decorator]
def execute_run(task: Any, execute_job_args_packed: object) -> None:
    """Execute a run in this process."""
    instance, run_id = _instance(), str(task.request.id)

    def look(seen: dg.DagsterEvent) -> None:
        if seen.is_step_failure and _is_of_others(seen.step_failure_data.error):
            instance.add_run_tags(run_id, {_RETRY: "true"})

    with _launcher.heartbeat(run_id):
        execute(run_id, instance, look, set_exit_code_on_failure=True)


@cache
def _instance() -> dg.DagsterInstance:
    """The instance of a child process, open for as long as it lives."""
    instance = dg.DagsterInstance.get()
    keep_connections(instance)
    return instance


def _is_of_others(error: Any) -> bool:
    while error is not None:
        if error.cls_name in _FAULTS_OF_OTHERS:
            return True
        error = error.cause or error.context
    return False
