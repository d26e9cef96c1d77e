"""The run queue named in ``dagster.yaml``: Dagster's own, with its limit taken from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from thess_agg_dagster.runs.private import ConfigurableClassData, QueuedRunCoordinator

#: Environment variable with the number of runs that go on at the same time.
LIMIT = "THESS_MAX_CONCURRENT_RUNS"


class RunQueue(QueuedRunCoordinator):
    """At most ``THESS_MAX_CONCURRENT_RUNS`` concurrent runs; if unset, one per core. Dagster's own ``env:`` would
    refuse to start without the variable."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> RunQueue:
        limit = os.environ.get(LIMIT, "").strip() or str(os.cpu_count() or 1)
        if not limit.isdigit() or int(limit) < 1:
            raise ValueError(f"{LIMIT}={limit!r} is not a number of runs, 1 or more")
        # A new run starts a second after there is room for it, instead of five.
        settings = {"max_concurrent_runs": int(limit), "dequeue_interval_seconds": 1} | dict(config_value)
        return super().from_config_value(inst_data, settings)
