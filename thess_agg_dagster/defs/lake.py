"""All that Dagster shows of one lake."""

from __future__ import annotations

import dagster as dg

from thess_agg_dagster.defs.assets import pipeline_of
from thess_agg_dagster.defs.jobs import jobs_of
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.sensors import sensors_of


def definitions_of(definition: LakeDefinition) -> dg.Definitions:
    automation = dg.Definitions(sensors=sensors_of(definition))
    return dg.Definitions.merge(pipeline_of(definition), jobs_of(definition), automation)
