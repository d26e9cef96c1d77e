"""Many Dagster runs, one per timestamp, in worker processes and without a daemon."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import dagster as dg
from pebble import ProcessExpired, ProcessPool

from thess_agg_dagster.defs.assets import pipeline_of
from thess_agg_dagster.defs.environment import LAKE
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import remove_abandoned
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.ahead import PIXELS
from thess_agg_dagster.runs.databases import opened
from thess_agg_dagster.runs.instance import execute_here, fail_abandoned_runs

Resources = dict[str, Any]

# Unless told otherwise: more workers than this gain little and cost memory each.
_MOST_WORKERS = 4


_pipeline = pipeline_of(LAKE)


def run_asset(
    instance: dg.DagsterInstance, resources: Resources, key: dg.AssetKey, partition: str | None = None
) -> dg.ExecuteInProcessResult:
    """Run one asset in this process. Raises what the asset raised, and ``KeyboardInterrupt`` for Ctrl-C."""
    return execute_here(
        _pipeline.resolve_implicit_global_asset_job_def(),
        instance,
        key,
        partition,
        # The event log has every line; the terminal is for progress.
        {"resources": resources, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def resources_config(io_manager: DataLakeIOManager, params: TimestampsAggregationParams) -> Resources:
    """Run config with this lake and these parameters."""
    io_config = {"data_lake": str(io_manager.lake.root)}
    if io_manager.lake.tables:
        io_config["tables"] = str(io_manager.lake.tables)
    if io_manager.tiles:
        io_config["tiles"] = io_manager.tiles
    return {"params": {"config": params.run_config()}, "io_manager": {"config": io_config}}


def tidy_up(instance: dg.DagsterInstance, lake: DataLake) -> None:
    """Clean up after killed processes: end their runs, remove half-made mosaics."""
    fail_abandoned_runs(instance)
    for shelf in (lake, lake.composites):
        remove_abandoned(shelf.staging)


def workers_for(params: TimestampsAggregationParams, timestamps: int) -> int:
    """The number of worker processes, each of which handles one timestamp at a time."""
    return max(1, min(params.max_workers or min(os.cpu_count() or 1, _MOST_WORKERS), timestamps))


def run_timestamps(
    instance: dg.DagsterInstance,
    timestamps: Sequence[str],
    io_manager: DataLakeIOManager,
    params: TimestampsAggregationParams,
    asset: dg.AssetKey = AGGREGATED,
) -> Iterator[tuple[str, str | None]]:
    """Aggregate timestamps (or make the partitions of another ``asset``) in worker processes; yields each one as it ends,
    with the error if it failed.

    If a worker dies, only its own timestamp is affected. Unless ``params`` say otherwise, workers times threads equals
    the number of cores.
    """
    cores = os.cpu_count() or 1
    workers = workers_for(params, len(timestamps))
    resources = resources_config(io_manager, params)
    resources["params"]["config"]["threads"] = params.threads or max(1, cores // workers)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PIXELS])
    initial = [dict(os.environ), instance.get_ref()]
    with ProcessPool(workers, initializer=_start_worker, initargs=initial, context=context) as pool:
        futures: dict[Future[str | None], str] = {
            pool.schedule(_run_timestamp, args=[key, resources, asset]): key for key in timestamps
        }
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures[future], _fault(future)
        except BaseException:
            pool.stop()
            raise


# The instance of a worker process, open for as long as it lives: opening one takes as long as ten events.
_worker_instance: dg.DagsterInstance


def _start_worker(environment: dict[str, str], instance_ref: Any) -> None:
    global _worker_instance
    os.environ.clear()  # the server that forked this process may be older than what the command settled
    os.environ.update(environment)
    # A run that Dagster launched may have an instance without a DAGSTER_HOME. There is no public way to hand one on.
    _worker_instance = opened(instance_ref)
    gc.freeze()
    gc.enable()  # the server that forked this process only imports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def _run_timestamp(timestamp: str, resources: Resources, asset: dg.AssetKey) -> str | None:
    try:
        run_asset(_worker_instance, resources, asset, timestamp)
    except dg.Failure as failure:
        return failure.description
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _fault(future: Future[str | None]) -> str | None:
    try:
        return future.result()
    except ProcessExpired as error:
        return f"its worker process died ({error}); out of memory? use fewer workers"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
