"""Alias that users' dagster.yaml files and command lines use for :mod:`thess_agg_dagster.runs.fleet`."""

from thess_agg_dagster.runs.fleet import FleetLauncher as FleetLauncher
from thess_agg_dagster.runs.fleet import FleetQueue as FleetQueue
