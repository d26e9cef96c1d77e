"""``data_raw/aggregated``: the mosaics of a timestamp."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

from thess_agg_dagster.audit.event_log import latest_successes, stopping_is_final
from thess_agg_dagster.defs.attempts import RETRIES, AssetEvents, attempted
from thess_agg_dagster.defs.check_specs import aggregated_checks
from thess_agg_dagster.defs.composites import periods_changed
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition, TimeSerieError, read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.instance import BATCH, CAUSE, PARENT, claim_run, execute_here
from thess_agg_dagster.storage.errors import first_line
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp.freshness import code_version, tile_names
from thess_agg_dagster.timestamp.remote import located

if TYPE_CHECKING:
    from thess_agg_dagster.timestamp.plan import TimestampPlan
    from thess_agg_dagster.timestamp.refetch import Refetched

# Of more timestamps that failed in one run, a message does not say why.
_MOST_FAULTS = 50


def aggregated_of(definition: LakeDefinition) -> dg.AssetsDefinition:
    keys = definition.keys

    @dg.asset(
        key=keys.aggregated,
        deps=[keys.time_serie, keys.raw_tiles],
        partitions_def=keys.timestamps,
        code_version=code_version(),
        check_specs=aggregated_checks(keys),
        backfill_policy=_backfill_policy(definition.timestamps_per_run),
        output_required=False,  # a run of several timestamps has runs that give it
        retry_policy=RETRIES,
        group_name=keys.prefixed("mosaics"),
        owners=definition.owners,
        kinds={"geotiff"},
        required_resource_keys=definition.needs,
        io_manager_key=definition.io_manager_key,
        description="One mosaic per band of a timestamp and a quicklook, in `data_raw/aggregated/<timestamp>/`.",
    )
    def aggregated(context: dg.AssetExecutionContext) -> AssetEvents:
        with stopping_is_final():
            claim_run(context.instance, context.run)
            if len(context.partition_keys) > 1:
                yield from _one_by_one(context, keys)
            else:
                yield from _aggregate(context, definition)

    return aggregated


def _backfill_policy(timestamps_per_run: int | None) -> dg.BackfillPolicy | None:
    # Backfill policies are a beta feature of Dagster 1.13, too.
    warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)
    if timestamps_per_run is None:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(timestamps_per_run) if timestamps_per_run > 1 else None


def _aggregate(context: dg.AssetExecutionContext, definition: LakeDefinition) -> AssetEvents:
    from thess_agg_dagster.timestamp.plan import plan_timestamp

    keys, lake, params = definition.keys, definition.lake_of(context), definition.params_of(context)
    timestamp = context.partition_key
    scene_ids: list[str] = []  # as far as they are known when something goes wrong

    def plan() -> "TimestampPlan":
        series = read_time_serie(lake.time_serie)
        if timestamp not in series.acquisitions:
            raise TimeSerieError(f"{series.path}: has no usable row for {timestamp}; add it, or delete the partition")
        scene_ids.extend(series.acquisitions[timestamp].scene_ids)
        fetched = _refetch(context, series.acquisitions[timestamp], lake, params)
        made = latest_successes(context.instance, keys.aggregated, [timestamp]).get(timestamp)
        return plan_timestamp(series.acquisitions[timestamp], lake, params, fetched, made.attempt if made else None)

    yield from attempted(context, keys.aggregated, lake, plan, scene_ids)
    for event in periods_changed(context.instance, keys, lake, timestamp):
        context.log_event(event)


def _one_by_one(context: dg.AssetExecutionContext, names: LakeKeys) -> AssetEvents:
    """Give each of several timestamps a run of its own in this process: an attempt that harms no other."""
    keys = list(context.partition_keys)
    failed: list[str] = []
    for key in keys:
        try:
            execute_here(
                context.job_def,
                context.instance,
                names.aggregated,
                key,
                context.run.run_config,
                {CAUSE: BATCH, PARENT: context.run_id},
            )
        except Exception as error:
            failed.append(f"{key}: {error.description if isinstance(error, dg.Failure) else first_line(error)}")
        context.log.info(f"{key} {'failed' if failed and failed[-1].startswith(key) else 'is done'}")
    if failed:
        first = "; ".join(failed[:_MOST_FAULTS])
        raise dg.Failure(
            f"{len(failed)} of {len(keys)} timestamps failed, the others are done: {first}", allow_retries=False
        )
    for spec in aggregated_checks(names):  # the results are those of the runs
        yield dg.Output(None, output_name=spec.get_python_identifier())


def _refetch(
    context: dg.AssetExecutionContext, acquisition: Acquisition, lake: DataLake, params: TimestampsAggregationParams
) -> "Mapping[File, Refetched | str]":
    """Fetch the tiles that are missing or broken; on a retry also those that only decoding finds out."""
    if not params.download_from:
        return {}
    from thess_agg_dagster.lake.download import Downloader
    from thess_agg_dagster.timestamp.refetch import download_policy, refetch

    policy = download_policy(params)
    if policy is None:
        return {}
    fetched = refetch(
        tile_names(acquisition, params), located(lake, params), Downloader(policy), deep=context.retry_number > 0
    )
    for path, outcome in fetched.items():
        what = "not fetched: " if isinstance(outcome, str) else ""
        context.log.info(f"{path}: {what}{outcome}")
    return fetched
