"""Sensors for the list, for late tiles, for the results of a job, for composites, and for the report."""

import dagster as dg

from thess_agg_dagster.defs.jobs import (
    aggregate_timestamps,
    make_composites,
    missing_or_failed,
    report_only,
    verify_published,
    verify_published_schedule,
)
from thess_agg_dagster.defs.sensors.new_rows import time_serie_sensor
from thess_agg_dagster.defs.sensors.periods import composites_sensor
from thess_agg_dagster.defs.sensors.reports import (
    missing_or_failed_periods_sensor,
    missing_or_failed_sensor,
    report_sensor,
)
from thess_agg_dagster.defs.sensors.tiles import changed_inputs_sensor, late_tiles_sensor

automation = dg.Definitions(
    jobs=[missing_or_failed, aggregate_timestamps, make_composites, report_only, verify_published],
    sensors=[
        time_serie_sensor,
        late_tiles_sensor,
        changed_inputs_sensor,
        missing_or_failed_sensor,
        missing_or_failed_periods_sensor,
        composites_sensor,
        report_sensor,
    ],
    schedules=[verify_published_schedule],
)

__all__ = [
    "automation",
    "changed_inputs_sensor",
    "composites_sensor",
    "late_tiles_sensor",
    "missing_or_failed_periods_sensor",
    "missing_or_failed_sensor",
    "report_sensor",
    "time_serie_sensor",
]
