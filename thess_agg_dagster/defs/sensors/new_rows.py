"""The sensor for a new or changed list."""

import json
from typing import Any

import dagster as dg

from thess_agg_dagster.audit.event_log import (
    first_sight,
    latest_attempts,
)
from thess_agg_dagster.defs.checks import unusable_list
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.sensors import common
from thess_agg_dagster.defs.sensors.common import Tick, digest_of, is_fresh, request_of
from thess_agg_dagster.keys import AGGREGATED, TIME_SERIE, timestamps
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.storage.fingerprints import exact_fingerprint_of


@dg.sensor(
    target=[TIME_SERIE, AGGREGATED],
    minimum_interval_seconds=common.SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A new or changed `time_serie.csv`: registers its timestamps and launches those that are new or whose "
    "tile list changed.",
)
def time_serie_sensor(context: dg.SensorEvaluationContext, io_manager: dg.ResourceParam[DataLakeIOManager]) -> Tick:
    path = io_manager.lake.time_serie
    cursor = json.loads(context.cursor) if context.cursor else {}
    fingerprint = exact_fingerprint_of(path)
    if fingerprint is None:
        if not cursor.get("stamp"):  # a fingerprint; cursors of 0.1.0 call it so
            return dg.SkipReason(f"{path}: no such file yet")
        return _unusable(cursor, None, f"{path}: is gone; put it back (files on disk stay)")
    if cursor.get("refused") == [fingerprint]:
        return dg.SkipReason(f"{path} is unusable, and has not changed; its check `schema` says why")
    if fingerprint == cursor.get("stamp") and not cursor.get("after"):
        return dg.SkipReason(f"{path} has not changed")
    if is_fresh(path):
        return dg.SkipReason(
            f"{path} changed less than {common.SETTLE_SECONDS} s ago; waiting, because it may not be complete"
        )
    try:
        series = read_time_serie(path)
    except TimeSerieError as error:
        return _unusable(cursor, fingerprint, str(error))
    if exact_fingerprint_of(path) != fingerprint:
        return dg.SkipReason(f"{path} changed while it was read; it will be read again")
    # Sorted, so that a list too long for one tick goes on where the last one stopped.
    after = cursor.get("after") or "" if fingerprint == cursor.get("stamp") else ""
    ahead = sorted(key for key in series.acquisitions if key > after)
    looked_at = ahead[: common.MOST_ATTEMPTS]
    latest = latest_attempts(context.instance, among=looked_at)
    wanted = {
        key: series.acquisitions[key]
        for key in looked_at
        if key not in latest or tuple(latest[key].attempt.scene_ids) != series.acquisitions[key].scene_ids
    }
    now = list(wanted)[: common.MOST_RUNS]
    last = now[-1] if len(wanted) > len(now) else looked_at[-1] if len(ahead) > len(looked_at) else None
    registered = set(context.instance.get_dynamic_partitions(str(timestamps.name)))
    new = [key for key in series.acquisitions if key not in registered]
    causes = {key: "tile list changed" if key in latest else "new" for key in now}
    requests = [request_of(key, latest.get(key), "\n".join(wanted[key].scene_ids), causes[key]) for key in now]
    if not after:  # the asset tells which rows were refused, and shows the list
        requests.insert(
            0, dg.RunRequest(run_key=f"list {digest_of(json.dumps(fingerprint))}", asset_selection=[TIME_SERIE])
        )
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[timestamps.build_add_request(new)] if new else [],
        asset_events=[first_sight(key, wanted[key].scene_ids) for key in now if key not in latest],
        cursor=json.dumps({"stamp": fingerprint, "after": last}),
    )


def _unusable(cursor: dict[str, Any], fingerprint: list[Any] | None, message: str) -> Tick:
    """A list that cannot be used fails its check, once for each state of the file; the cursor keeps the last good one."""
    if cursor.get("refused") == [fingerprint]:
        return dg.SkipReason(message)
    return dg.SensorResult(
        skip_reason=message,
        asset_events=[unusable_list(message)],
        cursor=json.dumps(cursor | {"refused": [fingerprint]}),
    )
