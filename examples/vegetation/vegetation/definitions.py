"""What Dagster loads: assets made of mosaics that another code location makes.

They depend on its assets by key. Their code neither knows where files lie nor imports what made them: the lake's IO manager
passes paths, and ``open_series`` finds a whole series.
"""

from collections.abc import Mapping

import dagster as dg

from thess_agg_dagster.defs.io_manager import DataLakeIOManager, TimestampMosaics
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, periods, timestamps
from thess_agg_dagster.series import open_series

VEGETATION = 4  # in the Scene Classification Layer

LAKE = DataLakeIOManager.from_environment()

# Made elsewhere: Dagster links these to the lake's own assets, which have the same keys.
mosaics = dg.AssetSpec(AGGREGATED, partitions_def=timestamps)
composites = dg.AssetSpec(COMPOSITES, partitions_def=periods)


def green_share_of(found: TimestampMosaics) -> float:
    """Share of the classified pixels of a timestamp that are vegetation, 0 to 1."""
    return float((found.read("SCL") == VEGETATION).mean())


@dg.asset(
    partitions_def=timestamps,
    ins={"found": dg.AssetIn(AGGREGATED)},  # of the same timestamp: its partitions are ours
    automation_condition=dg.AutomationCondition.eager(),  # as soon as the timestamp is published
    description="How much of a timestamp is vegetation.",
)
def green_share(found: TimestampMosaics) -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"share": green_share_of(found)})


@dg.asset(
    # Of all timestamps; those that are not published are left out.
    ins={
        "series": dg.AssetIn(
            AGGREGATED, partition_mapping=dg.AllPartitionMapping(), metadata={"allow_missing_partitions": True}
        )
    },
    description="The greenest timestamp of all.",
)
def greenest(series: Mapping[str, TimestampMosaics]) -> dg.MaterializeResult[None]:
    shares = {timestamp: green_share_of(found) for timestamp, found in series.items()}
    return dg.MaterializeResult(metadata={"timestamp": max(shares, key=shares.__getitem__), "of": len(shares)})


@dg.asset(
    # Nothing is passed: it reads the months as one array, and only wants to be stale when one of them changes.
    deps=[dg.AssetDep(COMPOSITES, partition_mapping=dg.AllPartitionMapping())],
    description="Mean NDVI of each month's composite.",
)
def season() -> dg.MaterializeResult[None]:
    ndvi = open_series(LAKE.data_lake, "NDVI", composites="month").mean(("y", "x")).compute()
    months = {str(time)[:7]: round(float(mean), 4) for time, mean in zip(ndvi["time"].values, ndvi.values, strict=True)}
    return dg.MaterializeResult(metadata={"ndvi": dg.MetadataValue.json(months)})


defs = dg.Definitions(assets=[mosaics, composites, green_share, greenest, season], resources={"io_manager": LAKE})
