"""Sensors for tiles that arrive late, and for changed inputs of published timestamps."""

import json
from collections.abc import Collection

import dagster as dg

from thess_agg_dagster.audit.event_log import (
    failed_since,
    inputs_observed,
    latest_attempts,
    latest_successes,
    why_stale,
)
from thess_agg_dagster.audit.outcome import STATUSES, RecordedAttempt
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.sensors import common
from thess_agg_dagster.defs.sensors.common import Tick, is_fresh, newest_of, request_of
from thess_agg_dagster.keys import AGGREGATED, timestamps
from thess_agg_dagster.lake.time_serie import Acquisition, TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic.area import AreaError
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.timestamp.freshness import (
    changed_inputs,
    identify_inputs,
    is_identified,
    tile_names,
)
from thess_agg_dagster.timestamp.remote import located

# Databases hand out ids before others see the event: one this much older than the newest may have come since.
_LOOK_BACK = 1_000


@dg.sensor(
    target=[AGGREGATED],
    minimum_interval_seconds=common.SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Late tiles: launches a timestamp again, once, after it failed for missing or broken tiles, when all its tiles are "
    "present and at least one has changed.",
)
def late_tiles_sensor(
    context: dg.SensorEvaluationContext,
    io_manager: dg.ResourceParam[DataLakeIOManager],
    params: dg.ResourceParam[TimestampsAggregationParams],
) -> Tick:
    newest = newest_of(context.instance.fetch_observations(AGGREGATED, limit=1).records)
    cursor = json.loads(context.cursor) if context.cursor else {}
    waiting: dict[str, str] = cursor.get("waiting", {})  # and what was there of its tiles when it failed
    if newest != cursor.get("newest"):
        again = failed_since(context.instance, max(0, cursor.get("newest", 0) - _LOOK_BACK))
        looked_at = sorted(again, key=again.__getitem__)[: common.MOST_ATTEMPTS]
        if len(looked_at) < len(again):
            newest = again[looked_at[-1]]  # the next tick goes on from here
        failed = _failed_for_tiles(context.instance, looked_at)
        for key in looked_at:
            waiting.pop(key, None)
        waiting |= {key: found.attempt.inputs for key, found in failed.items()}
    try:
        acquisitions = read_time_serie(io_manager.lake.time_serie).acquisitions if waiting else {}
        params.pixel_identity()  # reads the aoi
    except (TimeSerieError, AreaError) as error:
        return dg.SkipReason(str(error))
    arrived: dict[str, str] = {}
    for key in waiting:
        if len(arrived) == common.MOST_RUNS:
            break
        if key not in acquisitions or not _are_there(acquisitions[key], io_manager, params):
            continue
        if not is_identified(waiting[key], acquisitions[key], io_manager.lake, params):
            arrived[key] = identify_inputs(acquisitions[key], io_manager.lake, params)
    requests: list[dg.RunRequest] = []
    if arrived:
        failed = _failed_for_tiles(context.instance, arrived)
        for key, inputs in arrived.items():
            # Someone else may have run it meanwhile; and a changed tile list is for `time_serie_sensor`.
            if key in failed and tuple(failed[key].attempt.scene_ids) == acquisitions[key].scene_ids:
                requests.append(request_of(key, failed[key], inputs, "tiles arrived"))
            del waiting[key]
    context.update_cursor(json.dumps({"newest": newest, "waiting": waiting}))
    if requests:
        return dg.SensorResult(run_requests=requests)
    return dg.SkipReason(f"{len(waiting)} timestamps wait for tiles" if waiting else "No timestamp waits for tiles")


@dg.sensor(
    target=[AGGREGATED],
    minimum_interval_seconds=10 * common.SECONDS,  # it looks at every tile of thousands of timestamps
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks published timestamps as stale when their tiles, tile list or parameters have changed; launches nothing.",
)
def changed_inputs_sensor(
    context: dg.SensorEvaluationContext,
    io_manager: dg.ResourceParam[DataLakeIOManager],
    params: dg.ResourceParam[TimestampsAggregationParams],
) -> Tick:
    cursor = json.loads(context.cursor) if context.cursor else {}
    told: dict[str, str] = cursor.get("told", {})
    # So many at a tick, and round again.
    registered = sorted(context.instance.get_dynamic_partitions(str(timestamps.name)))
    ahead = [key for key in registered if key > cursor.get("after", "")]
    looked_at = ahead[: common.MOST_ATTEMPTS]
    try:
        published = latest_successes(context.instance, looked_at)
        changed = changed_inputs(published, io_manager.lake, params)
        identity = params.pixel_identity()
    except (TimeSerieError, AreaError) as error:
        return dg.SkipReason(str(error))
    new = [key for key, inputs in changed.items() if told.get(key) != inputs]
    done = set(looked_at)
    stale = {key: inputs for key, inputs in told.items() if key not in done} | changed
    after = looked_at[-1] if len(ahead) > len(looked_at) else ""
    context.update_cursor(json.dumps({"told": stale, "after": after}))
    if not new:
        return dg.SkipReason(f"{len(stale)} published timestamps are stale")
    listed = read_time_serie(io_manager.lake.time_serie).acquisitions
    return dg.SensorResult(
        asset_events=[
            inputs_observed(
                key,
                changed[key],
                row.scene_ids,
                why_stale(published[key].attempt, identity, row.scene_ids, params.outputs, params.ndvi),
            )
            for key in new
            if (row := listed.get(key))
        ],
        skip_reason=f"{len(new)} published timestamps became stale, {len(stale)} are",
    )


def _failed_for_tiles(instance: dg.DagsterInstance, among: Collection[str]) -> dict[str, RecordedAttempt]:
    """Timestamps ``among`` these whose latest attempt failed for what other tiles could mend."""
    latest = latest_attempts(instance, among=among)
    return {key: found for key, found in latest.items() if (s := STATUSES.get(found.attempt.status)) and s.late_tiles}


def _are_there(acquisition: Acquisition, io_manager: DataLakeIOManager, params: TimestampsAggregationParams) -> bool:
    """Whether every tile that is needed exists and none is still being written."""
    lake = located(io_manager.lake, params)
    fingerprints = lake.fingerprints(acquisition.scene_ids)
    tiles = [lake.source(*tile) for tile in tile_names(acquisition, params, required=True)]
    try:
        return all(fingerprints(tile) and not is_fresh(tile) for tile in tiles)
    except OSError:
        return False
