"""The assets: ``time_serie`` -> ``data_raw/aggregated`` (per timestamp) -> ``timestamps_aggregation``, and a
verification."""

import os
import re
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg

from thess_agg_dagster.audit import telling
from thess_agg_dagster.audit.event_log import first_sight, latest_successes, stopping_is_final, why_stale
from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.audit.own_lake import why_not_ours
from thess_agg_dagster.audit.tables import audit_tables, composites_table, newest_event, table_schema
from thess_agg_dagster.defs.attempts import RETRIES, AssetEvents, attempted
from thess_agg_dagster.defs.checks import (
    AGGREGATED_CHECKS,
    REPORT_CHECKS,
    TIME_SERIE_CHECKS,
    VERIFICATION_CHECKS,
    check_one_grid,
    check_report,
    check_same_parameters,
    check_time_serie,
    failed_schema,
)
from thess_agg_dagster.defs.composites import composites, mosaics_by_period, periods_changed, register_periods
from thess_agg_dagster.defs.io_manager import AuditTables, DataLakeIOManager
from thess_agg_dagster.defs.resources import ParamsResource
from thess_agg_dagster.defs.verification import check_published
from thess_agg_dagster.keys import (
    AGGREGATED,
    CATALOGUE,
    COMPOSITES,
    OWNERS,
    RAW_TILES,
    REPORT,
    TIME_SERIE,
    VERIFICATION,
    group,
    timestamps,
)
from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition, TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic.area import AreaError
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.instance import BATCH, CAUSE, PARENT, claim_run, execute_here
from thess_agg_dagster.storage.errors import first_line
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp.freshness import changed_inputs, code_version, tile_names
from thess_agg_dagster.timestamp.plan import TimestampPlan, plan_timestamp
from thess_agg_dagster.timestamp.refetch import Refetched, download_policy, refetch
from thess_agg_dagster.timestamp.remote import located

# Rows of a table shown as metadata; the event log is no place for long lists.
_PREVIEW_ROWS = 50


def _freshness() -> dg.FreshnessPolicy | None:
    """``THESS_LIST_MAX_AGE_HOURS``: after so many hours without a new list, it shows as overdue; unset: never."""
    given = os.environ.get("THESS_LIST_MAX_AGE_HOURS", "").strip()
    if not given:
        return None
    hours = float(given) if re.fullmatch(r"\d{1,6}(\.\d+)?", given) else 0
    if hours < 1 / 60:
        raise ValueError(f"THESS_LIST_MAX_AGE_HOURS={given!r} is not a number of hours, a minute or more")
    return dg.FreshnessPolicy.time_window(timedelta(hours=hours))


@dg.asset(
    key=TIME_SERIE,
    deps=[CATALOGUE],
    freshness_policy=_freshness(),
    check_specs=TIME_SERIE_CHECKS,
    group_name=group("inputs"),
    owners=OWNERS,
    kinds={"csv"},
    description="The list of acquisitions, `tables/time_serie.csv`: read, validated, and registered as partitions.",
    metadata={
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn("acq_datetime", description="ISO 8601; rows of the same time are merged."),
                dg.TableColumn("tile_ids", description="Scene ids in merge order, between `,` `;` or `|`."),
            ]
        )
    },
)
def time_serie(
    context: dg.AssetExecutionContext,
    params: dg.ResourceParam[TimestampsAggregationParams],
    io_manager: dg.ResourceParam[DataLakeIOManager],
) -> AssetEvents:
    try:
        series = read_time_serie(io_manager.lake.time_serie)
    except TimeSerieError as error:
        yield failed_schema(str(error))
        raise dg.Failure(str(error), allow_retries=False) from error
    registered = set(context.instance.get_dynamic_partitions(str(timestamps.name)))
    new = [key for key in series.acquisitions if key not in registered]
    if new:
        context.instance.add_dynamic_partitions(str(timestamps.name), new)
    for key in new:
        context.log_event(first_sight(key, series.acquisitions[key].scene_ids))
    for event in register_periods(context.instance, series.acquisitions, params):
        context.log_event(event)
    for row in series.refused:
        context.log.warning(f"{series.path}: {row}")
    if not series.acquisitions:
        context.log.warning(f"{series.path}: no usable rows, so there is nothing to aggregate")
    acquisitions = list(series.acquisitions.values())
    yield dg.MaterializeResult(
        # One for all lists: what changes of a row makes only that timestamp stale, by way of its raw tiles.
        data_version=dg.DataVersion("by row"),
        metadata={
            "path": dg.MetadataValue.path(str(series.path)),
            "timestamps": len(acquisitions),
            "refused_rows": len(series.refused),
            "first_rows": dg.MetadataValue.table(
                [
                    dg.TableRecord(
                        {"acq_datetime": a.timestamp, "tiles": len(a.scene_ids), "tile_ids": "|".join(a.scene_ids)}
                    )
                    for a in acquisitions[:_PREVIEW_ROWS]
                ],
                schema=dg.TableSchema(
                    [dg.TableColumn("acq_datetime"), dg.TableColumn("tiles", "int"), dg.TableColumn("tile_ids")]
                ),
            ),
        },
    )
    yield from check_time_serie(series)


#: What the timestamps are made of. Dagster makes none of it; `changed_inputs_sensor` tells when it changed.
with warnings.catch_warnings():
    # Observable assets are a beta feature of Dagster 1.13, too.
    warnings.simplefilter("ignore", dg.BetaWarning)

    @dg.observable_source_asset(
        key=RAW_TILES,
        partitions_def=timestamps,
        group_name=group("inputs"),
        tags={"dagster/kind/geotiff": ""},
        description="The raw tiles of a timestamp, `cache/s2/<scene_id>/<band>.tif`: put there by a download step. If they, "
        "the tile list or the parameters change, the timestamp is stale.",
    )
    def raw_tiles(
        context: dg.OpExecutionContext,
        params: dg.ResourceParam[TimestampsAggregationParams],
        io_manager: dg.ResourceParam[DataLakeIOManager],
    ) -> dg.DataVersionsByPartition:
        return dg.DataVersionsByPartition(changed_inputs(latest_successes(context.instance), io_manager.lake, params))


def _backfill_policy() -> dg.BackfillPolicy | None:
    """One run per timestamp, unless ``THESS_TIMESTAMPS_PER_RUN`` is a number, or ``all``."""
    given = os.environ.get("THESS_TIMESTAMPS_PER_RUN", "").strip() or "1"
    # Backfill policies are a beta feature of Dagster 1.13, too.
    warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)
    if given == "all":
        return dg.BackfillPolicy.single_run()
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"THESS_TIMESTAMPS_PER_RUN={given!r} is not a number of timestamps, 1 or more, or 'all'")
    return dg.BackfillPolicy.multi_run(int(given)) if int(given) > 1 else None


@dg.asset(
    key=AGGREGATED,
    deps=[time_serie, raw_tiles],
    partitions_def=timestamps,
    code_version=code_version(),
    check_specs=AGGREGATED_CHECKS,
    backfill_policy=_backfill_policy(),
    output_required=False,  # a run of several timestamps has runs that give it
    retry_policy=RETRIES,
    group_name=group("mosaics"),
    owners=OWNERS,
    kinds={"geotiff"},
    description="One mosaic per band of a timestamp and a quicklook, in `data_raw/aggregated/<timestamp>/`.",
)
def aggregated(
    context: dg.AssetExecutionContext,
    params: dg.ResourceParam[TimestampsAggregationParams],
    io_manager: dg.ResourceParam[DataLakeIOManager],
) -> AssetEvents:
    with stopping_is_final():
        claim_run(context.instance, context.run)
        if len(context.partition_keys) > 1:
            yield from _one_by_one(context)
            return
        timestamp = context.partition_key
        lake = io_manager.lake
        scene_ids: list[str] = []  # as far as they are known when something goes wrong

        def plan() -> TimestampPlan:
            series = read_time_serie(lake.time_serie)
            if timestamp not in series.acquisitions:
                raise TimeSerieError(
                    f"{series.path}: has no usable row for {timestamp}; add it, or delete the partition"
                )
            scene_ids.extend(series.acquisitions[timestamp].scene_ids)
            fetched = _refetch(context, series.acquisitions[timestamp], lake, params)
            made = latest_successes(context.instance, [timestamp]).get(timestamp)
            return plan_timestamp(series.acquisitions[timestamp], lake, params, fetched, made.attempt if made else None)

        yield from attempted(context, AGGREGATED, lake, plan, scene_ids)
        for event in periods_changed(context.instance, lake, timestamp):
            context.log_event(event)


def _one_by_one(context: dg.AssetExecutionContext) -> AssetEvents:
    """Give each of several timestamps a run of its own in this process: an attempt that harms no other."""
    keys = list(context.partition_keys)
    failed: list[str] = []
    for key in keys:
        try:
            execute_here(
                context.job_def,
                context.instance,
                asset_selection=[AGGREGATED],
                partition_key=key,
                run_config=context.run.run_config,
                tags={CAUSE: BATCH, PARENT: context.run_id},
            )
        except Exception as error:
            failed.append(f"{key}: {error.description if isinstance(error, dg.Failure) else first_line(error)}")
        context.log.info(f"{key} {'failed' if failed and failed[-1].startswith(key) else 'is done'}")
    if failed:
        first = "; ".join(failed[:_PREVIEW_ROWS])
        raise dg.Failure(
            f"{len(failed)} of {len(keys)} timestamps failed, the others are done: {first}", allow_retries=False
        )
    for spec in AGGREGATED_CHECKS:  # the results are those of the runs
        yield dg.Output(None, output_name=spec.get_python_identifier())


def _refetch(
    context: dg.AssetExecutionContext, acquisition: Acquisition, lake: DataLake, params: TimestampsAggregationParams
) -> Mapping[File, Refetched | str]:
    """Fetch the tiles that are missing or broken; on a retry also those that only decoding finds out."""
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


@dg.asset(
    key=REPORT,
    deps=[AGGREGATED, COMPOSITES],
    check_specs=REPORT_CHECKS,
    group_name=group("audit"),
    owners=OWNERS,
    kinds={"csv"},
    description="The audit tables: the outcome of every timestamp and band, from the events of all runs, and a picture "
    "of it: `tables/timestamps_aggregation_*.csv`, `tables/timestamps_aggregation.png`. Tells what changed to a webhook or "
    "by mail, if these are configured.",
    metadata={"dagster/column_schema": table_schema("status")}
    | {f"{name}_columns": table_schema(name) for name in ("summary", "band_report")},
)
def timestamps_aggregation(
    context: dg.AssetExecutionContext,
    params: dg.ResourceParam[TimestampsAggregationParams],
    io_manager: dg.ResourceParam[DataLakeIOManager],
) -> AssetEvents:
    # Before the log is read: what comes meanwhile is for the next report.
    as_of, up_to = datetime.now(UTC), newest_event(context.instance, stale=telling.is_asked_for())
    registered = context.instance.get_dynamic_partitions(str(timestamps.name))
    try:
        listed = set(read_time_serie(io_manager.lake.time_serie).acquisitions)
    except TimeSerieError as error:
        context.log.warning(str(error))
        listed = set(registered)  # an unusable list says nothing about what vanished from it
    published = _published(context, io_manager.lake)
    tables = audit_tables(context.instance, params.outputs, listed, published, io_manager.lake)
    if (composed := composites_table(context.instance, io_manager.lake)) is not None:
        tables["composites"] = composed
    stale = None
    if params.metrics or telling.is_asked_for():  # it takes a look at every tile
        stale = _stale(context, published, io_manager.lake, params)
    yield dg.Output(AuditTables(tables, up_to, as_of, stale, params.metrics))
    yield check_report(io_manager.lake, registered)
    yield check_one_grid(published, listed)
    yield check_same_parameters(published, listed)


def _stale(
    context: dg.AssetExecutionContext,
    published: Mapping[str, RecordedAttempt],
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


def _published(context: dg.AssetExecutionContext, lake: DataLake) -> Mapping[str, RecordedAttempt]:
    """The published timestamps according to the instance; fails if they do not match the lake."""
    published = latest_successes(context.instance)
    if refusal := why_not_ours(context.instance, lake, published):
        raise dg.Failure(refusal, allow_retries=False)
    return published


@dg.asset(
    key=VERIFICATION,
    deps=[AGGREGATED, COMPOSITES],
    check_specs=VERIFICATION_CHECKS,
    group_name=group("audit"),
    owners=OWNERS,
    kinds={"geotiff"},
    description="Compares every published mosaic and composite with what was recorded when it was made. The "
    "schedule `verify_published` does this every night, once you turn it on.",
)
def published_mosaics(
    context: dg.AssetExecutionContext, io_manager: dg.ResourceParam[DataLakeIOManager]
) -> AssetEvents:
    published = _published(context, io_manager.lake)
    composed = latest_successes(context.instance, asset=COMPOSITES)
    yield dg.MaterializeResult(
        metadata={
            "timestamps": len(published),
            "periods": len(composed),
            "mosaics": sum(len(found.attempt.bands) for made in (published, composed) for found in made.values()),
        }
    )
    yield check_published(published, composed, io_manager.lake)


with warnings.catch_warnings():
    # Links from an asset to its code are a beta feature of Dagster 1.13; the warning says nothing to a user.
    warnings.simplefilter("ignore", dg.BetaWarning)
    _ASSETS = dg.with_source_code_references(
        [time_serie, aggregated, composites, timestamps_aggregation, published_mosaics]
    )

#: The assets and what they need, without what starts them by itself.
pipeline = dg.Definitions(
    assets=[*_ASSETS, raw_tiles, mosaics_by_period],
    resources={
        "io_manager": DataLakeIOManager.from_environment(),
        "params": ParamsResource.from_environment(),
    },
    # A run is already a process of its own; another one per step would only cost start-up.
    executor=dg.in_process_executor,
)
