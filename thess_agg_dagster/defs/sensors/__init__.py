"""Sensors for the list, for late tiles, for the results of a job, for composites, and for the report."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.sensors.new_rows import time_serie_sensor_of
from thess_agg_dagster.defs.sensors.periods import composites_sensor_of
from thess_agg_dagster.defs.sensors.reports import (
    missing_or_failed_periods_sensor_of,
    missing_or_failed_sensor_of,
    report_sensor_of,
)
from thess_agg_dagster.defs.sensors.tiles import changed_inputs_sensor_of, late_tiles_sensor_of


def sensors_of(definition: LakeDefinition) -> Sequence[dg.SensorDefinition]:
    return [
        time_serie_sensor_of(definition),
        late_tiles_sensor_of(definition),
        changed_inputs_sensor_of(definition),
        missing_or_failed_sensor_of(definition),
        missing_or_failed_periods_sensor_of(definition),
        composites_sensor_of(definition),
        report_sensor_of(definition),
    ]
