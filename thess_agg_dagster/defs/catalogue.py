"""The asset before the list, which searches a catalogue and adds to ``time_serie.csv`` if configured, and its schedule."""

import dagster as dg

from thess_agg_dagster.catalogue_params import CatalogueParams
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.keys import CATALOGUE, OWNERS, group
from thess_agg_dagster.lake.time_serie import TimeSerieError
from thess_agg_dagster.params import TimestampsAggregationParams

# What a search adds are rows of the list, each a timestamp of its own: no search makes all timestamps stale.
_ONE_FOR_ALL = dg.DataVersion("by row")


@dg.asset(
    key=CATALOGUE,
    group_name=group("inputs"),
    owners=OWNERS,
    kinds={"stac"},
    description="Searches a STAC catalogue over an area and adds what is new to `tables/time_serie.csv`; with neither "
    "`THESS_CATALOGUE_AOI` nor `THESS_CATALOGUE_FROM`, nor these in the run config, it does nothing.",
)
def catalogue(
    context: dg.AssetExecutionContext,
    catalogue_params: CatalogueParams,
    params: dg.ResourceParam[TimestampsAggregationParams],
    io_manager: dg.ResourceParam[DataLakeIOManager],
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    from thess_agg_dagster.catalogue.search import CatalogueError  # here, because a STAC client takes long to import
    from thess_agg_dagster.catalogue.update import update_catalogue

    lake = io_manager.lake
    try:
        request = catalogue_params.request(params.bands)
        if request is None:
            context.log.info(
                "No area or no date is configured (THESS_CATALOGUE_AOI, THESS_CATALOGUE_FROM): nothing to do"
            )
            return dg.MaterializeResult(data_version=_ONE_FOR_ALL, metadata={"configured": False})
        outcome = update_catalogue(lake, request)
    except CatalogueError as error:  # it may be there in a minute
        raise dg.Failure(str(error)) from error
    except (TimeSerieError, ValueError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    for timestamp, change in outcome.better.items():
        context.log.info(f"{timestamp}: {'taken' if request.upgrade else 'better available'}: {change}")
    return dg.MaterializeResult(
        data_version=_ONE_FOR_ALL,
        metadata={
            "configured": True,
            "items": outcome.items,
            "new_timestamps": len(outcome.added),
            "listed_before": outcome.listed,
            "left_out": len(outcome.left),
            "better_products": len(outcome.better),
            "new": dg.MetadataValue.md("\n".join(f"- {choice.timestamp}" for choice in outcome.added[:50]) or "none"),
            "scenes": dg.MetadataValue.path(str(lake.catalogue_scenes)),
        },
    )


update_catalogue_job = dg.define_asset_job(
    "update_catalogue",
    selection=dg.AssetSelection.assets(CATALOGUE),
    description="Adds what is new in the catalogue to the list; `time_serie_sensor` does the rest.",
)

update_catalogue_schedule = dg.ScheduleDefinition(
    name="update_catalogue_schedule",
    job=update_catalogue_job,
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Searches the catalogue every night; off until you turn it on.",
)

front_door = dg.Definitions(
    assets=[catalogue],
    resources={"catalogue_params": CatalogueParams()},
    jobs=[update_catalogue_job],
    schedules=[update_catalogue_schedule],
)
