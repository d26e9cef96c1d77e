"""What runs by itself: sensors for the list, for tiles that arrive late, for what a job found, and for the report."""

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import dagster as dg

from thess_agg_dagster.audit.event_log import (
    failed_since,
    first_sight,
    inputs_observed,
    latest_attempts,
    latest_successes,
    why_stale,
)
from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.audit.tables import COLUMNS, EVENTS_UP_TO, TABLES_DIGEST, newest_event, tables_digest
from thess_agg_dagster.defs.checks import unusable_list
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.jobs import (
    aggregate_timestamps,
    due_in,
    missing_or_failed,
    report_only,
    verify_published,
    verify_published_schedule,
)
from thess_agg_dagster.keys import AGGREGATED, MADE, REPORT, TIME_SERIE, timestamps
from thess_agg_dagster.lake.time_serie import Acquisition, TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic.area import AreaError
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.instance import CAUSE, PARENT, UNFINISHED, fail_abandoned_runs
from thess_agg_dagster.storage.fingerprints import fingerprint_of
from thess_agg_dagster.storage.paths import is_remote
from thess_agg_dagster.timestamp.freshness import (
    changed_inputs,
    identify_inputs,
    is_identified,
    tile_names,
)
from thess_agg_dagster.timestamp.remote import located


def _interval() -> int:
    """Seconds between two looks of a sensor: ``THESS_SENSOR_SECONDS``, or 30."""
    given = os.environ.get("THESS_SENSOR_SECONDS", "").strip() or "30"
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"THESS_SENSOR_SECONDS={given!r} is not a number of seconds, 1 or more")
    return int(given)


_SECONDS = _interval()
# A file that changed less than this ago may still be in the making.
_SETTLE_SECONDS = 5
# More runs than this are asked for over several ticks, each short enough for Dagster to answer for.
_MOST_RUNS = 500
# So are more attempts looked up: Dagster takes about a millisecond to read one, and gives up on a tick after 60 s.
_MOST_ATTEMPTS = 5_000
# Databases hand out ids before others see the event: one this much older than the newest may have come since.
_LOOK_BACK = 1_000

Tick = dg.SensorResult | dg.SkipReason


@dg.sensor(
    target=[TIME_SERIE, AGGREGATED],
    minimum_interval_seconds=_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A new or changed `time_serie.csv`: registers its timestamps and launches those that are new or whose "
    "tile list changed.",
)
def time_serie_sensor(context: dg.SensorEvaluationContext, io_manager: dg.ResourceParam[DataLakeIOManager]) -> Tick:
    path = io_manager.lake.time_serie
    cursor = json.loads(context.cursor) if context.cursor else {}
    stamp = _stamp(path)
    if stamp is None:
        if not cursor.get("stamp"):
            return dg.SkipReason(f"{path}: no such file yet")
        return _unusable(cursor, None, f"{path}: is gone; put it back (what is on disk stays)")
    if cursor.get("refused") == [stamp]:
        return dg.SkipReason(f"{path} is unusable, and has not changed; its check `schema` says why")
    if stamp == cursor.get("stamp") and not cursor.get("after"):
        return dg.SkipReason(f"{path} has not changed")
    if _is_fresh(path):
        return dg.SkipReason(f"{path} changed less than {_SETTLE_SECONDS} s ago; it may still be written, so it waits")
    try:
        series = read_time_serie(path)
    except TimeSerieError as error:
        return _unusable(cursor, stamp, str(error))
    if _stamp(path) != stamp:
        return dg.SkipReason(f"{path} changed while it was read; it is looked at again")
    # Sorted, so that a list too long for one tick goes on where the last one stopped.
    after = cursor.get("after") or "" if stamp == cursor.get("stamp") else ""
    ahead = sorted(key for key in series.acquisitions if key > after)
    looked_at = ahead[:_MOST_ATTEMPTS]
    latest = latest_attempts(context.instance, among=looked_at)
    wanted = {
        key: series.acquisitions[key]
        for key in looked_at
        if key not in latest or tuple(latest[key].attempt.scene_ids) != series.acquisitions[key].scene_ids
    }
    now = list(wanted)[:_MOST_RUNS]
    last = now[-1] if len(wanted) > len(now) else looked_at[-1] if len(ahead) > len(looked_at) else None
    registered = set(context.instance.get_dynamic_partitions(str(timestamps.name)))
    new = [key for key in series.acquisitions if key not in registered]
    requests = [
        _request(
            key, latest.get(key), "\n".join(wanted[key].scene_ids), "tile list changed" if key in latest else "new"
        )
        for key in now
    ]
    if not after:  # the asset tells which rows were refused, and shows the list
        requests.insert(0, dg.RunRequest(run_key=f"list {_digest(json.dumps(stamp))}", asset_selection=[TIME_SERIE]))
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[timestamps.build_add_request(new)] if new else [],
        asset_events=[first_sight(key, wanted[key].scene_ids) for key in now if key not in latest],
        cursor=json.dumps({"stamp": stamp, "after": last}),
    )


@dg.sensor(
    target=[AGGREGATED],
    minimum_interval_seconds=_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tiles that arrive late: launches a timestamp that failed for missing or broken tiles again, once, when "
    "all of its tiles are there and something about them changed.",
)
def late_tiles_sensor(
    context: dg.SensorEvaluationContext,
    io_manager: dg.ResourceParam[DataLakeIOManager],
    params: TimestampsAggregationParams,
) -> Tick:
    newest = _newest(context.instance.fetch_observations(AGGREGATED, limit=1).records)
    cursor = json.loads(context.cursor) if context.cursor else {}
    waiting: dict[str, str] = cursor.get("waiting", {})  # and what was there of its tiles when it failed
    if newest != cursor.get("newest"):
        again = failed_since(context.instance, max(0, cursor.get("newest", 0) - _LOOK_BACK))
        looked_at = sorted(again, key=again.__getitem__)[:_MOST_ATTEMPTS]
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
        if len(arrived) == _MOST_RUNS:
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
                requests.append(_request(key, failed[key], inputs, "tiles arrived"))
            del waiting[key]
    context.update_cursor(json.dumps({"newest": newest, "waiting": waiting}))
    if requests:
        return dg.SensorResult(run_requests=requests)
    return dg.SkipReason(f"{len(waiting)} timestamps wait for tiles" if waiting else "No timestamp waits for tiles")


@dg.sensor(
    target=[AGGREGATED],
    minimum_interval_seconds=10 * _SECONDS,  # it looks at every tile of thousands of timestamps
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches nothing: marks published timestamps as stale whose tiles, tile list or parameters have changed.",
)
def changed_inputs_sensor(
    context: dg.SensorEvaluationContext,
    io_manager: dg.ResourceParam[DataLakeIOManager],
    params: TimestampsAggregationParams,
) -> Tick:
    cursor = json.loads(context.cursor) if context.cursor else {}
    told: dict[str, str] = cursor.get("told", {})
    # So many at a tick, and round again.
    registered = sorted(context.instance.get_dynamic_partitions(str(timestamps.name)))
    ahead = [key for key in registered if key > cursor.get("after", "")]
    looked_at = ahead[:_MOST_ATTEMPTS]
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
                why_stale(published[key].attempt, identity, row.scene_ids, params.bands),
            )
            for key in new
            if (row := listed.get(key))
        ],
        skip_reason=f"{len(new)} published timestamps became stale, {len(stale)} are",
    )


@dg.sensor(
    target=[REPORT],
    minimum_interval_seconds=_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the audit tables fresh: writes them when timestamps succeeded or failed since, or the tables are gone or "
    "not those of the last report, and nothing is at work any more.",
)
def report_sensor(context: dg.SensorEvaluationContext, io_manager: dg.ResourceParam[DataLakeIOManager]) -> Tick:
    instance, lake = context.instance, io_manager.lake
    fail_abandoned_runs(instance)
    reports = instance.fetch_materializations(REPORT, limit=1).records
    written = _up_to(reports)
    told = newest_event(instance)
    # A run that was killed or stopped leaves no event of its asset. (A report that failed is no news for the next one.)
    ended = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
    failures = instance.get_run_records(ended, limit=20, order_by="update_timestamp")
    others = [run for record in failures if _is_ours(run := record.dagster_run) and run.asset_selection != {REPORT}]
    failure = others[0].run_id if others else "none"
    seen_failure, _, seen_tables = (context.cursor or "").partition(" ")
    tables = _digest(" ".join(str(fingerprint_of(lake.audit_table(name))) for name in COLUMNS))
    # Read only where they have changed since they were last found to be those of the report.
    ours = not reports or tables == seen_tables or _value(reports, TABLES_DIGEST) == tables_digest(lake)
    if told <= written and seen_failure in ("", failure) and ours:
        context.update_cursor(f"{failure} {tables}")
        return dg.SkipReason("Nothing new to tell")
    busy = sum(map(_is_ours, instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))))
    if busy:
        return dg.SkipReason(f"{busy} runs are not finished; the tables wait for them")
    run_key = f"{told} {failure}" if ours else f"{told} {failure} {tables} after {_newest(reports)}"
    request = dg.RunRequest(run_key=run_key, asset_selection=[REPORT])
    return dg.SensorResult(run_requests=[request], cursor=f"{failure} {seen_tables}")


@dg.sensor(
    target=[TIME_SERIE, AGGREGATED],
    minimum_interval_seconds=min(_SECONDS, 5),  # somebody waits, and it asks for one event
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches what a run of the job `missing_or_failed` found to be due, with the parameters of that run.",
)
def missing_or_failed_sensor(context: dg.SensorEvaluationContext) -> Tick:
    found = next(iter(context.instance.fetch_observations(REPORT, limit=1).records), None)
    due = due_in(found)
    cursor = json.loads(context.cursor) if context.cursor else {}
    done = cursor.get("done", 0) if found and cursor.get("found") == found.storage_id else 0
    if not found or done >= len(due):
        return dg.SkipReason("No run of missing_or_failed has found anything since")
    parent = context.instance.get_run_by_id(found.run_id)
    config = {"resources": parent.run_config["resources"]} if parent and "resources" in parent.run_config else {}
    tags = {CAUSE: "missing or failed", PARENT: found.run_id}
    now = due[done : done + _MOST_RUNS]
    requests = [
        dg.RunRequest(f"{found.run_id} {key}", config, tags, partition_key=key, asset_selection=[AGGREGATED])
        for key in now
    ]
    if not done:  # the list is shown, and the report follows
        requests.insert(0, dg.RunRequest(f"{found.run_id} list", config, tags, asset_selection=[TIME_SERIE]))
    registered = set(context.instance.get_dynamic_partitions(str(timestamps.name)))
    new = [key for key in now if key not in registered]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[timestamps.build_add_request(new)] if new else [],
        asset_events=[first_sight(key) for key in new],
        cursor=json.dumps({"found": found.storage_id, "done": done + len(now)}),
    )


automation = dg.Definitions(
    jobs=[missing_or_failed, aggregate_timestamps, report_only, verify_published],
    sensors=[time_serie_sensor, late_tiles_sensor, changed_inputs_sensor, missing_or_failed_sensor, report_sensor],
    schedules=[verify_published_schedule],
)


def _request(key: str, last: RecordedAttempt | None, what: str, cause: str) -> dg.RunRequest:
    """A run of one timestamp. Dagster launches a run key once, so the same cause after the same attempt is one run."""
    run_key = f"{key} after {last.storage_id if last else 0} {_digest(what)}"
    return dg.RunRequest(run_key=run_key, partition_key=key, asset_selection=[AGGREGATED], tags={CAUSE: cause})


def _is_ours(run: dg.DagsterRun) -> bool:
    """Whether a run may concern this lake. (Which assets a job without a selection makes, it does not say.)"""
    return run.asset_selection is None or bool(run.asset_selection & MADE)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unusable(cursor: dict[str, Any], stamp: list[Any] | None, message: str) -> Tick:
    """A list that cannot be used fails its check, once for each state of the file; the cursor keeps the last good one."""
    if cursor.get("refused") == [stamp]:
        return dg.SkipReason(message)
    return dg.SensorResult(
        skip_reason=message,
        asset_events=[unusable_list(message)],
        cursor=json.dumps(cursor | {"refused": [stamp]}),
    )


def _stamp(path: Path) -> list[Any] | None:
    """What changes whenever a file is written or replaced, its modification time kept or not."""
    if is_remote(path):
        stamp = fingerprint_of(path)
        return None if stamp is None else [stamp, path.stat().st_mtime_ns]
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _is_fresh(path: Path) -> bool:
    if is_remote(path):
        return False  # what appears in a bucket is whole
    return 0 <= time.time() - path.stat().st_ctime < _SETTLE_SECONDS


def _failed_for_tiles(instance: dg.DagsterInstance, among: Collection[str]) -> dict[str, RecordedAttempt]:
    """Timestamps ``among`` these whose latest attempt failed for what other tiles could mend."""
    causes = ("failed_missing_inputs", "failed_invalid_inputs")
    latest = latest_attempts(instance, among=among)
    return {key: found for key, found in latest.items() if found.attempt.status in causes}


def _are_there(acquisition: Acquisition, io_manager: DataLakeIOManager, params: TimestampsAggregationParams) -> bool:
    """Whether every tile that is needed exists and none is still being written."""
    lake = located(io_manager.lake, params)
    stamps = lake.stamps(acquisition.scene_ids)
    tiles = [lake.tile(*tile) for tile in tile_names(acquisition, params, required=True)]
    try:
        return all(stamps(tile) and not _is_fresh(tile) for tile in tiles)
    except OSError:
        return False


def _up_to(reports: Iterable[dg.EventLogRecord]) -> int:
    """The newest event that the latest report knew of."""
    for record in reports:
        return int(str(_value([record], EVENTS_UP_TO) or record.storage_id))
    return 0


def _value(reports: Iterable[dg.EventLogRecord], name: str) -> object:
    """What the latest report says of itself."""
    found = next((event.metadata.get(name) for record in reports if (event := record.asset_materialization)), None)
    return found.value if found else None


def _newest(records: Iterable[dg.EventLogRecord]) -> int:
    return max((record.storage_id for record in records), default=0)
