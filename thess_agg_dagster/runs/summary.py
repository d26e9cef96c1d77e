"""What the command says at its end: what became of timestamps and periods, by the audit tables."""

from __future__ import annotations

import io
import os
from collections.abc import Hashable, Sequence
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.storage.paths import read_bytes


def summarize(lake: DataLake, keys: Sequence[str], skipped: int) -> bool:
    """Tell what became of the timestamps, by the tables; whether all are well."""
    status, bands = _table(lake, "status").set_index("timestamp"), _table(lake, "band_report")
    table = Table(title=None, box=None, pad_edge=False)
    for name in ("timestamp", "status", "size", "CRS", "valid", "seconds"):
        table.add_column(name, justify="right" if name in ("size", "valid", "seconds") else "left", no_wrap=True)
    # Once over the table: a search of it for every timestamp took a minute where there are ten thousand.
    made_of: dict[str, list[dict[Hashable, Any]]] = {}
    for band in bands[bands["status"] == "success"].to_dict("records"):
        made_of.setdefault(band["timestamp"], []).append(band)
    for key in keys:
        made = made_of.get(key, [])
        first = made[0] if made else None
        state = str(status.loc[key, "status"])
        table.add_row(
            key,
            f"[{'green' if state == 'success' else 'red'}]{state}[/]",
            f"{int(first['width'])} x {int(first['height'])}" if first else "",
            str(first["crs"]) if first else "",
            f"{float(first['valid_share']):.1%}" if first else "",
            f"{sum(float(band['seconds']) for band in made):.1f}" if first else "",
        )
    out = Console()
    out.width = max(out.width, 120)  # a narrow terminal wraps; a timestamp cut short helps nobody
    out.print(table)
    for key in keys:
        if status.loc[key, "status"] != "success":
            out.print(f"\n[red]{key}[/]  {escape(str(status.loc[key, 'message']))}", highlight=False, soft_wrap=True)
    called = click.get_current_context().find_root().info_name
    out.print(
        f"\n{len(keys)} timestamps, {skipped} unchanged and skipped"
        f"\nMosaics  {lake.aggregated}\nTables   {lake.tables_folder}/timestamps_aggregation_*.csv"
        f"\nUI       DATA_LAKE={lake.root} DAGSTER_HOME={os.environ['DAGSTER_HOME']} {called} ui",
        highlight=False,
        soft_wrap=True,
    )
    return all(status.loc[key, "status"] == "success" for key in keys)


def summarize_periods(lake: DataLake, asked: Sequence[str], made: int) -> bool:
    """Tell what became of the periods; whether all are well."""
    rows = _table(lake, "composites").set_index("period")
    out = Console()
    failed = [key for key in asked if rows.loc[key, "status"] not in ("success", "not_run")]
    for key in failed:
        line = f"\n[red]{key}[/]  {escape(str(rows.loc[key, 'message']))}"
        out.print(line, highlight=False, soft_wrap=True)
    without = sum(rows.loc[key, "status"] == "not_run" for key in asked)
    told = f"\n{len(asked)} periods, {len(asked) - made - without} unchanged and skipped"
    told += f", {without} without a published timestamp" if without else ""
    out.print(f"{told}\nComposites  {lake.composites.aggregated}", highlight=False, soft_wrap=True)
    return not failed


def _table(lake: DataLake, name: str) -> pd.DataFrame:
    data = io.BytesIO(read_bytes(lake.audit_table(name)))
    return pd.read_csv(data, dtype=str, keep_default_na=False)
