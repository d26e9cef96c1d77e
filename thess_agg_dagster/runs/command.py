"""The command ``python -m thess_agg_dagster``: aggregates all timestamps of a lake, without a daemon, with a progress
bar.

It starts real Dagster runs in worker processes, so the UI shows them like any others.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import click
import dagster as dg
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from thess_agg_dagster import __version__
from thess_agg_dagster.audit.attempts import Attempts
from thess_agg_dagster.audit.event_log import latest_attempts, latest_successes
from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.audit.own_lake import why_not_ours
from thess_agg_dagster.audit.tables import NOT_TOLD
from thess_agg_dagster.defs.checks import details_of
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, HERE, REPORT, TIME_SERIE, VERIFICATION
from thess_agg_dagster.lake.periods import periods_of
from thess_agg_dagster.lake.time_serie import Acquisition, TimeSerie, TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.parameter import ENVIRONMENT_PREFIX
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.period.freshness import due_among
from thess_agg_dagster.runs.batch import resources_config, run_asset, run_timestamps, tidy_up, workers_for
from thess_agg_dagster.runs.dry_run import forecast
from thess_agg_dagster.runs.instance import open_instance
from thess_agg_dagster.runs.options import Sections, data_lake_option, parameter_options
from thess_agg_dagster.runs.rebuild import rebuild
from thess_agg_dagster.runs.summary import summarize, summarize_periods
from thess_agg_dagster.timestamp.freshness import is_due, tile_names
from thess_agg_dagster.timestamp.remote import located

ALL_GOOD, SOME_FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130


# Without a subcommand it aggregates. A subcommand is a function in a module of its own, `@click.command(help="...")` and
# `@data_lake_option`, added to `main` below.
@click.group(
    name="python -m thess_agg_dagster",
    cls=Sections,
    context_settings={"show_default": True},
    invoke_without_command=True,
    subcommand_metavar="[COMMAND]",
)
@data_lake_option
@click.version_option(__version__, prog_name="thess-agg-dagster")
@click.option(
    "--timestamps", multiple=True, metavar="KEY[,KEY]", help="Aggregate only this acq_datetime; may be repeated."
)
@click.option("--force", is_flag=True, help="Include timestamps whose inputs and parameters have not changed.")
@click.option("--verify", is_flag=True, help="Compare the published mosaics with their records; aggregate nothing.")
@click.option("--dry-run", is_flag=True, help="Show what is due, missing, to download and to write; do nothing.")
@parameter_options(TimestampsAggregationParams)
@click.pass_context
def main(
    context: click.Context, /, timestamps: Sequence[str], force: bool, verify: bool, dry_run: bool, **given: Any
) -> None:
    """Aggregate Sentinel-2 tiles into one mosaic per acquisition timestamp and band.

    Every option except --data-lake, --timestamps, --force, --verify and --dry-run can also be set in the environment as
    THESS_<OPTION>. Exit status: 0 if all went well, 1 if a timestamp failed (or changed, with --verify), 2 for bad
    usage or an unusable time_serie.csv.
    """
    if context.invoked_subcommand:
        _refuse_options(context)
        return
    console = Console(stderr=True)
    try:
        params = TimestampsAggregationParams(**{name: value for name, value in given.items() if value is not None})
        params.pixel_identity()  # reads the aoi
    except ValidationError as error:
        raise click.UsageError(plain_fault(error)) from error
    except AreaError as error:
        raise click.UsageError(str(error)) from error
    for name in TimestampsAggregationParams.model_fields:  # settled here; workers get them as run config
        os.environ.pop(ENVIRONMENT_PREFIX + name.upper(), None)
    io_manager = DataLakeIOManager.from_environment()
    _stop_on_sigterm()
    with open_instance(io_manager.lake.root) as instance:  # made here, before any worker opens it
        session = _Session(instance, io_manager, params, console)
        try:
            if dry_run:
                sys.exit(session.dry_run(timestamps, force))
            sys.exit(session.verify() if verify else session.aggregate(timestamps, force))
        except TimeSerieError as error:
            console.print(f"[red]{escape(str(error))}[/]", highlight=False, soft_wrap=True)
            sys.exit(UNUSABLE)
        except dg.Failure as failure:
            if params.debug:
                raise
            console.print(f"[red]{escape(str(failure.description))}[/]", highlight=False, soft_wrap=True)
            sys.exit(SOME_FAILED)
        except KeyboardInterrupt:
            tidy_up(instance, io_manager.lake)
            run_asset(instance, session.resources, REPORT)
            console.print("Stopped. Finished timestamps stay; run the same command to continue.")
            sys.exit(STOPPED)


main.add_command(rebuild)


def _refuse_options(context: click.Context) -> None:
    """Refuse options before a subcommand, which has options of its own: they would be ignored silently."""
    source = click.core.ParameterSource.COMMANDLINE
    lost = [name for name in context.params if context.get_parameter_source(name) == source]
    if lost:
        names = ", ".join("--" + name.replace("_", "-") for name in lost)
        raise click.UsageError(f"{names}: not an option of {context.invoked_subcommand}; give its own after its name")


class _Session:
    """One call of the command."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        io_manager: DataLakeIOManager,
        params: TimestampsAggregationParams,
        console: Console,
    ) -> None:
        self.instance = instance
        self.io_manager = io_manager
        self.lake = io_manager.lake
        self.resources = resources_config(io_manager, params)
        self.params = params
        self.console = console

    def aggregate(self, wanted: Sequence[str], force: bool) -> int:
        series = read_time_serie(self.lake.time_serie)
        keys = _selected(series, wanted)
        published = latest_successes(self.instance, AGGREGATED)
        if refusal := why_not_ours(self.instance, HERE, self.lake, published):
            raise click.UsageError(refusal)
        tidy_up(self.instance, self.lake)
        run_asset(self.instance, self.resources, TIME_SERIE)
        for row in series.refused:
            self.console.print(f"[yellow]refused[/] {series.path}: {escape(str(row))}", highlight=False, soft_wrap=True)
        todo = self._due(series, keys, force, published)
        if todo:
            _stop_on_sigterm()
            self._refetch([series.acquisitions[key] for key in todo])
            self._run_all(todo, AGGREGATED)
        asked = periods_of(keys, self.params.composites)
        # Asked anew: timestamps were published meanwhile.
        due = self._due_periods(series, asked, force, latest_successes(self.instance, AGGREGATED)) if asked else []
        if due:
            _stop_on_sigterm()
            self._run_all(due, COMPOSITES)
        if todo or due:
            tidy_up(self.instance, self.lake)
        self._report()
        good = summarize(self.lake, keys, todo)
        if asked:
            good = summarize_periods(self.lake, list(asked), len(due)) and good
        return ALL_GOOD if good and not series.refused else SOME_FAILED

    def _report(self) -> None:
        run = run_asset(self.instance, self.resources, REPORT)
        (seen,) = run.asset_materializations_for_node(REPORT.to_python_identifier())
        if fault := seen.metadata.get(NOT_TOLD):
            self.console.print(f"[yellow]not told[/] {escape(str(fault.value))}", highlight=False, soft_wrap=True)

    def _due(self, series: TimeSerie, keys: Sequence[str], force: bool, published: Attempts) -> list[str]:
        latest: Mapping[str, RecordedAttempt] = {} if force else latest_attempts(self.instance, AGGREGATED, published)
        fingerprints = self.lake.fingerprints()
        return [
            key
            for key in keys
            if is_due(series.acquisitions[key], latest.get(key), self.lake, self.params, fingerprints)
        ]

    def _due_periods(
        self, series: TimeSerie, asked: Collection[str], force: bool, successes: Mapping[str, RecordedAttempt]
    ) -> list[str]:
        """Of the periods asked for those with published timestamps that are missing, failed or changed."""
        published = {key: each.attempt for key, each in successes.items() if key in series.acquisitions}
        latest = {} if force else latest_attempts(self.instance, COMPOSITES, among=asked)
        return due_among(asked, latest, published, self.lake, self.params)

    def dry_run(self, wanted: Sequence[str], force: bool) -> int:
        """Tell what :meth:`aggregate` would do. No run is started, no tile opened."""
        series = read_time_serie(self.lake.time_serie)
        published = latest_successes(self.instance, AGGREGATED)
        keys = _selected(series, wanted)
        due = [series.acquisitions[key] for key in self._due(series, keys, force, published)]
        workers = workers_for(self.params, len(due))
        found = forecast(due, self.lake, self.params, published, self.lake.fingerprints(), workers)
        out = Console()
        out.width = max(out.width, 120)
        found.print(out, fetches=bool(self.params.download_from))
        if asked := periods_of(keys, self.params.composites):
            # What is made anew of a timestamp may come out the same; its periods are due only if it does not.
            periods = {
                *self._due_periods(series, asked, force, published),
                *periods_of(found.due, self.params.composites),
            }
            out.print(f"{len(periods)} of {len(asked)} periods due: {', '.join(sorted(periods))}", soft_wrap=True)
        return ALL_GOOD

    def verify(self) -> int:
        """Look every published mosaic up again, and tell which ones are not what they were."""
        run = run_asset(self.instance, self.resources, VERIFICATION)
        (found,) = run.get_asset_check_evaluations()
        for line in details_of(found.metadata):
            self.console.print(f"[red]changed[/] {escape(line)}", highlight=False, soft_wrap=True)
        (seen,) = run.asset_materializations_for_node(VERIFICATION.to_python_identifier())
        self.console.print(f"{seen.metadata['mosaics'].value} mosaics checked", highlight=False)
        return ALL_GOOD if found.passed else SOME_FAILED

    def _refetch(self, acquisitions: Sequence[Acquisition]) -> None:
        """Fetch what is missing or broken before the runs start, all connections busy."""
        if not self.params.download_from:
            return
        from thess_agg_dagster.lake.download import Downloader
        from thess_agg_dagster.timestamp.refetch import download_policy, refetch

        policy = download_policy(self.params)
        assert policy is not None
        tiles = [tile for each in acquisitions for tile in tile_names(each, self.params)]
        lake = located(self.lake, self.params)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[size]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("Looking at tiles", total=len(tiles), size="")
            total = 0
            counting = threading.Lock()

            def more(count: int) -> None:
                nonlocal total
                with counting:
                    total += count
                    progress.update(task, description="Fetching tiles", size=f"{total / 1e6:.1f} MB")

            outcomes = refetch(tiles, lake, Downloader(policy), progress=more, done=lambda: progress.advance(task))
        for path, outcome in outcomes.items():
            name = f"{path.parent.name}/{path.name}"
            what = "[red]not fetched[/]" if isinstance(outcome, str) else "[green]fetched[/]"
            self.console.print(f"{what} {name}: {escape(str(outcome))}", highlight=False, soft_wrap=True)

    def _run_all(self, keys: Sequence[str], asset: dg.AssetKey) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("Composing" if asset == COMPOSITES else "Aggregating", total=len(keys))
            for key, error in self._runs(keys, asset):
                if error:
                    line = f"[red]failed[/] {key}  {escape(error)}"
                    progress.console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")
                progress.advance(task)

    def _runs(self, keys: Sequence[str], asset: dg.AssetKey) -> Iterator[tuple[str, str | None]]:
        """Run the timestamps; yields each as it ends, with what went wrong, if anything."""
        if not self.params.debug:
            yield from run_timestamps(self.instance, keys, self.io_manager, self.params, asset)
            return
        for key in keys:
            run_asset(self.instance, self.resources, asset, key)  # raises, with the whole traceback
            yield key, None


def _stop_on_sigterm() -> None:
    """SIGTERM as Ctrl-C. A run in this process leaves it as SIGINT is, which is ignored in the background of a script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def plain_fault(error: ValidationError) -> str:
    """A validation error in plain words: what is wrong and what is allowed."""
    return "; ".join(
        ": ".join([*map(str, fault["loc"]), str(fault["msg"]).removeprefix("Value error, ")])
        for fault in error.errors()
    )


def _selected(series: TimeSerie, wanted: Sequence[str]) -> list[str]:
    if not wanted:
        return list(series.acquisitions)
    keys = [key.strip() for text in wanted for key in text.split(",") if key.strip()]
    unknown = [key for key in keys if key not in series.acquisitions]
    if unknown:
        known = ", ".join(list(series.acquisitions)[:20])
        raise click.UsageError(f"--timestamps: not in {series.path}: {', '.join(unknown)} (it has: {known})")
    return list(dict.fromkeys(keys))
