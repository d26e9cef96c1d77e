"""Alias that users' dagster.yaml files and command lines use for :mod:`thess_agg_dagster.runs.run_queue`."""

from thess_agg_dagster.runs.run_queue import RunQueue as RunQueue
