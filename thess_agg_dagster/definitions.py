"""What Dagster loads."""

import warnings

import dagster as dg

from thess_agg_dagster.assets import aggregated, published_mosaics, time_serie, timestamps_aggregation
from thess_agg_dagster.automation import (
    late_tiles_sensor,
    missing_or_failed,
    report_only,
    report_sensor,
    time_serie_sensor,
    verify_published,
    verify_published_schedule,
)
from thess_agg_dagster.io_manager import DataLakeIOManager
from thess_agg_dagster.params import TimestampsAggregationParams

with warnings.catch_warnings():
    # Links from an asset to its code are a beta feature of Dagster 1.13; the warning says nothing to a user.
    warnings.simplefilter("ignore", dg.BetaWarning)
    assets = dg.with_source_code_references([time_serie, aggregated, timestamps_aggregation, published_mosaics])


defs = dg.Definitions(
    assets=assets,
    jobs=[missing_or_failed, report_only, verify_published],
    sensors=[time_serie_sensor, late_tiles_sensor, report_sensor],
    schedules=[verify_published_schedule],
    resources={
        "io_manager": DataLakeIOManager.from_environment(),
        "params": TimestampsAggregationParams(),
    },
    # A run is already a process of its own; another one per step would only cost start-up.
    executor=dg.in_process_executor,
)
