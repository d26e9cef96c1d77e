"""What Dagster loads."""

import dagster as dg

from thess_agg_dagster import assets, automation

defs = dg.Definitions.merge(assets.pipeline, automation.automation)
