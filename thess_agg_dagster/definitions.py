"""The definitions that Dagster loads."""

import dagster as dg

from thess_agg_dagster.defs import assets, catalogue, sensors

defs = dg.Definitions.merge(assets.pipeline, catalogue.front_door, sensors.automation)
