"""Options that subcommands of ``python -m thess_agg_dagster`` share."""

from __future__ import annotations

import os

import click

from thess_agg_dagster.storage.paths import lake_path


def _into_environment(context: click.Context, parameter: click.Parameter, data_lake: str | None) -> None:
    if data_lake:
        os.environ["DATA_LAKE"] = str(lake_path(data_lake))  # workers load the definitions anew


#: Settles ``DATA_LAKE`` and hands nothing on.
data_lake_option = click.option(
    "--data-lake",
    metavar="FOLDER|s3://BUCKET/PREFIX",
    expose_value=False,
    callback=_into_environment,
    help="Root of the lake.  [default: $DATA_LAKE or ./DATA_LAKE]",
)
