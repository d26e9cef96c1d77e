"""Many machines: Dagster's Celery run launcher, extended to notice dead workers, and a queue for each lake.

``deploy/fleet/dagster.yaml`` names both; they need the extra ``fleet``. Celery's result backend is not used, because it
says too little about a run: "started" forever if a worker was killed, "success" if the database was unavailable when
the run ended, and nothing once Redis has forgotten it. Instead, a run sends a :func:`heartbeat`, and its result is in
Dagster's database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import dagster as dg
from celery.canvas import Signature
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_QUEUE_TAG
from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from thess_agg_dagster.runs.postgres import keep_connections
from thess_agg_dagster.runs.private import (
    CheckRunHealthResult,
    DagsterUserCodeUnreachableError,
    SubmitRunContext,
    WorkerStatus,
)
from thess_agg_dagster.runs.run_queue import RunQueue

#: The code location, and so the Celery queue, of a lake that has no name.
ONLY_LAKE = "thess_agg_dagster"

# A run at work says so this often, and Redis believes it for some times as long.
_BEAT_SECONDS, _BEATS = 3, 5

_CELERY = {
    # A run goes to a process that is free, not to one that has another to finish first.
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    # A worker waits for Redis for as long as it takes, from the start on.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # Dagster's log lines go to the worker's output as they are.
    "worker_redirect_stdouts": False,
}


class FleetQueue(RunQueue):
    """Tags each run with the Celery queue of its lake, which has the name of the lake's code location.

    The tag is set from the start, so that ``tag_concurrency_limits`` can keep one lake from taking every place.
    """

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        super().register_instance(instance)
        # Who has the queue is the daemon, or launches a run.
        keep_connections(instance)

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        run = context.dagster_run
        if run.remote_job_origin:
            self._instance.add_run_tags(run.run_id, {DAGSTER_CELERY_QUEUE_TAG: run.remote_job_origin.location_name})
        return super().submit_run(context)


class FleetLauncher(CeleryRunLauncher):
    """Launches each run as a Celery task with the run's id.

    A run that has begun but sent no heartbeat for ``patience_seconds`` is failed: its process was killed, its machine
    is gone, or the database was unavailable when it ended. Dagster's run retries start it again.
    """

    def __init__(self, broker: str, patience_seconds: int, **settings: Any) -> None:
        settings["config_source"] = _CELERY | (settings.get("config_source") or {})
        super().__init__(default_queue=ONLY_LAKE, broker=broker, backend="disabled://", **settings)
        self._patience = patience_seconds
        self._redis = Redis.from_url(broker, socket_timeout=5, socket_connect_timeout=5)
        self._silent: dict[str, float] = {}  # runs of which nothing is heard, and since when

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {
            "broker": dg.Field(dg.StringSource),
            "patience_seconds": dg.Field(dg.IntSource, is_required=False, default_value=60),
            "config_source": dg.Field(dict, is_required=False, description="More settings of Celery's."),
        }

    def _launch_celery_task_run(self, run: dg.DagsterRun, task_signature: Signature, routing_key: str) -> None:
        try:
            super()._launch_celery_task_run(run, task_signature.set(task_id=run.run_id), routing_key)
        except OperationalError as error:
            # What Dagster's queue takes for a pause: the run goes back to it, and is launched later.
            raise DagsterUserCodeUnreachableError(f"Redis cannot be reached: {error}") from error

    def terminate(self, run_id: str) -> bool:
        """Interrupt a run as "terminate" does on one machine: send SIGTERM to the process that executes it."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        self.celery.control.revoke(run_id, terminate=True)
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        if DAGSTER_CELERY_QUEUE_TAG not in run.tags:  # of `python -m thess_agg_dagster`
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not launched here")
        try:
            heard = self._redis.exists(_heartbeat_key(run.run_id))
        except RedisError as error:
            self._silent.clear()
            # Nobody knows, so nothing is wrong: Dagster fails a run of which it hears UNKNOWN.
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"Redis cannot be reached: {error}")
        if heard:
            self._silent.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        seconds = time.monotonic() - self._silent.setdefault(run.run_id, time.monotonic())
        if seconds < self._patience:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"no heartbeat for {seconds:.0f} s")
        del self._silent[run.run_id]
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"no heartbeat for {seconds:.0f} s: killed, or its machine is gone"
        )

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str:
        queue = run.tags.get(DAGSTER_CELERY_QUEUE_TAG, self.default_queue)
        return f"Its Celery queue is {queue!r}; is there a worker for it?"

    @contextmanager
    def heartbeat(self, run_id: str) -> Iterator[None]:
        """Tell Redis, from a thread of this process, that the run is alive, until the block ends.

        The run's own process sends it, not Celery's worker, which falls silent while it shuts down and waits for its
        runs, and may die before they do.
        """
        ended = threading.Event()

        def tell() -> None:
            while True:
                with suppress(RedisError):
                    self._redis.set(_heartbeat_key(run_id), 1, ex=_BEATS * _BEAT_SECONDS)
                if ended.wait(_BEAT_SECONDS):
                    break
            with suppress(RedisError):
                self._redis.delete(_heartbeat_key(run_id))

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _heartbeat_key(run_id: str) -> str:
    # Called as earlier releases call it: machines are upgraded one after the other.
    return f"thess_agg_dagster/goes_on/{run_id}"
