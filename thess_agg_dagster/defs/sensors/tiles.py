"""Sensors for tiles that arrive late, and for changed inputs of published timestamps."""

from __future__ import annotations

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
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.sensors.common import Tick, newest_of, request_of, sensor_of
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition, TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.fingerprints import is_fresh
from thess_agg_dagster.timestamp.freshness import (
    changed_inputs,
    identify_inputs,
    is_identified,
    tile_names,
)
from thess_agg_dagster.timestamp.remote import located


def late_tiles_sensor_of(definition: LakeDefinition) -> dg.SensorDefinition:
    return sensor_of(
        definition,
        "late_tiles_sensor",
        _late,
        target=[definition.keys.aggregated],
        needs=definition.needs,
        description="Late tiles: launches a timestamp again, once, after it failed for missing or broken tiles, when all its tiles "
        "are present and at least one has changed.",
    )


def changed_inputs_sensor_of(definition: LakeDefinition) -> dg.SensorDefinition:
    return sensor_of(
        definition,
        "changed_inputs_sensor",
        _changed,
        target=[definition.keys.aggregated],
        needs=definition.needs,
        seconds=10 * definition.pace.seconds,  # it looks at every tile of thousands of timestamps
        description="Marks published timestamps as stale when their tiles, tile list or parameters have changed; launches nothing.",
    )


def _late(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> Tick:
    lake, params = definition.lake_of(context), definition.params_of(context)
    newest, waiting = _waiting(context, definition)
    try:
        acquisitions = read_time_serie(lake.time_serie).acquisitions if waiting else {}
        params.pixel_identity()  # reads the aoi
    except (TimeSerieError, AreaError) as error:
        return dg.SkipReason(str(error))
    arrived: dict[str, str] = {}
    for key in waiting:
        if len(arrived) == definition.pace.most_runs:
            break
        if key not in acquisitions or not _are_there(acquisitions[key], lake, params, definition.pace.settle_seconds):
            continue
        if not is_identified(waiting[key], acquisitions[key], lake, params):
            arrived[key] = identify_inputs(acquisitions[key], lake, params)
    requests: list[dg.RunRequest] = []
    if arrived:
        asset = definition.keys.aggregated
        failed = _failed_for_tiles(context.instance, asset, arrived)
        for key, inputs in arrived.items():
            # Someone else may have run it meanwhile; and a changed tile list is for `time_serie_sensor`.
            if key in failed and tuple(failed[key].attempt.scene_ids) == acquisitions[key].scene_ids:
                requests.append(request_of(asset, key, failed[key], inputs, "tiles arrived"))
            del waiting[key]
    context.update_cursor(json.dumps({"newest": newest, "waiting": waiting}))
    if requests:
        return dg.SensorResult(run_requests=requests)
    return dg.SkipReason(f"{len(waiting)} timestamps wait for tiles" if waiting else "No timestamp waits for tiles")


def _waiting(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> tuple[int, dict[str, str]]:
    """The newest event that was looked at, and the timestamps that wait for tiles, with what was there when they failed."""
    instance, asset, pace = context.instance, definition.keys.aggregated, definition.pace
    newest = newest_of(instance.fetch_observations(asset, limit=1).records)
    cursor = json.loads(context.cursor) if context.cursor else {}
    waiting: dict[str, str] = cursor.get("waiting", {})
    if newest != cursor.get("newest"):
        again = failed_since(instance, asset, max(0, cursor.get("newest", 0) - pace.look_back))
        looked_at = sorted(again, key=again.__getitem__)[: pace.most_attempts]
        if len(looked_at) < len(again):
            newest = again[looked_at[-1]]  # the next tick goes on from here
        failed = _failed_for_tiles(instance, asset, looked_at)
        for key in looked_at:
            waiting.pop(key, None)
        waiting |= {key: found.attempt.inputs for key, found in failed.items()}
    return newest, waiting


def _changed(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> Tick:
    keys, lake, params = definition.keys, definition.lake_of(context), definition.params_of(context)
    cursor = json.loads(context.cursor) if context.cursor else {}
    told: dict[str, str] = cursor.get("told", {})
    # So many at a tick, and round again.
    registered = sorted(context.instance.get_dynamic_partitions(str(keys.timestamps.name)))
    ahead = [key for key in registered if key > cursor.get("after", "")]
    looked_at = ahead[: definition.pace.most_attempts]
    try:
        published = latest_successes(context.instance, keys.aggregated, looked_at)
        changed = changed_inputs(published, lake, params)
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
    listed = read_time_serie(lake.time_serie).acquisitions
    return dg.SensorResult(
        asset_events=[
            inputs_observed(
                keys,
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


def _failed_for_tiles(
    instance: dg.DagsterInstance, asset: dg.AssetKey, among: Collection[str]
) -> dict[str, RecordedAttempt]:
    """Timestamps ``among`` these whose latest attempt failed for what other tiles could mend."""
    latest = latest_attempts(instance, asset, among=among)
    return {key: found for key, found in latest.items() if (s := STATUSES.get(found.attempt.status)) and s.late_tiles}


def _are_there(
    acquisition: Acquisition, lake: DataLake, params: TimestampsAggregationParams, settle_seconds: float
) -> bool:
    """Whether every tile that is needed exists and none is still being written."""
    sources = located(lake, params)
    fingerprints = sources.fingerprints(acquisition.scene_ids)
    tiles = [sources.source(*tile) for tile in tile_names(acquisition, params, required=True)]
    try:
        return all(fingerprints(tile) and not is_fresh(tile, settle_seconds) for tile in tiles)
    except OSError:
        return False
