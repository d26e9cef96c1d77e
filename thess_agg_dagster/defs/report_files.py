"""What a report writes: the tables, a picture of the series, the STAC collections; and whom it tells.

Imported when a report is written, not with the definitions: pictures take libraries that nothing else needs.
"""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from thess_agg_dagster.audit.digest import Standing, standing_of, standing_of_period
from thess_agg_dagster.audit.metrics import exposition
from thess_agg_dagster.audit.rows import COLUMNS, Row, TableFile, TimestampRows
from thess_agg_dagster.audit.tables import (
    EVENTS_UP_TO,
    NOT_TOLD,
    TABLES_DIGEST,
    AuditTables,
    table_schema,
    tables_digest,
)
from thess_agg_dagster.audit.telling import tell
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.periods import MONTH, kind_of
from thess_agg_dagster.lake.publish import staged_file
from thess_agg_dagster.lake.published import QUICKLOOK
from thess_agg_dagster.products.quicklook import as_markdown
from thess_agg_dagster.products.series_plot import MOST_COLUMNS, first_look, series_at_a_glance
from thess_agg_dagster.products.year import months_until, year_at_a_glance
from thess_agg_dagster.storage.errors import first_line
from thess_agg_dagster.storage.paths import read_if_there

# Rows of each audit table shown as metadata; the event log is no place for long lists.
_FIRST_ROWS = 20


@dataclass
class _Written:
    """What is kept of the tables while they are written."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[Row]] = field(default_factory=dict)
    latest: deque[TimestampRows] = field(default_factory=lambda: deque(maxlen=MOST_COLUMNS))
    standings: list[Standing] = field(default_factory=list)

    def note(self, rows: TimestampRows, stale: Mapping[str, str]) -> None:
        self.counts[rows.status["status"]] += 1
        self.latest.append(rows)
        for name in COLUMNS:
            shown = self.first.setdefault(name, [])
            if (more := _FIRST_ROWS - len(shown)) > 0:
                shown.extend(rows.of(name)[:more])
        if rows.status["listed"]:
            self.standings.append(standing_of(rows, stale.get(rows.status["timestamp"], "")))


def write_report(obj: AuditTables, lake: DataLake, warn: Callable[[str], None]) -> dict[str, Any]:
    """Write all of it, and tell whoever is to be told; returns what the report shows in the UI. Raises ``dg.Failure`` where a
    file cannot be written."""
    written = _write_rows(obj, lake)
    names = list(COLUMNS)
    if obj.periods:
        names.append("composites")
        written.first["composites"] = list(obj.periods[:_FIRST_ROWS])
        with _table("composites", lake.audit_table("composites")) as table:
            table.add(obj.periods)
    collection = _write_collection(lake)
    if obj.periods:
        _write_collection(lake.composites, composed=True)
    picture = series_at_a_glance(written.latest)
    data = io.BytesIO()
    picture.save(data, "PNG")
    _write_table(lake.glance, data.getvalue())
    count = written.counts.total()
    good, waiting = written.counts["success"], written.counts["not_run"]
    counts = {"timestamps": count, "successful": good, "failed": count - good - waiting, "not_run": waiting}
    seen: dict[str, Any] = {"series": dg.MetadataValue.md(first_look(picture)), **counts}
    if months := _pictures_of_months(obj.periods, lake):
        seen["year"] = dg.MetadataValue.md(as_markdown(year_at_a_glance(months), "WEBP", quality=60))
    if collection:
        seen["stac_collection"] = dg.MetadataValue.path(str(lake.collection))
    for name in names:
        seen[name] = dg.MetadataValue.path(str(lake.audit_table(name)))
        rows = [dg.TableRecord(_plain(row)) for row in written.first.get(name, [])]
        seen[f"{name}_first_rows"] = dg.MetadataValue.table(rows, table_schema(name))
    seen |= _tell(obj, lake, written, warn)
    return seen | {TABLES_DIGEST: tables_digest(lake), EVENTS_UP_TO: obj.up_to}


def _write_rows(obj: AuditTables, lake: DataLake) -> _Written:
    """Write the tables of timestamps side by side, row by row."""
    written = _Written()
    with ExitStack() as stack:
        paths = {name: lake.audit_table(name) for name in COLUMNS}
        tables = [(path, stack.enter_context(_table(name, path))) for name, path in paths.items()]
        for rows in obj.timestamps:
            for path, table in tables:
                with _writing(path):
                    table.add_timestamp(rows)
            written.note(rows, obj.stale or {})
    return written


def _tell(obj: AuditTables, lake: DataLake, written: _Written, warn: Callable[[str], None]) -> dict[str, Any]:
    """Tell receivers and Prometheus, if they are to be told; returns what the report shows of that."""
    timestamps, periods = written.standings, [standing_of_period(row) for row in obj.periods]
    told, faults = tell([*timestamps, *periods], lake, obj.as_of)
    for fault in faults:
        warn(fault)
    seen: dict[str, Any] = {}
    if obj.metrics:
        unlisted = written.counts.total() - len(timestamps)
        known = obj.stale is not None
        text = exposition(str(lake.root), timestamps, periods, unlisted, known, obj.as_of, len(faults))
        _write_table(lake.metrics, text.encode())
        seen["metrics"] = dg.MetadataValue.path(str(lake.metrics))
    if told:
        seen["told"] = "; ".join(told)
    return seen | ({NOT_TOLD: "; ".join(faults)} if faults else {})


def _pictures_of_months(periods: Sequence[Row], lake: DataLake) -> dict[str, bytes]:
    """The quicklooks of the published months of the latest year."""
    months = [row["period"] for row in periods if row["status"] == "success" and kind_of(row["period"]) == MONTH]
    shown = months_until(max(months)) if months else []
    paths = {month: lake.composites.published(month).folder / QUICKLOOK for month in months if month in shown}
    found = {month: read_if_there(path) for month, path in paths.items()}
    return {month: data for month, data in found.items() if data}


def _write_collection(shelf: DataLake, composed: bool = False) -> bool:
    """The STAC collection of what is published with items, and its indices, where there are any."""
    paths = shelf.items()
    if not paths:
        _remove([shelf.collection, shelf.series_parquet, *shelf.tile_indices()])
        return False
    from thess_agg_dagster.products import stac
    from thess_agg_dagster.products.series_index import series_parquet, tile_indices

    items = stac.published_items(paths, shelf.aggregated)
    if items:
        collection = stac.series_collection(items, stac.COMPOSITES if composed else stac.MOSAICS)
        indices = tile_indices(items)
        for name, data in indices.items():
            _write_table(shelf.aggregated / name, data)
        _write_table(shelf.series_parquet, series_parquet(items, collection))
        _write_table(shelf.collection, collection.encode())
        _remove(path for path in shelf.tile_indices() if path.name not in indices)
    return bool(items)


def _write_table(path: Path, data: bytes) -> None:
    with _writing(path), staged_file(path) as file:
        file.write_bytes(data)


@contextmanager
def _table(name: str, path: Path) -> Iterator[TableFile]:
    """A table to write to, which takes the place of the old one at the end."""
    with _writing(path), staged_file(path) as file, file.open("w", encoding="utf-8", newline="") as text:
        yield TableFile(name, text)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what to do about a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise dg.Failure(
            f"{path}: cannot be written ({first_line(error)}); check disk space, quota and permissions (the old file stays)",
            allow_retries=False,
        ) from error


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _plain(row: Row) -> dict[str, str | int | float | None]:
    """A row as Dagster shows it."""
    return {name: value if isinstance(value, str | int | float | None) else str(value) for name, value in row.items()}
