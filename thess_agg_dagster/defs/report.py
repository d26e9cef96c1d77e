"""What is told of a lake: the report, ``timestamps_aggregation``, and the verification of what is published."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import dagster as dg

from thess_agg_dagster.audit import telling
from thess_agg_dagster.audit.attempts import Attempts
from thess_agg_dagster.audit.event_log import latest_successes, why_stale
from thess_agg_dagster.audit.own_lake import why_not_ours
from thess_agg_dagster.audit.rows import Common, TimestampRows, rows_of
from thess_agg_dagster.audit.tables import AuditTables, audited, composites_rows, newest_event, table_schema
from thess_agg_dagster.defs.attempts import AssetEvents
from thess_agg_dagster.defs.check_specs import report_checks, verification_checks
from thess_agg_dagster.defs.checks import check_one_grid, check_report, check_same_parameters
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.verification import check_published
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.timestamp.freshness import changed_inputs


def report_of(definition: LakeDefinition) -> dg.AssetsDefinition:
    keys = definition.keys

    @dg.asset(
        key=keys.report,
        deps=[keys.aggregated, keys.composites],
        check_specs=report_checks(keys),
        group_name=keys.prefixed("audit"),
        owners=definition.owners,
        kinds={"csv"},
        required_resource_keys=definition.needs,
        io_manager_key=definition.io_manager_key,
        description="The audit tables: the outcome of every timestamp and band, from the events of all runs, and a picture "
        "of it: `tables/timestamps_aggregation_*.csv`, `tables/timestamps_aggregation.png`. Tells what changed to a webhook or "
        "by mail, if these are configured.",
        metadata={"dagster/column_schema": table_schema("status")}
        | {f"{name}_columns": table_schema(name) for name in ("summary", "band_report")},
    )
    def timestamps_aggregation(context: dg.AssetExecutionContext) -> AssetEvents:
        yield from _report(context, keys, definition.lake_of(context), definition.params_of(context))

    return timestamps_aggregation


def _report(
    context: dg.AssetExecutionContext, keys: LakeKeys, lake: DataLake, params: TimestampsAggregationParams
) -> AssetEvents:
    instance = context.instance
    # Before the log is read: what comes meanwhile is for the next report.
    as_of, up_to = datetime.now(UTC), newest_event(instance, keys, stale=telling.is_asked_for())
    registered = instance.get_dynamic_partitions(str(keys.timestamps.name))
    try:
        listed = set(read_time_serie(lake.time_serie).acquisitions)
    except TimeSerieError as error:
        context.log.warning(str(error))
        listed = set(registered)  # an unusable list says nothing about what vanished from it
    published = _published(instance, keys, lake)
    stale = None
    if params.metrics or telling.is_asked_for():  # it takes a look at every tile
        stale = _stale(context, published, lake, params)
    made: dict[str, Common] = {}

    def rows() -> Iterator[TimestampRows]:
        """Of one timestamp after the other: there may be more than fit into memory."""
        for each in audited(instance, keys, lake, params.outputs, listed, published):
            if each.status["status"] == "success":
                made[each.status["timestamp"]] = each.common
            yield each

    yield dg.Output(AuditTables(rows(), composites_rows(instance, keys, lake), up_to, as_of, stale, params.metrics))
    yield check_report(lake, registered)
    for key in listed & set(published) - made.keys():  # those that failed since
        made[key] = rows_of(published[key].attempt, {}, params.outputs).common
    stand = {key: made[key] for key in sorted(listed) if key in published}
    yield check_one_grid(stand)
    yield check_same_parameters(stand)


def _stale(
    context: dg.AssetExecutionContext,
    published: Attempts,
    lake: DataLake,
    params: TimestampsAggregationParams,
) -> Mapping[str, str] | None:
    """The stale timestamps, and what has changed since they were published; ``None`` where that cannot be said."""
    try:
        listed = read_time_serie(lake.time_serie).acquisitions
        return {
            key: why_stale(published[key].attempt, params.pixel_identity(), listed[key].scene_ids, params.bands)
            for key in changed_inputs(published, lake, params)
            if key in listed
        }
    except (TimeSerieError, AreaError, OSError) as error:
        context.log.warning(f"which timestamps are stale is not known: {error}")
        return None


def _published(instance: dg.DagsterInstance, keys: LakeKeys, lake: DataLake) -> Attempts:
    """The published timestamps according to the instance; fails if they do not match the lake."""
    published = latest_successes(instance, keys.aggregated)
    if refusal := why_not_ours(instance, keys, lake, published):
        raise dg.Failure(refusal, allow_retries=False)
    return published


def verification_of(definition: LakeDefinition) -> dg.AssetsDefinition:
    keys = definition.keys

    @dg.asset(
        key=keys.verification,
        deps=[keys.aggregated, keys.composites],
        check_specs=verification_checks(keys),
        group_name=keys.prefixed("audit"),
        owners=definition.owners,
        kinds={"geotiff"},
        required_resource_keys={definition.io_manager_key},
        description="Compares every published mosaic and composite with what was recorded when it was made. The "
        f"schedule `{definition.named('verify_published_schedule')}` does this every night, once you turn it on.",
    )
    def published_mosaics(context: dg.AssetExecutionContext) -> AssetEvents:
        lake = definition.lake_of(context)
        published = _published(context.instance, keys, lake)
        composed = latest_successes(context.instance, keys.composites)
        yield dg.MaterializeResult(
            metadata={
                "timestamps": len(published),
                "periods": len(composed),
                "mosaics": sum(len(found.attempt.bands) for made in (published, composed) for found in made.values()),
            }
        )
        yield check_published(published, composed, lake)

    return published_mosaics
