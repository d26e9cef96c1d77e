"""``python -m benchmarks.scaling_child report``: one of the things that ``benchmarks.scaling`` measures, in a process that has
imported nothing else."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy import event

from thess_agg_dagster.keys import AGGREGATED, REPORT, TIME_SERIE, timestamps
from thess_agg_dagster.runs.batch import run_asset


def main(what: str, key: str | None = None) -> None:
    """Do it, and print the figures as JSON."""
    queries = 0

    def seen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal queries
        queries += statement.lstrip().upper().startswith("SELECT")

    event.listen(sa.Engine, "before_cursor_execute", seen)
    resources = {"io_manager": {"config": {"data_lake": os.environ["DATA_LAKE"]}}}
    works: dict[str, Callable[[dg.DagsterInstance], Any]] = {
        "report": lambda instance: run_asset(instance, resources, REPORT),
        "list": lambda instance: run_asset(instance, resources, TIME_SERIE),
        "timestamp": lambda instance: _attempt(instance, resources, key),
        "keys": lambda instance: instance.get_dynamic_partitions(str(timestamps.name)),
    }
    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        queries = 0
        started, busy = time.perf_counter(), time.process_time()
        works[what](instance)
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        print(json.dumps({"seconds": seconds, "cpu": cpu, "queries": queries}))


def _attempt(instance: dg.DagsterInstance, resources: dict[str, Any], key: str | None) -> None:
    with suppress(dg.Failure):  # one is meant to fail
        run_asset(instance, resources, AGGREGATED, key)


if __name__ == "__main__":
    main(*sys.argv[1:])
