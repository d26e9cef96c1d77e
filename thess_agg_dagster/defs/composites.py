"""Composites: ``data_raw/aggregated`` -> ``data_raw/aggregated_by_period`` (seen, not made) -> ``data_raw/composites``.

Between timestamps and periods stands no partition mapping of our own: the UI and the daemon know Dagster's alone, take any
other for identity, and every backfill of periods would fail for timestamps called ``2023-04``. (``test_composites.py`` looks
whether that is still so.) Instead each run that publishes a timestamp tells what its periods consist of now, as an
observation of an asset with the same partitions as the composites. So what Dagster shows as stale is.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import dagster as dg

from thess_agg_dagster.audit.event_log import latest_successes, mosaics_observed, stopping_is_final
from thess_agg_dagster.audit.outcome import Attempt
from thess_agg_dagster.defs.attempts import RETRIES, AssetEvents, attempted
from thess_agg_dagster.defs.check_specs import composites_checks
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.registering import register
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.periods import KINDS, MONTH, kind_of, period_of, periods_of, quarter_of
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.period.freshness import COMPOSITES_VERSION, identify_mosaics, members_of
from thess_agg_dagster.runs.instance import claim_run

if TYPE_CHECKING:
    from thess_agg_dagster.period.plan import PeriodPlan


def mosaics_by_period_of(definition: LakeDefinition) -> dg.AssetSpec:
    keys = definition.keys
    return dg.AssetSpec(
        keys.mosaics_by_period,
        deps=[dg.AssetDep(keys.aggregated, partition_mapping=dg.AllPartitionMapping())],
        partitions_def=keys.periods,
        group_name=keys.prefixed("mosaics"),
        owners=definition.owners,
        kinds={"geotiff"},
        description="The published mosaics of each month and quarter, in `data_raw/aggregated`: what composites are made of. "
        "Where one of them was made anew, the composites of its periods are stale.",
    )


def composites_of(definition: LakeDefinition) -> dg.AssetsDefinition:
    keys = definition.keys

    @dg.asset(
        key=keys.composites,
        deps=[keys.mosaics_by_period],
        partitions_def=keys.periods,
        code_version=str(COMPOSITES_VERSION),
        check_specs=composites_checks(keys),
        retry_policy=RETRIES,
        group_name=keys.prefixed("mosaics"),
        owners=definition.owners,
        kinds={"geotiff"},
        required_resource_keys=definition.needs,
        io_manager_key=definition.io_manager_key,
        description="One composite per band of a month or a quarter, how many observations each pixel had, and a quicklook, in "
        "`data_raw/composites/<period>/`. Off until `composites` names the kinds of periods.",
    )
    def composites(context: dg.AssetExecutionContext) -> AssetEvents:
        with stopping_is_final():
            claim_run(context.instance, context.run)
            lake, period = definition.lake_of(context), context.partition_key

            def plan() -> "PeriodPlan":
                from thess_agg_dagster.period.plan import plan_period

                # Of its quarter, which may stand in for a month.
                wider = quarter_of(period) if kind_of(period) == MONTH else period
                listed = read_time_serie(lake.time_serie).acquisitions
                published = published_in(context.instance, keys, [wider], listed)
                unpublished = [key for key in listed if key not in published]
                return plan_period(period, published, lake, definition.params_of(context), unpublished)

            yield from attempted(context, keys.composites, lake.composites, plan, of_period=True)

    return composites


def published_in(
    instance: dg.DagsterInstance, keys: LakeKeys, among: Iterable[str], listed: Collection[str]
) -> dict[str, Attempt]:
    """The latest successes of the listed timestamps of some periods: what counts for their composites."""
    wanted = {key for period in among for key in members_of(period, listed)}
    found = latest_successes(instance, keys.aggregated, sorted(wanted)) if wanted else {}
    return {key: each.attempt for key, each in found.items()}


def register_periods(
    instance: dg.DagsterInstance, keys: LakeKeys, listed: Collection[str], params: TimestampsAggregationParams
) -> Iterator[dg.AssetObservation]:
    """Register the periods of listed timestamps that composites are asked for; yields what is to be told of new ones."""
    wanted = periods_of(listed, params.composites)
    known = set(instance.get_dynamic_partitions(str(keys.periods.name))) if wanted else set()
    if new := [period for period in wanted if period not in known]:
        register(instance, keys.periods, new)
        yield from observed(instance, keys, new, listed)


def observed(
    instance: dg.DagsterInstance, keys: LakeKeys, among: Iterable[str], listed: Collection[str]
) -> Iterator[dg.AssetObservation]:
    """What some periods consist of now."""
    among = list(among)
    published = published_in(instance, keys, among, listed)
    for period in among:
        yield mosaics_observed(keys, period, identify_mosaics(period, published), members_of(period, published))


def periods_changed(
    instance: dg.DagsterInstance, keys: LakeKeys, lake: DataLake, timestamp: str
) -> Iterator[dg.AssetObservation]:
    """What the registered periods of a timestamp consist of, now that it was published."""
    found = [period_of(timestamp, kind) for kind in KINDS]
    registered = [period for period in found if instance.has_dynamic_partition(str(keys.periods.name), period)]
    if not registered:
        return
    try:
        listed = read_time_serie(lake.time_serie).acquisitions
    except TimeSerieError:  # it was readable when the timestamp was planned; what was published stays
        return
    yield from observed(instance, keys, registered, listed)
