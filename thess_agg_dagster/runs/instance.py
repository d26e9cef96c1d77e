"""The Dagster instance of a lake: where its runs and events are stored if ``DAGSTER_HOME`` is unset.

``python -m thess_agg_dagster.runs.instance LAKE`` creates it and prints its folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from thess_agg_dagster.keys import HERE, timestamps
from thess_agg_dagster.lake.publish import staged_file
from thess_agg_dagster.runs.private import (
    InstanceRef,
    LoadableTargetOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from thess_agg_dagster.storage.paths import is_remote, lake_path

if TYPE_CHECKING:
    from thess_agg_dagster.runs.private.in_process import PreparedJob

#: Statuses of a run that has still something to do.
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

#: Tags of a run: why it was launched, and which run asked for it.
CAUSE, PARENT = "thess_agg_dagster/cause", "thess_agg_dagster/parent_run"
#: Its cause: it was executed by a run of several timestamps.
BATCH = "one of several"

#: Why a run is failed that its process did not end.
GONE = "The process of this run is gone: it was killed, or ran out of memory."


def dagster_home(lake_root: Path) -> Path:
    """``DAGSTER_HOME``, or else the folder ``.dagster`` of the lake, with our settings in it. For a lake in a bucket,
    the folder is in the home directory: ``~/.thess-agg-dagster/<bucket>/<prefix>``."""
    name = str(lake_root).replace("://", "/")
    own = Path.home() / ".thess-agg-dagster" / name if is_remote(lake_root) else lake_root / ".dagster"
    home = Path(os.environ.get("DAGSTER_HOME") or own).absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        with as_file(files("thess_agg_dagster") / "dagster.yaml") as packaged, staged_file(settings) as copy:
            shutil.copyfile(packaged, copy)
    return home


@contextmanager
def open_instance(lake_root: Path) -> Iterator[dg.DagsterInstance]:
    """Open the instance of a lake and set ``DAGSTER_HOME`` for this process and its children.

    Several processes on a fresh instance can break its database, so only one opens it at a time.
    """
    home = dagster_home(lake_root)
    os.environ["DAGSTER_HOME"] = str(home)
    with (home / ".opening").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Here, because definitions import this module, and only who opens databases needs SQLAlchemy.
        from thess_agg_dagster.runs.databases import opened

        instance = opened(InstanceRef.from_dir(str(home)))
        instance.get_dynamic_partitions(str(timestamps.name))  # storages make their databases at first use
        instance.get_runs_count()
    with instance:
        yield instance


def process_tags() -> dict[str, str]:
    """Tags of a run that is executed in this process, by which :func:`fail_abandoned_runs` recognizes it."""
    import psutil  # here, as in `is_alive`: definitions import this module, and execute nothing

    return {PROCESS_TAG: f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time()}"}


def execute_here(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    partition: str | None,
    run_config: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    """Execute a run in this process, as ``execute_in_process`` does. Raises what the asset raised, and
    ``KeyboardInterrupt`` for Ctrl-C."""
    from thess_agg_dagster.runs.sqlite import written_together  # here, as in `open_instance`

    run_id, of_run = str(uuid.uuid4()), {**process_tags(), **(tags or {})}
    try:
        with written_together(instance, run_id):
            return _prepared(job, asset).execute(instance, run_id, of_run, partition, run_config)
    except dg.DagsterExecutionInterruptedError as error:
        raise KeyboardInterrupt from error
    except dg.Failure as failure:
        if isinstance(failure.__cause__, dg.DagsterExecutionInterruptedError):
            raise KeyboardInterrupt from failure
        raise
    finally:
        name_code_location(instance, run_id)


@lru_cache(maxsize=8)
def _prepared(job: dg.JobDefinition, asset: dg.AssetKey) -> PreparedJob:
    from thess_agg_dagster.runs.private.in_process import PreparedJob  # here, because definitions execute nothing

    return PreparedJob(job, asset)


def name_code_location(instance: dg.DagsterInstance, run_id: str) -> None:
    """Record where to find the job of a run that was executed in this process; without this, the UI cannot re-execute
    it. A run that another one executed has its job in the same place.

    Dagster records it only for runs that it launched. There is no public way to do so; ``dagster run
    migrate-repository`` does it like this.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.remote_job_origin:
        return
    parent = instance.get_run_by_id(run.tags[PARENT]) if run.tags.get(CAUSE) == BATCH else None
    if parent and parent.remote_job_origin:
        repository = parent.remote_job_origin.repository_origin
    else:
        target = LoadableTargetOrigin(executable_path=sys.executable, module_name="thess_agg_dagster.definitions")
        location = ManagedGrpcPythonEnvCodeLocationOrigin(target, HERE.name or "thess_agg_dagster")
        repository = RemoteRepositoryOrigin(location, "__repository__")
    instance.run_storage.replace_job_origin(run, RemoteJobOrigin(repository, run.job_name))


def claim_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Tag a run that Dagster launched with the process that executes it. (A retried run has its parent's tag.)"""
    if run.tags.get(PROCESS_TAG) != process_tags()[PROCESS_TAG]:
        instance.add_run_tags(run.run_id, process_tags())


def fail_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs as failed that nothing else would ever end: those whose process, on this machine, was killed, and those
    that belong to a finished run (of several timestamps, on any machine).

    ``DagsterInstance.report_run_failed`` is what Dagster's own run monitoring calls; there is no public way.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])):
        tag = run.tags.get(PROCESS_TAG)
        dead = tag and not is_alive(tag) and tag != _tag_of_parent(instance, run)
        orphan = run.tags.get(CAUSE) == BATCH and not run.parent_run_id and _is_over(instance, run.tags[PARENT])
        if dead or orphan:
            instance.report_run_failed(run, GONE)
            name_code_location(instance, run.run_id)


def _is_over(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def _tag_of_parent(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """The tag that a re-executed run inherits, and carries until it is claimed."""
    parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return parent.tags.get(PROCESS_TAG) if parent else None


# Dagster shows no tag that begins so; this one would make every row of the list of runs two lines long.
PROCESS_TAG = ".dagster/thess_agg_dagster_process"


def is_alive(tag: str) -> bool:
    """Whether the process that such a tag names is there, as far as this machine can tell."""
    import psutil

    host, pid, created = tag.rsplit(":", 2)
    if host != socket.gethostname():
        return True  # not ours to judge
    try:
        # The time a process began is counted from the clock's idea of when the machine did, which may be corrected.
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 5
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    with open_instance(lake_path(sys.argv[1])) as made:
        print(made.root_directory)
