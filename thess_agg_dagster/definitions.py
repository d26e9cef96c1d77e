"""What Dagster loads."""

import dagster as dg

from thess_agg_dagster.assets import aggregated, time_serie, timestamps_aggregation
from thess_agg_dagster.io_manager import DataLakeIOManager
from thess_agg_dagster.params import TimestampsAggregationParams

defs = dg.Definitions(
    assets=[time_serie, aggregated, timestamps_aggregation],
    resources={
        "io_manager": DataLakeIOManager.from_environment(),
        "params": TimestampsAggregationParams(),
    },
    # A run is already a process of its own; another one per step would only cost start-up.
    executor=dg.in_process_executor,
)
