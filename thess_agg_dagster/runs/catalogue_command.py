"""The command ``python -m thess_agg_dagster catalogue``: from an area and two dates to the list, and optionally to
mosaics."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.lake.time_serie import TimeSerieError
from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.command import SOME_FAILED, UNUSABLE, main, plain_fault
from thess_agg_dagster.runs.options import data_lake_option
from thess_agg_dagster.storage.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from thess_agg_dagster.catalogue.outcome import Outcome, Request
    from thess_agg_dagster.catalogue_params import CatalogueParams


@main.command(context_settings={"show_default": True})
@data_lake_option
@click.option("--aoi", metavar="FILE|WKT", help="Area: GeoJSON, GeoPackage or WKT.")
@click.option("--from", "from_date", metavar="DATE", help="First day, e.g. 2023-01-01 (UTC).")
@click.option("--to", "to_date", metavar="DATE", help="Last day, inclusive.  [default: today]")
@click.option("--profile", metavar="NAME", help="copernicus, earth-search, planetary-computer.  [default: copernicus]")
@click.option("--stac-url", metavar="URL", help="Any other STAC API.")
@click.option("--collection", metavar="NAME", help="[default: sentinel-2-l2a]")
@click.option("--max-cloud", type=float, help="Highest percentage of clouds over the area.  [default: 60]")
@click.option("--min-coverage", type=float, help="Share of the area that an overpass must cover.  [default: 0.5]")
@click.option(
    "--every", type=int, metavar="DAYS", help="Only the best overpass near each anchor date, this many days apart."
)
@click.option(
    "--upgrade", is_flag=True, default=None, help="Replace listed products with newer ones, and add late tiles."
)
@click.option("--bands", metavar="B04,B08,SCL", help="Bands to record the addresses of (and to aggregate).")
@click.option("--dry-run", is_flag=True, help="Show what would be chosen; write nothing.")
@click.option("--aggregate", is_flag=True, help="Continue with the aggregation; put its options after --.")
@click.argument("aggregation", nargs=-1, type=click.UNPROCESSED, metavar="[-- AGGREGATION OPTIONS]")
def catalogue(bands: str | None, dry_run: bool, aggregate: bool, aggregation: Sequence[str], **given: Any) -> None:
    """Find scenes over an area, and list suitable overpasses in tables/time_serie.csv.

    Existing rows stay as they are. Every option can also be set in the environment as THESS_CATALOGUE_<OPTION>. Exit
    status: 0 if all went well, 1 if the catalogue does not answer, 2 for bad usage or an unusable time_serie.csv.
    """
    from thess_agg_dagster.catalogue.search import CatalogueError
    from thess_agg_dagster.catalogue_params import CatalogueParams

    if aggregation and not aggregate:
        raise click.UsageError(f"{aggregation[0]}: options of the aggregation need --aggregate")
    if bands:
        os.environ["THESS_BANDS"] = bands
    try:
        params = CatalogueParams(**{name: value for name, value in given.items() if value is not None})
        request = params.request(TimestampsAggregationParams().bands)
    except ValidationError as error:
        raise click.UsageError(plain_fault(error)) from error
    except (AreaError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if request is None:
        raise click.UsageError("give an area and a date: --aoi area.geojson --from 2023-01-01")
    console = Console(stderr=True)
    try:
        outcome = _update(request, dry_run, console)
    except (CatalogueError, TimeSerieError, OSError) as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False, soft_wrap=True)
        sys.exit(UNUSABLE if isinstance(error, TimeSerieError) else SOME_FAILED)
    _summarize(outcome, dry_run)
    if aggregate and (fingerprint_of(DataLakeIOManager.from_environment().lake.time_serie) or not dry_run):
        _sources(params)
        main.main([*aggregation, *(["--dry-run"] if dry_run else [])], prog_name="python -m thess_agg_dagster")


def _update(request: Request, dry_run: bool, console: Console) -> Outcome:
    from thess_agg_dagster.catalogue.update import update_catalogue

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("Searching", total=None)
        return update_catalogue(
            DataLakeIOManager.from_environment().lake,
            request,
            lambda found, of: progress.update(task, completed=found, total=of),
            dry_run=dry_run,
        )


def _sources(params: CatalogueParams) -> None:
    """Tiles come from where the profile has them, unless something else is configured."""
    from thess_agg_dagster.catalogue.profiles import PROFILES

    profile = PROFILES[params.profile]
    if params.stac_url is None and not os.environ.get("THESS_DOWNLOAD_FROM"):
        os.environ["THESS_DOWNLOAD_FROM"] = ",".join(profile.download_from)
        if profile.token_url:
            os.environ.setdefault("THESS_DOWNLOAD_TOKEN_URL", profile.token_url)


def _summarize(outcome: Outcome, dry_run: bool) -> None:
    table = Table(title=None, box=None, pad_edge=False)
    for name in ("timestamp", "", "tiles", "coverage", "clouds"):
        table.add_column(name, justify="right" if name in ("tiles", "coverage", "clouds") else "left", no_wrap=True)
    for choice in outcome.added:
        seen = choice.seen
        cloud = "unknown" if seen.cloud is None else f"{seen.cloud:.1f} %"
        table.add_row(choice.timestamp, "[green]new[/]", str(len(seen.scenes)), f"{seen.coverage_frac:.1%}", cloud)
    out = Console()
    out.width = max(out.width, 120)
    if outcome.added:
        out.print(table)
    for timestamp, reason in sorted(outcome.left.items()):
        out.print(f"{timestamp}  [yellow]left out[/]: {escape(reason)}", highlight=False, soft_wrap=True)
    for timestamp, change in outcome.better.items():
        word = "taken" if timestamp in outcome.upgraded and not dry_run else "better (take it with --upgrade)"
        out.print(f"{timestamp}  [yellow]{word}[/]: {escape(change)}", highlight=False, soft_wrap=True)
    if not outcome.items:
        out.print("The catalogue has nothing for this area and these dates; check the collection and the dates")
    lake = DataLakeIOManager.from_environment().lake
    out.print(
        f"\n{outcome.items} items found; timestamps: {len(outcome.added)} new, {outcome.listed} listed before, "
        f"{len(outcome.left)} left out"
        + (
            "\nDry run: nothing was written"
            if dry_run
            else f"\nList     {lake.time_serie}\nScenes   {lake.catalogue_scenes}"
        ),
        highlight=False,
        soft_wrap=True,
    )
