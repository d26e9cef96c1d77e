"""What the command says at its end: what became of timestamps and periods, by the audit tables."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from thess_agg_dagster.audit.rows import long_cells
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.storage.paths import open_text

# More lines than this nobody reads; and ten thousand take ten seconds to be laid out.
_MOST_LINES = 200


def summarize(lake: DataLake, keys: Sequence[str], made: Collection[str]) -> bool:
    """Tell what became of the timestamps, by the tables; whether all are well. Of very many, only those that were just made, or
    failed, have a line."""
    status = {row["timestamp"]: row for row in _table(lake, "status")}
    failed = [key for key in keys if status[key]["status"] != "success"]
    news = {*made, *failed}
    told = keys if len(keys) <= _MOST_LINES else [key for key in keys if key in news]
    table = Table(title=None, box=None, pad_edge=False)
    for name in ("timestamp", "status", "size", "CRS", "valid", "seconds"):
        table.add_column(name, justify="right" if name in ("size", "valid", "seconds") else "left", no_wrap=True)
    bands_of: dict[str, list[dict[str, str]]] = {key: [] for key in told}
    for band in _table(lake, "band_report") if told else ():
        if band["status"] == "success" and band["timestamp"] in bands_of:
            bands_of[band["timestamp"]].append(band)
    for key in told:
        bands = bands_of[key]
        first = bands[0] if bands else None
        state = status[key]["status"]
        table.add_row(
            key,
            f"[{'green' if state == 'success' else 'red'}]{state}[/]",
            f"{int(first['width'])} x {int(first['height'])}" if first else "",
            first["crs"] if first else "",
            f"{float(first['valid_share']):.1%}" if first else "",
            f"{sum(float(band['seconds']) for band in bands):.1f}" if first else "",
        )
    out = Console()
    out.width = max(out.width, 120)  # a narrow terminal wraps; a timestamp cut short helps nobody
    if told:
        out.print(table)
    for key in failed:
        out.print(f"\n[red]{key}[/]  {escape(status[key]['message'])}", highlight=False, soft_wrap=True)
    called = click.get_current_context().find_root().info_name
    out.print(
        f"\n{len(keys)} timestamps, {len(keys) - len(made)} unchanged and skipped"
        f"\nMosaics  {lake.aggregated}\nTables   {lake.tables_folder}/timestamps_aggregation_*.csv"
        f"\nUI       DATA_LAKE={lake.root} DAGSTER_HOME={os.environ['DAGSTER_HOME']} {called} ui",
        highlight=False,
        soft_wrap=True,
    )
    return not failed


def summarize_periods(lake: DataLake, asked: Sequence[str], made: int) -> bool:
    """Tell what became of the periods; whether all are well."""
    rows = {row["period"]: row for row in _table(lake, "composites")}
    out = Console()
    failed = [key for key in asked if rows[key]["status"] not in ("success", "not_run")]
    for key in failed:
        line = f"\n[red]{key}[/]  {escape(rows[key]['message'])}"
        out.print(line, highlight=False, soft_wrap=True)
    without = sum(rows[key]["status"] == "not_run" for key in asked)
    told = f"\n{len(asked)} periods, {len(asked) - made - without} unchanged and skipped"
    told += f", {without} without a published timestamp" if without else ""
    out.print(f"{told}\nComposites  {lake.composites.aggregated}", highlight=False, soft_wrap=True)
    return not failed


def _table(lake: DataLake, name: str) -> Iterator[dict[str, str]]:
    with open_text(lake.audit_table(name)) as file, long_cells():
        yield from csv.DictReader(file)
