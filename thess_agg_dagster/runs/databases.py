"""Instances that keep their connections to SQLite or Postgres; Dagster makes one for each question."""

from __future__ import annotations

import dagster as dg

from thess_agg_dagster.runs.private import InstanceRef
from thess_agg_dagster.runs.sqlite import kept_open


def opened(ref: InstanceRef) -> dg.DagsterInstance:
    """Open an instance for a process that has much to ask."""
    instance = dg.DagsterInstance.from_ref(kept_open(ref))
    if type(instance.run_storage).__module__.startswith("dagster_postgres"):
        # Here, because a lake on one machine has no use for it.
        from thess_agg_dagster.runs.postgres import keep_connections

        keep_connections(instance)
    return instance
