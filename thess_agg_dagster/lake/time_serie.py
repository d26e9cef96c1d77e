"""``time_serie.csv``: which tiles belong to which acquisition timestamp."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from thess_agg_dagster.lake.layout import is_plain_name
from thess_agg_dagster.storage.fingerprints import exact_fingerprint_of, fingerprint_of
from thess_agg_dagster.storage.paths import open_text

COLUMNS = ("acq_datetime", "tile_ids")

# A timestamp is a partition key and, nearly, a folder name: ISO 8601 in plain ASCII. No commas (a key with one
# breaks Dagster's UI), no slashes, and nothing that ":" -> "_" could make equal.
_TIMESTAMP = re.compile(r"[0-9TWZ:+\-. ]{4,40}", re.ASCII)
# What no real list comes near: longer is a broken export, more is beyond what Dagster takes as partitions of one asset.
_LONGEST_LINE = 1_000_000
_MOST_TIMESTAMPS = 200_000
# What people call the list, or their tools do.
_OTHER_SPELLINGS = ("time_series.csv", "timeseries.csv", "timeserie.csv", "time-series.csv", "Time_serie.csv")
_SEPARATORS = re.compile(r"[,;|]")
# What other programs put between columns.
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "|"}

# The line a row starts on, its cells, and why it cannot be used, or nothing.
_Row = tuple[int, list[str], str]


class TimeSerieError(Exception):
    """``time_serie.csv`` cannot be used at all: it is missing, lacks columns, or is not text."""


@dataclass(frozen=True)
class Acquisition:
    """One acquisition time and its scenes, in merge order."""

    timestamp: str
    scene_ids: tuple[str, ...]


@dataclass(frozen=True)
class RefusedRow:
    """A row that was left out: its line number in the file and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class TimeSerie:
    """The usable rows of ``time_serie.csv``, by timestamp in order of time, and the refused ones."""

    path: Path
    acquisitions: Mapping[str, Acquisition]
    refused: tuple[RefusedRow, ...]


def read_time_serie(path: Path) -> TimeSerie:
    """Read and validate ``time_serie.csv``. Rows with the same ``acq_datetime`` are merged in order.

    Raises :class:`TimeSerieError` if the file is missing, unreadable, or lacks a column. A bad row is refused by line
    number, and the others are used. A process reads the file once per change.
    """
    try:
        return _read_version(path, repr(exact_fingerprint_of(path)))
    except FileNotFoundError as error:
        other = next((name for name in _OTHER_SPELLINGS if fingerprint_of(path.with_name(name))), None)
        hint = f"{other} beside it is another spelling; rename it" if other else "put the list of acquisitions there"
        raise TimeSerieError(f"{path}: no such file; {hint}, with the columns {', '.join(COLUMNS)}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TimeSerieError(f"{path}: cannot be read as UTF-8 CSV ({error}); export it again") from error


@lru_cache(maxsize=2)
def _read_version(path: Path, fingerprint: str) -> TimeSerie:
    with open_text(path) as file:
        return _read(path, file)


def instant_of(timestamp: str) -> datetime:
    """The instant of an ISO 8601 text, in UTC, which is also assumed if it has no offset, like Sentinel-2's times.
    Raises ``ValueError`` and ``OverflowError``."""
    instant = datetime.fromisoformat(timestamp)
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)


def _read(path: Path, file: TextIO) -> TimeSerie:
    rows = _numbered_rows(path, file)
    header, where = _header(path, next(rows, (1, [], "")))
    scenes: dict[str, dict[str, None]] = {}
    keys_by_instant: dict[datetime, tuple[str, int]] = {}
    refused: list[RefusedRow] = []
    for line, row, fault in rows:
        try:
            if fault:
                raise ValueError(fault)
            if len(row) <= max(where.values()):
                raise ValueError(f"has {len(row)} fields, the header has {len(header)}")
            if any(cell.strip() for cell in row[len(header) :]):
                raise ValueError(
                    f"has {len(row)} fields, the header has {len(header)}; put a list with commas in quotes, or | between "
                    "its ids"
                )
            timestamp, instant = _parse_timestamp(row[where["acq_datetime"]])
            scene_ids = _parse_scene_ids(row[where["tile_ids"]])
            known, first_line = keys_by_instant.setdefault(instant, (timestamp, line))
            if known != timestamp:
                raise ValueError(f"acq_datetime {timestamp!r} is the same instant as {known!r} on line {first_line}")
        except ValueError as error:
            refused.append(RefusedRow(line, str(error)))
            continue
        scenes.setdefault(timestamp, {}).update(dict.fromkeys(scene_ids))
        if len(scenes) > _MOST_TIMESTAMPS:
            raise TimeSerieError(f"{path}: has more than {_MOST_TIMESTAMPS} timestamps; split it over several lakes")
    acquisitions = {key: Acquisition(key, tuple(scenes[key])) for _, (key, _) in sorted(keys_by_instant.items())}
    return TimeSerie(path, MappingProxyType(acquisitions), tuple(refused))


def _header(path: Path, first: _Row) -> tuple[list[str], Mapping[str, int]]:
    """The names of the columns, and where the needed ones are."""
    line, cells, fault = first
    if fault:
        raise TimeSerieError(f"{path}: line {line}: {fault}")
    header = [name.strip() for name in cells]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        for delimiter, name in _DELIMITERS.items():
            if set(COLUMNS) <= {part.strip(" \"'") for cell in header for part in cell.split(delimiter)}:
                raise TimeSerieError(f"{path}: is separated by {name}, not by commas; export it with commas")
        found = ", ".join(header)[:200] or "none"
        raise TimeSerieError(f"{path}: lacks the column(s) {', '.join(missing)} (found: {found}); add them")
    twice = [column for column in COLUMNS if header.count(column) > 1]
    if twice:
        raise TimeSerieError(f"{path}: has the column(s) {', '.join(twice)} twice; leave one of each")
    return header, {column: header.index(column) for column in COLUMNS}


def _numbered_rows(path: Path, file: TextIO) -> Iterator[_Row]:
    """Rows that hold anything."""
    number = quotes = 0

    def lines() -> Iterator[str]:
        nonlocal number, quotes
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            quotes += line.count('"')
            if len(line) > _LONGEST_LINE:
                raise TimeSerieError(
                    f"{path}: line {number} is longer than {_LONGEST_LINE} characters; export it again"
                )
            yield line

    reader = csv.reader(lines(), skipinitialspace=True)
    while True:
        start, quotes = number + 1, 0
        try:
            row, fault = next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:  # a cell that is too long; the reader goes on with the next line
            row, fault = [], f"cannot be read ({error}); split it, rows of the same acq_datetime are merged"
        if quotes % 2 and not fault:
            fault = "has a quote that is opened and not closed; lines after it may be part of this row"
        if fault or any(cell.strip() for cell in row):
            yield start, row, fault


def _parse_timestamp(cell: str) -> tuple[str, datetime]:
    text = cell.strip()
    if not _TIMESTAMP.fullmatch(text):
        raise ValueError(f"acq_datetime {text[:80]!r} is not an ISO 8601 datetime")
    try:
        return text, instant_of(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"acq_datetime {text!r} is not an ISO 8601 datetime") from error


def split_scene_ids(cell: str) -> list[str]:
    """The scene ids in a cell of ``tile_ids``, valid or not."""
    return [part for piece in _SEPARATORS.split(cell) if (part := piece.strip())]


def _parse_scene_ids(cell: str) -> list[str]:
    scene_ids = split_scene_ids(cell)
    for scene_id in scene_ids:
        if not is_plain_name(scene_id):
            raise ValueError(f"tile id {scene_id[:80]!r} is not a plain name")
    return scene_ids
