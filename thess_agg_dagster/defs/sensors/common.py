"""Shared by the sensors: how often they run, how much they look at, and how they request runs."""

import hashlib
import os
import time
from collections.abc import Iterable

import dagster as dg

from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.runs.instance import CAUSE
from thess_agg_dagster.storage.paths import File, is_remote


def interval() -> int:
    """Seconds between two ticks of a sensor: ``THESS_SENSOR_SECONDS``, or 30."""
    given = os.environ.get("THESS_SENSOR_SECONDS", "").strip() or "30"
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"THESS_SENSOR_SECONDS={given!r} is not a number of seconds, 1 or more")
    return int(given)


SECONDS = interval()
# A file that changed less than this ago may still be in the making.
SETTLE_SECONDS = 5
# More runs than this are asked for over several ticks, each short enough for Dagster to answer for.
MOST_RUNS = 500
# So are more attempts looked up: Dagster takes about a millisecond to read one, and gives up on a tick after 60 s.
MOST_ATTEMPTS = 5_000
Tick = dg.SensorResult | dg.SkipReason


def request_of(
    key: str, last: RecordedAttempt | None, what: str, cause: str, asset: dg.AssetKey = AGGREGATED
) -> dg.RunRequest:
    """A request to run one timestamp (or another asset's partition). Dagster launches each run key once, so the same cause
    after the same attempt gives one run."""
    run_key = f"{key} after {last.storage_id if last else 0} {digest_of(what)}"
    return dg.RunRequest(run_key=run_key, partition_key=key, asset_selection=[asset], tags={CAUSE: cause})


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_fresh(path: File) -> bool:
    if is_remote(path):
        return False  # what appears in a bucket is whole
    return 0 <= time.time() - path.stat().st_ctime < SETTLE_SECONDS


def newest_of(records: Iterable[dg.EventLogRecord]) -> int:
    return max((record.storage_id for record in records), default=0)
