"""Sensors for the report, which follows other events, and for the runs that a job requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import dagster as dg

from thess_agg_dagster.audit import telling
from thess_agg_dagster.audit.event_log import first_sight
from thess_agg_dagster.audit.rows import COLUMNS
from thess_agg_dagster.audit.tables import EVENTS_UP_TO, TABLES_DIGEST, newest_event, tables_digest
from thess_agg_dagster.defs.jobs import DUE, DUE_PERIODS, due_in
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.sensors.common import Tick, concerns, digest_of, newest_of, sensor_of
from thess_agg_dagster.runs.instance import CAUSE, PARENT, UNFINISHED, fail_abandoned_runs
from thess_agg_dagster.storage.fingerprints import fingerprint_of


def report_sensor_of(definition: LakeDefinition) -> dg.SensorDefinition:
    return sensor_of(
        definition,
        "report_sensor",
        _report,
        target=[definition.keys.report],
        needs={definition.io_manager_key},
        description="Keeps the audit tables up to date: rewrites them after successes and failures, and when they are missing or "
        "differ from the last report, once no run is in progress.",
    )


def missing_or_failed_sensor_of(definition: LakeDefinition) -> dg.SensorDefinition:
    keys = definition.keys
    return _launcher_of(definition, "missing_or_failed_sensor", _launch_timestamps, [keys.time_serie, keys.aggregated])


def missing_or_failed_periods_sensor_of(definition: LakeDefinition) -> dg.SensorDefinition:
    """A sensor of its own: Dagster takes no assets of different partitions as the target of one."""
    return _launcher_of(definition, "missing_or_failed_periods_sensor", _launch_periods, [definition.keys.composites])


def _launcher_of(
    definition: LakeDefinition,
    name: str,
    tick: Callable[[dg.SensorEvaluationContext, LakeDefinition], Tick],
    target: Sequence[dg.AssetKey],
) -> dg.SensorDefinition:
    job, assets = definition.named("missing_or_failed"), " and ".join(f"`{key.to_user_string()}`" for key in target)
    return sensor_of(
        definition,
        name,
        tick,
        target=target,
        needs=set(),
        seconds=definition.pace.found_seconds,
        description=f"Launches what a run of the job `{job}` found to be due of {assets}, with the parameters of that run.",
    )


def _report(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> Tick:
    instance, keys, lake = context.instance, definition.keys, definition.lake_of(context)
    fail_abandoned_runs(instance)
    reports = instance.fetch_materializations(keys.report, limit=1).records
    written = _up_to(reports)
    told = newest_event(instance, keys, stale=telling.is_asked_for())
    seen_failure, _, seen_tables = (context.cursor or "").partition(" ")
    failure = _latest_failure(instance, definition) or seen_failure or "none"
    tables = digest_of(" ".join(str(fingerprint_of(lake.audit_table(name))) for name in COLUMNS))
    # Read only where they have changed since they were last found to be those of the report.
    ours = not reports or tables == seen_tables or _value(reports, TABLES_DIGEST) == tables_digest(lake)
    if told <= written and seen_failure in ("", failure) and ours:
        context.update_cursor(f"{failure} {tables}")
        return dg.SkipReason("Nothing new to report")
    busy = sum(concerns(run, definition, keys.made) for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)))
    if busy:
        return dg.SkipReason(f"{busy} runs are not finished; the tables wait for them")
    run_key = f"{told} {failure}" if ours else f"{told} {failure} {tables} after {newest_of(reports)}"
    request = dg.RunRequest(run_key=run_key, asset_selection=[keys.report])
    return dg.SensorResult(run_requests=[request], cursor=f"{failure} {seen_tables}")


def _latest_failure(instance: dg.DagsterInstance, definition: LakeDefinition) -> str | None:
    """The latest run that failed or was stopped, among the latest ones of all lakes. If it was killed, it leaves no event of
    its asset. (A report that failed is no news for the next one.)"""
    ended = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
    limit = 200 if definition.among_others else 20
    runs = [each.dagster_run for each in instance.get_run_records(ended, limit=limit, order_by="update_timestamp")]
    others = [run for run in runs if run.asset_selection != {definition.keys.report}]
    return next((run.run_id for run in others if concerns(run, definition, definition.keys.made)), None)


def _launch_timestamps(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> Tick:
    keys = definition.keys
    return _launch_found(context, definition, DUE, keys.aggregated, keys.timestamps)


def _launch_periods(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> Tick:
    keys = definition.keys
    return _launch_found(context, definition, DUE_PERIODS, keys.composites, keys.periods)


def _launch_found(
    context: dg.SensorEvaluationContext,
    definition: LakeDefinition,
    what: str,
    asset: dg.AssetKey,
    partitions: dg.DynamicPartitionsDefinition,
) -> Tick:
    keys = definition.keys
    found = next(iter(context.instance.fetch_observations(keys.report, limit=1).records), None)
    due = due_in(found, what)
    cursor = json.loads(context.cursor) if context.cursor else {}
    done = cursor.get("done", 0) if found and cursor.get("found") == found.storage_id else 0
    if not found or done >= len(due):
        return dg.SkipReason("No run of missing_or_failed has found anything since")
    parent = context.instance.get_run_by_id(found.run_id)
    config = {"resources": parent.run_config["resources"]} if parent and "resources" in parent.run_config else {}
    tags = {CAUSE: "missing or failed", PARENT: found.run_id}
    now = due[done : done + definition.pace.most_runs]
    requests = [
        dg.RunRequest(f"{found.run_id} {key}", config, tags, partition_key=key, asset_selection=[asset]) for key in now
    ]
    if asset == keys.aggregated and not done:  # the list is shown, and the report follows
        requests.insert(0, dg.RunRequest(f"{found.run_id} list", config, tags, asset_selection=[keys.time_serie]))
    registered = set(context.instance.get_dynamic_partitions(str(partitions.name)))
    new = [key for key in now if key not in registered]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[partitions.build_add_request(new)] if new else [],
        asset_events=[first_sight(keys, key) for key in new] if asset == keys.aggregated else [],
        cursor=json.dumps({"found": found.storage_id, "done": done + len(now)}),
    )


def _up_to(reports: Iterable[dg.EventLogRecord]) -> int:
    """The newest event that the latest report knew of."""
    for record in reports:
        return int(str(_value([record], EVENTS_UP_TO) or record.storage_id))
    return 0


def _value(reports: Iterable[dg.EventLogRecord], name: str) -> object:
    """A value from the metadata of the latest report."""
    found = next((event.metadata.get(name) for record in reports if (event := record.asset_materialization)), None)
    return found.value if found else None
