"""Jobs to launch manually, and schedules that are off until you turn them on."""

from collections.abc import Sequence

import dagster as dg

from thess_agg_dagster.audit.event_log import latest_attempts, latest_successes
from thess_agg_dagster.audit.own_lake import why_not_ours
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.lake.periods import periods_of
from thess_agg_dagster.lake.publish import remove_abandoned
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.period.freshness import due_among
from thess_agg_dagster.runs.instance import UNFINISHED, fail_abandoned_runs
from thess_agg_dagster.timestamp.freshness import is_due

#: Metadata keys, at an observation of the report: the timestamps and periods that a run of `missing_or_failed` found to be due.
DUE, DUE_PERIODS = "due", "due_periods"


def _find_due(context: dg.OpExecutionContext, definition: LakeDefinition) -> None:
    instance, keys = context.instance, definition.keys
    lake, params = definition.lake_of(context), definition.params_of(context)
    fail_abandoned_runs(instance)
    for shelf in (lake, lake.composites):
        remove_abandoned(shelf.staging)
    published = latest_successes(instance, keys.aggregated)
    if refusal := why_not_ours(instance, keys, lake, published):
        raise dg.Failure(refusal, allow_retries=False)
    try:
        acquisitions = read_time_serie(lake.time_serie).acquisitions
    except TimeSerieError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    latest = latest_attempts(instance, keys.aggregated, published)
    fingerprints = lake.fingerprints()
    due = [key for key, row in acquisitions.items() if is_due(row, latest.get(key), lake, params, fingerprints)]
    made = {key: found.attempt for key, found in published.items() if key in acquisitions}
    # Periods of the mosaics as they are; `composites_sensor` sees when one of these is published anew.
    asked = list(periods_of(acquisitions, params.composites))
    due_periods = due_among(asked, latest_attempts(instance, keys.composites, among=asked), made, lake, params)
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    wanted = _not_at_work(unfinished, keys.aggregated, due)
    wanted_periods = _not_at_work(unfinished, keys.composites, due_periods)
    found = f"{len(due)} of {len(acquisitions)} timestamps are missing, failed or changed"
    if params.composites:
        found += f", and {len(due_periods)} periods"
    if runs := len(due) + len(due_periods) - len(wanted) - len(wanted_periods):
        found += f"; {runs} of these have runs already"
    context.log.info(f"{found}. Sensors launch the runs, the queue decides when")
    told = {DUE: dg.MetadataValue.json(wanted), DUE_PERIODS: dg.MetadataValue.json(wanted_periods)}
    context.log_event(dg.AssetObservation(keys.report, description=found, metadata=told))


def _not_at_work(runs: Sequence[dg.DagsterRun], asset: dg.AssetKey, keys: Sequence[str]) -> list[str]:
    """The partitions of an asset that none of the runs makes."""
    at_work = {run.tags.get("dagster/partition") for run in runs if asset in (run.asset_selection or ())}
    return [key for key in keys if key not in at_work]


def due_in(found: dg.EventLogRecord | None, what: str = DUE) -> list[str]:
    """The due timestamps (or periods) in an observation of the report."""
    event = found.event_log_entry.dagster_event if found else None
    if event is None or not event.is_asset_observation:
        return []
    value = event.asset_observation_data.asset_observation.metadata.get(what)
    return (
        list(map(str, value.data)) if isinstance(value, dg.JsonMetadataValue) and isinstance(value.data, list) else []
    )


def _missing_or_failed(definition: LakeDefinition) -> dg.JobDefinition:
    @dg.op(
        name=definition.named("find_due"),
        required_resource_keys=definition.needs,
        description="Finds what `python -m thess_agg_dagster` would make; "
        f"`{definition.named('missing_or_failed_sensor')}` and its kin launch it.",
    )
    def find_due(context: dg.OpExecutionContext) -> None:
        _find_due(context, definition)

    @dg.job(
        name=definition.named("missing_or_failed"),
        description="Everything missing, failed or changed, each timestamp and period in a run of its own; the report follows. Does what "
        "`python -m thess_agg_dagster` does, but through the run queue.",
        executor_def=dg.in_process_executor,
    )
    def missing_or_failed() -> None:
        find_due()

    return missing_or_failed


def jobs_of(definition: LakeDefinition) -> dg.Definitions:
    """The jobs of a lake, and the schedules of some of them."""
    keys = definition.keys
    of_assets = {
        "update_catalogue": (
            keys.catalogue,
            f"Adds what is new in the catalogue to the list; `{definition.named('time_serie_sensor')}` does the rest.",
        ),
        "aggregate_timestamps": (
            keys.aggregated,
            "Makes the mosaics of chosen timestamps, its partitions: for `dagster job backfill`.",
        ),
        "make_composites": (
            keys.composites,
            "Makes the composites of chosen periods, its partitions: for `dagster job backfill`.",
        ),
        "report_only": (keys.report, "Writes the audit tables."),
        "verify_published": (
            keys.verification,
            "Compares every published mosaic with what was recorded when it was made.",
        ),
    }
    nightly = {
        "verify_published": ("30 3 * * *", "Re-checks the published mosaics every night; off until you turn it on."),
        "update_catalogue": ("30 4 * * *", "Searches the catalogue every night; off until you turn it on."),
    }
    jobs = {
        name: dg.define_asset_job(definition.named(name), dg.AssetSelection.assets(asset), description=description)
        for name, (asset, description) in of_assets.items()
    }
    schedules = [
        dg.ScheduleDefinition(
            name=definition.named(f"{name}_schedule"),
            job=jobs[name],
            cron_schedule=cron,
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description=description,
        )
        for name, (cron, description) in nightly.items()
    ]
    return dg.Definitions(jobs=[_missing_or_failed(definition), *jobs.values()], schedules=schedules)
