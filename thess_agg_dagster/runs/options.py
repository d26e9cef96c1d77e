"""Options that subcommands of ``python -m thess_agg_dagster`` share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from thess_agg_dagster.lake.layout import TILES, DataLake, TemplateError
from thess_agg_dagster.storage.paths import lake_path


def _data_lake(context: click.Context, parameter: click.Parameter, data_lake: str | None) -> None:
    if data_lake:
        os.environ["DATA_LAKE"] = str(lake_path(data_lake))  # workers load the definitions anew


def _tiles(context: click.Context, parameter: click.Parameter, tiles: str | None) -> None:
    if tiles:
        try:
            DataLake.at(".", tiles=tiles)
        except TemplateError as error:
            raise click.UsageError(str(error)) from error
        os.environ["THESS_TILES"] = tiles


def data_lake_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Settle ``DATA_LAKE`` and ``THESS_TILES``, and hand nothing on."""
    for option in (
        click.option(
            "--tiles",
            metavar="TEMPLATE",
            envvar="THESS_TILES",
            expose_value=False,
            callback=_tiles,
            help=f"Where tiles lie, in the lake or not.  [default: {TILES}]",
        ),
        click.option(
            "--data-lake",
            metavar="FOLDER|s3://BUCKET/PREFIX",
            expose_value=False,
            callback=_data_lake,
            help="Root of the lake.  [default: $DATA_LAKE or ./DATA_LAKE]",
        ),
    ):
        command = option(command)
    return command
