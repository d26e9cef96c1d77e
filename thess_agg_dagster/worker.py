"""The name that users' dagster.yaml and command lines know for :mod:`thess_agg_dagster.runs.worker`."""

from thess_agg_dagster.runs.worker import app as app
