"""The name that users' dagster.yaml and command lines know for :mod:`thess_agg_dagster.runs.run_queue`."""

from thess_agg_dagster.runs.run_queue import RunQueue as RunQueue
