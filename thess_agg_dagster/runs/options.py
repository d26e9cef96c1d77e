"""Options shared by the subcommands of ``python -m thess_agg_dagster``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.tile_template import TILES, TemplateError
from thess_agg_dagster.parameter import Group, Parameter, Parameters
from thess_agg_dagster.storage.paths import lake_path

_Command = TypeVar("_Command", bound=Callable[..., Any])


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


def data_lake_option(command: _Command) -> _Command:
    """Set ``DATA_LAKE`` and ``THESS_TILES`` from the options, and pass no arguments on."""
    for option in (
        click.option(
            "--tiles",
            metavar="TEMPLATE|remote|TEMPLATE,remote",
            envvar="THESS_TILES",
            expose_value=False,
            callback=_tiles,
            help=f"Where the tiles are, in the lake or elsewhere.  [default: {TILES}]",
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


def parameter_options(model: type[Parameters]) -> Callable[[_Command], _Command]:
    """An option for every parameter, grouped in the help; ``None`` if it is not given."""

    def decorate(command: _Command) -> _Command:
        for each in reversed(model.declared().values()):  # the topmost decorator is the first option
            command = _option(each)(command)
        return command

    return decorate


def _option(declared: Parameter) -> Callable[[_Command], _Command]:
    name = declared.name.replace("_", "-")
    default = f"  [default: {declared.shown_default}]" if declared.shown_default else ""
    kind = click.Choice(declared.allowed) if declared.allowed else str if declared.many else declared.kind
    return click.option(
        f"--{name}/--no-{name}" if declared.kind is bool else f"--{name}",
        cls=_GroupedOption,
        group=declared.group,
        type=kind,
        default=None,
        metavar=declared.metavar,
        help=declared.help + default,
    )


class _GroupedOption(click.Option):
    """An option that knows its heading."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Sections(click.Group):
    """A command whose help lists options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in ("Options", *get_args(Group))}
        for option in self.get_params(ctx):
            if record := option.get_help_record(ctx):
                heading = option.group if isinstance(option, _GroupedOption) else "Options"
                sections[heading].append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        self.format_commands(ctx, formatter)
