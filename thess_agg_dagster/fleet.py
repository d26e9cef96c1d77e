"""The name that users' dagster.yaml and command lines know for :mod:`thess_agg_dagster.runs.fleet`."""

from thess_agg_dagster.runs.fleet import FleetLauncher as FleetLauncher
from thess_agg_dagster.runs.fleet import FleetQueue as FleetQueue
