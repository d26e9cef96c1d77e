"""Sensors for the report, which follows other events, and for the runs that a job requests."""

import json
from collections.abc import Iterable

import dagster as dg

from thess_agg_dagster.audit import telling
from thess_agg_dagster.audit.event_log import (
    first_sight,
)
from thess_agg_dagster.audit.tables import COLUMNS, EVENTS_UP_TO, TABLES_DIGEST, newest_event, tables_digest
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.jobs import (
    DUE,
    DUE_PERIODS,
    due_in,
)
from thess_agg_dagster.defs.sensors import common
from thess_agg_dagster.defs.sensors.common import Tick, digest_of, newest_of
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, MADE, REPORT, TIME_SERIE, periods, timestamps
from thess_agg_dagster.runs.instance import CAUSE, PARENT, UNFINISHED, fail_abandoned_runs
from thess_agg_dagster.storage.fingerprints import fingerprint_of


@dg.sensor(
    target=[REPORT],
    minimum_interval_seconds=common.SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the audit tables up to date: rewrites them after successes and failures, and when they are missing or differ "
    "from the last report, once no run is in progress.",
)
def report_sensor(context: dg.SensorEvaluationContext, io_manager: dg.ResourceParam[DataLakeIOManager]) -> Tick:
    instance, lake = context.instance, io_manager.lake
    fail_abandoned_runs(instance)
    reports = instance.fetch_materializations(REPORT, limit=1).records
    written = _up_to(reports)
    told = newest_event(instance, stale=telling.is_asked_for())
    # A run that was killed or stopped leaves no event of its asset. (A report that failed is no news for the next one.)
    ended = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
    failures = instance.get_run_records(ended, limit=20, order_by="update_timestamp")
    others = [run for record in failures if _is_ours(run := record.dagster_run) and run.asset_selection != {REPORT}]
    failure = others[0].run_id if others else "none"
    seen_failure, _, seen_tables = (context.cursor or "").partition(" ")
    tables = digest_of(" ".join(str(fingerprint_of(lake.audit_table(name))) for name in COLUMNS))
    # Read only where they have changed since they were last found to be those of the report.
    ours = not reports or tables == seen_tables or _value(reports, TABLES_DIGEST) == tables_digest(lake)
    if told <= written and seen_failure in ("", failure) and ours:
        context.update_cursor(f"{failure} {tables}")
        return dg.SkipReason("Nothing new to report")
    busy = sum(map(_is_ours, instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))))
    if busy:
        return dg.SkipReason(f"{busy} runs are not finished; the tables wait for them")
    run_key = f"{told} {failure}" if ours else f"{told} {failure} {tables} after {newest_of(reports)}"
    request = dg.RunRequest(run_key=run_key, asset_selection=[REPORT])
    return dg.SensorResult(run_requests=[request], cursor=f"{failure} {seen_tables}")


@dg.sensor(
    target=[TIME_SERIE, AGGREGATED],
    minimum_interval_seconds=min(common.SECONDS, 5),  # somebody waits, and it asks for one event
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches the timestamps that a run of the job `missing_or_failed` found to be due, with the parameters of that run.",
)
def missing_or_failed_sensor(context: dg.SensorEvaluationContext) -> Tick:
    return _launch_found(context, DUE, AGGREGATED, timestamps)


# A sensor of its own: Dagster takes no assets of different partitions as the target of one.
@dg.sensor(
    target=[COMPOSITES],
    minimum_interval_seconds=min(common.SECONDS, 5),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches the periods that a run of the job `missing_or_failed` found to be due, with the parameters of that run.",
)
def missing_or_failed_periods_sensor(context: dg.SensorEvaluationContext) -> Tick:
    return _launch_found(context, DUE_PERIODS, COMPOSITES, periods)


def _launch_found(
    context: dg.SensorEvaluationContext, what: str, asset: dg.AssetKey, partitions: dg.DynamicPartitionsDefinition
) -> Tick:
    found = next(iter(context.instance.fetch_observations(REPORT, limit=1).records), None)
    due = due_in(found, what)
    cursor = json.loads(context.cursor) if context.cursor else {}
    done = cursor.get("done", 0) if found and cursor.get("found") == found.storage_id else 0
    if not found or done >= len(due):
        return dg.SkipReason("No run of missing_or_failed has found anything since")
    parent = context.instance.get_run_by_id(found.run_id)
    config = {"resources": parent.run_config["resources"]} if parent and "resources" in parent.run_config else {}
    tags = {CAUSE: "missing or failed", PARENT: found.run_id}
    now = due[done : done + common.MOST_RUNS]
    requests = [
        dg.RunRequest(f"{found.run_id} {key}", config, tags, partition_key=key, asset_selection=[asset]) for key in now
    ]
    if asset == AGGREGATED and not done:  # the list is shown, and the report follows
        requests.insert(0, dg.RunRequest(f"{found.run_id} list", config, tags, asset_selection=[TIME_SERIE]))
    registered = set(context.instance.get_dynamic_partitions(str(partitions.name)))
    new = [key for key in now if key not in registered]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[partitions.build_add_request(new)] if new else [],
        asset_events=[first_sight(key) for key in new] if asset == AGGREGATED else [],
        cursor=json.dumps({"found": found.storage_id, "done": done + len(now)}),
    )


def _is_ours(run: dg.DagsterRun) -> bool:
    """Whether a run may concern this lake. (Which assets a job without a selection makes, it does not say.)"""
    return run.asset_selection is None or bool(run.asset_selection & MADE)


def _up_to(reports: Iterable[dg.EventLogRecord]) -> int:
    """The newest event that the latest report knew of."""
    for record in reports:
        return int(str(_value([record], EVENTS_UP_TO) or record.storage_id))
    return 0


def _value(reports: Iterable[dg.EventLogRecord], name: str) -> object:
    """A value from the metadata of the latest report."""
    found = next((event.metadata.get(name) for record in reports if (event := record.asset_materialization)), None)
    return found.value if found else None
