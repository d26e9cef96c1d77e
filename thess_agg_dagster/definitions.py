"""What Dagster loads."""

import dagster as dg

from thess_agg_dagster.defs import assets, sensors

defs = dg.Definitions.merge(assets.pipeline, sensors.automation)
