"""Dagster runs by the dozen: one per timestamp, in worker processes, without a daemon."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import dagster as dg
from pebble import ProcessExpired, ProcessPool

from thess_agg_dagster.attempt import AGGREGATED
from thess_agg_dagster.definitions import defs
from thess_agg_dagster.instance import process_tags

Resources = dict[str, Any]


def run_asset(
    instance: dg.DagsterInstance, resources: Resources, key: dg.AssetKey, partition: str | None = None
) -> None:
    """One Dagster run of one asset in this process. Raises what the asset raised, ``KeyboardInterrupt`` for Ctrl-C."""
    job = defs.resolve_implicit_global_asset_job_def()
    try:
        job.execute_in_process(
            instance=instance,
            asset_selection=[key],
            partition_key=partition,
            tags=process_tags(),
            # The event log has every line; the terminal is for progress.
            run_config={"resources": resources, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    except dg.DagsterExecutionInterruptedError as error:
        raise KeyboardInterrupt from error


def run_timestamps(timestamps: Sequence[str], resources: Resources, workers: int) -> Iterator[tuple[str, str | None]]:
    """Aggregate timestamps in ``workers`` processes; yields each as it ends, with what went wrong, if anything.

    A worker that dies takes its own timestamp with it, no other.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPool(workers, initializer=_start_worker, initargs=[dict(os.environ)], context=context) as pool:
        futures: dict[Future[str | None], str] = {
            pool.schedule(_run_timestamp, args=[key, resources]): key for key in timestamps
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


def _start_worker(environment: dict[str, str]) -> None:
    os.environ.clear()  # the server that forked this process may be older than what the command settled
    os.environ.update(environment)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


@functools.cache
def _instance() -> dg.DagsterInstance:
    """The worker's own, for as long as it lives: opening one takes as long as ten events."""
    return dg.DagsterInstance.get()


def _run_timestamp(timestamp: str, resources: Resources) -> str | None:
    try:
        run_asset(_instance(), resources, AGGREGATED, timestamp)
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
