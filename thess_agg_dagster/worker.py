"""Alias that users' dagster.yaml files and command lines use for :mod:`thess_agg_dagster.runs.worker`."""

from thess_agg_dagster.runs.worker import app as app
