"""The definitions that Dagster loads: those of the lake that the environment describes."""

from thess_agg_dagster.defs.environment import LAKE
from thess_agg_dagster.defs.lake import definitions_of

defs = definitions_of(LAKE)
