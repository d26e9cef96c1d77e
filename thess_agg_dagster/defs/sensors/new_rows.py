"""The sensor for a new or changed list."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg

from thess_agg_dagster.audit.event_log import first_sight, latest_attempts
from thess_agg_dagster.defs.checks import unusable_list
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.sensors.common import Tick, digest_of, request_of, sensor_of
from thess_agg_dagster.lake.time_serie import TimeSerie, TimeSerieError, read_time_serie
from thess_agg_dagster.storage.fingerprints import exact_fingerprint_of, is_fresh


def time_serie_sensor_of(definition: LakeDefinition) -> dg.SensorDefinition:
    return sensor_of(
        definition,
        "time_serie_sensor",
        _tick,
        target=[definition.keys.time_serie, definition.keys.aggregated],
        needs={definition.io_manager_key},
        description="A new or changed `time_serie.csv`: registers its timestamps and launches those that are new or whose tile list "
        "changed.",
    )


def _tick(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> Tick:
    path, pace = definition.lake_of(context).time_serie, definition.pace
    cursor = json.loads(context.cursor) if context.cursor else {}
    fingerprint = exact_fingerprint_of(path)
    if fingerprint is None:
        if not cursor.get("stamp"):  # a fingerprint; cursors of 0.1.0 call it so
            return dg.SkipReason(f"{path}: no such file yet")
        return _unusable(definition, cursor, None, f"{path}: is gone; put it back (files on disk stay)")
    if cursor.get("refused") == [fingerprint]:
        return dg.SkipReason(f"{path} is unusable, and has not changed; its check `schema` says why")
    if fingerprint == cursor.get("stamp") and not cursor.get("after"):
        return dg.SkipReason(f"{path} has not changed")
    if is_fresh(path, pace.settle_seconds):
        return dg.SkipReason(
            f"{path} changed less than {pace.settle_seconds} s ago; waiting, because it may not be complete"
        )
    try:
        series = read_time_serie(path)
    except TimeSerieError as error:
        return _unusable(definition, cursor, fingerprint, str(error))
    if exact_fingerprint_of(path) != fingerprint:
        return dg.SkipReason(f"{path} changed while it was read; it will be read again")
    after = cursor.get("after") or "" if fingerprint == cursor.get("stamp") else ""
    return _launch(context.instance, definition, series, fingerprint, after)


def _launch(
    instance: dg.DagsterInstance, definition: LakeDefinition, series: TimeSerie, fingerprint: list[Any], after: str
) -> dg.SensorResult:
    """Launch what is new or changed in a list, beyond a key where the last tick stopped."""
    keys, pace = definition.keys, definition.pace
    # Sorted, so that a list too long for one tick goes on where the last one stopped.
    ahead = sorted(key for key in series.acquisitions if key > after)
    looked_at = ahead[: pace.most_attempts]
    latest = latest_attempts(instance, keys.aggregated, among=looked_at)
    wanted = {
        key: series.acquisitions[key]
        for key in looked_at
        if key not in latest or tuple(latest[key].attempt.scene_ids) != series.acquisitions[key].scene_ids
    }
    now = list(wanted)[: pace.most_runs]
    last = now[-1] if len(wanted) > len(now) else looked_at[-1] if len(ahead) > len(looked_at) else None
    registered = set(instance.get_dynamic_partitions(str(keys.timestamps.name)))
    new = [key for key in series.acquisitions if key not in registered]
    causes = {key: "tile list changed" if key in latest else "new" for key in now}
    requests = [
        request_of(keys.aggregated, key, latest.get(key), "\n".join(wanted[key].scene_ids), causes[key]) for key in now
    ]
    if not after:  # the asset tells which rows were refused, and shows the list
        run_key = f"list {digest_of(json.dumps(fingerprint))}"
        requests.insert(0, dg.RunRequest(run_key=run_key, asset_selection=[keys.time_serie]))
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[keys.timestamps.build_add_request(new)] if new else [],
        asset_events=[first_sight(keys, key, wanted[key].scene_ids) for key in now if key not in latest],
        cursor=json.dumps({"stamp": fingerprint, "after": last}),
    )


def _unusable(definition: LakeDefinition, cursor: dict[str, Any], fingerprint: list[Any] | None, message: str) -> Tick:
    """A list that cannot be used fails its check, once for each state of the file; the cursor keeps the last good one."""
    if cursor.get("refused") == [fingerprint]:
        return dg.SkipReason(message)
    return dg.SensorResult(
        skip_reason=message,
        asset_events=[unusable_list(definition.keys, message)],
        cursor=json.dumps(cursor | {"refused": [fingerprint]}),
    )
