"""The asset before the list, which searches a catalogue and adds to ``time_serie.csv`` if configured."""

import dagster as dg

from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.lake.time_serie import TimeSerieError

# What a search adds are rows of the list, each a timestamp of its own: no search makes all timestamps stale.
_ONE_FOR_ALL = dg.DataVersion("by row")


def catalogue_of(definition: LakeDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=definition.keys.catalogue,
        group_name=definition.keys.prefixed("inputs"),
        owners=definition.owners,
        kinds={"stac"},
        required_resource_keys=definition.needs | {definition.named("catalogue_params")},
        description="Searches a STAC catalogue over an area and adds what is new to `tables/time_serie.csv`; with neither "
        "`THESS_CATALOGUE_AOI` nor `THESS_CATALOGUE_FROM`, nor these in the run config, it does nothing.",
    )
    def catalogue(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return _update(context, definition)

    return catalogue


def _update(context: dg.AssetExecutionContext, definition: LakeDefinition) -> dg.MaterializeResult:  # type: ignore[type-arg]
    from thess_agg_dagster.catalogue.search import CatalogueError  # here, because a STAC client takes long to import
    from thess_agg_dagster.catalogue.update import update_catalogue

    lake = definition.lake_of(context)
    try:
        request = definition.catalogue_of(context).request(definition.params_of(context).bands)
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
