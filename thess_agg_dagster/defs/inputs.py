"""What mosaics are made of: ``time_serie``, the list of acquisitions, and the raw tiles, which Dagster only looks at."""

import warnings

import dagster as dg

from thess_agg_dagster.audit.event_log import first_sight, latest_successes
from thess_agg_dagster.defs.attempts import AssetEvents
from thess_agg_dagster.defs.check_specs import time_serie_checks
from thess_agg_dagster.defs.checks import check_time_serie, failed_schema
from thess_agg_dagster.defs.composites import register_periods
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.registering import register
from thess_agg_dagster.lake.time_serie import TimeSerie, TimeSerieError, read_time_serie
from thess_agg_dagster.timestamp.freshness import changed_inputs

# Rows of a table shown as metadata; the event log is no place for long lists.
_PREVIEW_ROWS = 50


def time_serie_of(definition: LakeDefinition) -> dg.AssetsDefinition:
    keys, max_age = definition.keys, definition.list_max_age

    @dg.asset(
        key=keys.time_serie,
        deps=[keys.catalogue],
        freshness_policy=dg.FreshnessPolicy.time_window(max_age) if max_age else None,
        check_specs=time_serie_checks(keys),
        group_name=keys.prefixed("inputs"),
        owners=definition.owners,
        kinds={"csv"},
        required_resource_keys=definition.needs,
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
    def time_serie(context: dg.AssetExecutionContext) -> AssetEvents:
        try:
            series = read_time_serie(definition.lake_of(context).time_serie)
        except TimeSerieError as error:
            yield failed_schema(str(error))
            raise dg.Failure(str(error), allow_retries=False) from error
        _register(context, definition, series)
        yield _seen(series)
        yield from check_time_serie(series)

    return time_serie


def _register(context: dg.AssetExecutionContext, definition: LakeDefinition, series: TimeSerie) -> None:
    """Register what is new in the list as partitions, and tell what cannot be used."""
    keys = definition.keys
    registered = set(context.instance.get_dynamic_partitions(str(keys.timestamps.name)))
    new = [key for key in series.acquisitions if key not in registered]
    if new:
        register(context.instance, keys.timestamps, new)
    for key in new:
        context.log_event(first_sight(keys, key, series.acquisitions[key].scene_ids))
    for event in register_periods(context.instance, keys, series.acquisitions, definition.params_of(context)):
        context.log_event(event)
    for row in series.refused:
        context.log.warning(f"{series.path}: {row}")
    if not series.acquisitions:
        context.log.warning(f"{series.path}: no usable rows, so there is nothing to aggregate")


def _seen(series: TimeSerie) -> dg.MaterializeResult:  # type: ignore[type-arg]
    acquisitions = list(series.acquisitions.values())
    rows = [
        dg.TableRecord({"acq_datetime": a.timestamp, "tiles": len(a.scene_ids), "tile_ids": "|".join(a.scene_ids)})
        for a in acquisitions[:_PREVIEW_ROWS]
    ]
    columns = [dg.TableColumn("acq_datetime"), dg.TableColumn("tiles", "int"), dg.TableColumn("tile_ids")]
    return dg.MaterializeResult(
        # One for all lists: what changes of a row makes only that timestamp stale, by way of its raw tiles.
        data_version=dg.DataVersion("by row"),
        metadata={
            "path": dg.MetadataValue.path(str(series.path)),
            "timestamps": len(acquisitions),
            "refused_rows": len(series.refused),
            "first_rows": dg.MetadataValue.table(rows, schema=dg.TableSchema(columns)),
        },
    )


def raw_tiles_of(definition: LakeDefinition) -> dg.SourceAsset:
    """What the timestamps are made of. Dagster makes none of it; `changed_inputs_sensor` tells when it changed."""
    keys = definition.keys
    with warnings.catch_warnings():
        # Observable assets are a beta feature of Dagster 1.13; the warning says nothing to a user.
        warnings.simplefilter("ignore", dg.BetaWarning)

        @dg.observable_source_asset(
            key=keys.raw_tiles,
            partitions_def=keys.timestamps,
            group_name=keys.prefixed("inputs"),
            tags={"dagster/kind/geotiff": ""},
            required_resource_keys=definition.needs,
            description="The raw tiles of a timestamp, `cache/s2/<scene_id>/<band>.tif`: put there by a download step. If they, "
            "the tile list or the parameters change, the timestamp is stale.",
        )
        def raw_tiles(context: dg.OpExecutionContext) -> dg.DataVersionsByPartition:
            published = latest_successes(context.instance, keys.aggregated)
            return dg.DataVersionsByPartition(
                changed_inputs(published, definition.lake_of(context), definition.params_of(context))
            )

    return raw_tiles
