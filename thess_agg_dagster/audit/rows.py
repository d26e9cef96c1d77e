"""The rows of the audit tables: what they say of an attempt, column by column."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, TextIO, TypeAlias, get_type_hints

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, Column

# A cell may list thousands of files: more than the csv module reads unless it is told to.
_LONGEST_CELL = 2**31 - 1

# What a record tells of a band, column by column.
_RECORDED: Mapping[str, Column] = {
    name: column
    for name, hint in get_type_hints(BandRecord, include_extras=True).items()
    for column in getattr(hint, "__metadata__", ())
}


def _band_columns() -> Sequence[str]:
    first = ("timestamp", "band", "status", "input_files", "output_path", "message")
    names = [*first, *(name for name in _RECORDED if name not in first)]
    later = names.index("grid")  # columns that came later stand behind those that were there
    return (*names[:later], "run_id", "finished_at", *names[later:])


#: Columns of each table, in order; the first ones are a promise to those who read them.
COLUMNS: Mapping[str, Sequence[str]] = {
    "status": ("timestamp", "status", "message", "listed", "seconds", "run_id", "finished_at"),
    "summary": (
        "timestamp",
        "success",
        "failed_bands",
        "missing_files",
        "error_message",
        "output_folder",
        "bands",
        "crs",
        "tiles",
        "reprojected_tiles",
        "valid_share",
        "cloud_share",
        "seconds",
        "bytes",
        "run_id",
        "finished_at",
        "masked_share",
    ),
    "band_report": _band_columns(),
}

#: Columns of the table of composites, which is written where some are asked for.
COMPOSITE_COLUMNS = (
    "period",
    "status",
    "message",
    "timestamps",
    "bands",
    "output_folder",
    "valid_share",
    "seconds",
    "bytes",
    "run_id",
    "finished_at",
)

#: What each column says.
MEANINGS: Mapping[str, str] = {
    "period": "Partition key: a month or a quarter.",
    "timestamps": "Timestamps whose mosaics were read, between |.",
    "timestamp": "Partition key: acq_datetime as the list spells it.",
    "listed": "Whether time_serie.csv still lists it. Files on disk stay either way.",
    "success": "Whether all bands were published.",
    "failed_bands": "Bands that could not be made, separated by |.",
    "missing_files": "Missing tiles, separated by |.",
    "error_message": "What is wrong and what to do; empty on a success.",
    "output_folder": "Folder of the mosaics.",
    "bands": "Bands of the attempt, separated by |.",
    "run_id": "The Dagster run, to be found in the UI.",
    "finished_at": "When the attempt ended, UTC.",
} | {name: column.meaning for name, column in _RECORDED.items()}
#: What holds no text.
TYPES: Mapping[str, str] = {"listed": "bool", "success": "bool"} | {
    name: column.kind for name, column in _RECORDED.items()
}


def columns_of(name: str) -> Sequence[str]:
    """The columns of an audit table."""
    return COMPOSITE_COLUMNS if name == "composites" else COLUMNS[name]


Row: TypeAlias = dict[str, Any]


class Mosaic(NamedTuple):
    """What a mosaic has in common with those of other timestamps: whether its grid is fixed, what ground it covers, and with how
    many pixels."""

    band: str
    is_fixed: bool
    ground: str
    pixels: str


class Common(NamedTuple):
    """What a report looks at, of every timestamp, beside its status: the parameters it was made with, if they are known, its
    mosaics, and its tiles that were downloaded again."""

    parameters: str
    mosaics: tuple[Mosaic, ...]
    refetched: tuple[str, ...]


# Equal ones, of thousands of timestamps, are one.
_shared = lru_cache(maxsize=64)(Common)


@dataclass(frozen=True)
class TimestampRows:
    """What the tables say of one timestamp: a row of each, and one for each band; and the lines of each table, where they were
    written before. Then ``make`` makes the rows of the summary and of the bands when somebody looks at them: of thousands of
    timestamps, few are looked at."""

    status: Row
    common: Common
    make: Callable[[], tuple[Row, Sequence[Row]]]
    lines: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> Row:
        return self._made[0]

    @property
    def band_report(self) -> Sequence[Row]:
        return self._made[1]

    @cached_property
    def _made(self) -> tuple[Row, Sequence[Row]]:
        return self.make()

    def of(self, table: str) -> Sequence[Row]:
        return self.band_report if table == "band_report" else [getattr(self, table)]

    def with_lines(self) -> TimestampRows:
        return replace(self, lines={table: _lines_of(table, self.of(table)) for table in COLUMNS})


def rows_of(attempt: Attempt, provenance: Row, bands: Sequence[str]) -> TimestampRows:
    """The rows of a timestamp that ``time_serie.csv`` lists. ``bands`` are those of the band report before anything is known
    about it."""
    if not attempt.bands:  # it ended before there was anything to say about a band
        attempt = replace(attempt, bands=[BandRecord(band, "skipped", attempt.message) for band in bands])
    summary = _summary_row(attempt) | provenance
    of_bands = [_band_row(attempt, band) | provenance for band in _sorted_bands(attempt)]
    refetched = dict.fromkeys(tile for row in of_bands for tile in row["refetched"].split("|") if tile)
    common = _shared(attempt.parameters, tuple(map(_mosaic, of_bands)), tuple(refetched))
    return TimestampRows(_status_row(attempt) | provenance, common, lambda: (summary, of_bands))


def _mosaic(row: Row) -> Mosaic:
    ground = f"{row['crs']} {row['bounds'].replace('|', ', ')}"
    return Mosaic(row["band"], row["grid"] == "fixed", ground, f"{row['width']} x {row['height']}")


def unlisted(rows: TimestampRows) -> TimestampRows:
    """The rows of a timestamp that ``time_serie.csv`` no longer lists."""
    vanished = "no longer in time_serie.csv (files on disk stay)"
    message = "; ".join(filter(None, (vanished, rows.status["message"])))
    return replace(rows, status=rows.status | {"message": message, "listed": False}, lines={})


def period_row(attempt: Attempt) -> Row:
    """The row of a period in the table of composites."""
    return {
        "period": attempt.timestamp,
        "status": attempt.status,
        "message": attempt.message,
        "timestamps": _joined(attempt.scene_ids),
        "bands": _joined(band.band for band in attempt.bands),
        "output_folder": attempt.output_folder,
        "valid_share": attempt.valid_share,
        "seconds": _total(attempt, "seconds"),
        "bytes": _total(attempt, "bytes"),
    }


class TableFile:
    """A table that is written row by row: as text, numbers in full, nothing for what is missing."""

    def __init__(self, name: str, file: TextIO) -> None:
        self._name, self._file = name, file
        file.write(_lines_of(name, [{column: column for column in columns_of(name)}]))

    def add(self, rows: Iterable[Row]) -> None:
        self._file.write(_lines_of(self._name, rows))

    def add_timestamp(self, rows: TimestampRows) -> None:
        if self._name in rows.lines:
            self._file.write(rows.lines[self._name])
        else:
            self.add(rows.of(self._name))


def _lines_of(name: str, rows: Iterable[Row]) -> str:
    """Rows of a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(itemgetter(*columns_of(name)), rows))
    return text.getvalue()


@contextmanager
def long_cells() -> Iterator[None]:
    """Have the csv module read whatever a table holds."""
    before = csv.field_size_limit(_LONGEST_CELL)  # of the whole process: what others read has a limit for a reason
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _sorted_bands(attempt: Attempt) -> list[BandRecord]:
    return sorted(attempt.bands, key=lambda band: band.band)


def _status_row(attempt: Attempt) -> Row:
    return {
        "timestamp": attempt.timestamp,
        "status": attempt.status,
        "message": attempt.message,
        "listed": True,
        "seconds": _total(attempt, "seconds"),
    }


def _summary_row(attempt: Attempt) -> Row:
    bands = _sorted_bands(attempt)
    success = attempt.status == "success"
    return {
        "timestamp": attempt.timestamp,
        "success": success,
        "failed_bands": _joined(band.band for band in bands if band.status not in ("success", "skipped")),
        "missing_files": _joined(path for band in bands for path in band.missing_files),
        "error_message": "" if success else attempt.message,
        "output_folder": attempt.output_folder,
        "bands": _joined(band.band for band in bands),
        "crs": _joined(band.crs for band in bands if band.crs),
        "tiles": max((band.tiles for band in bands if band.tiles is not None), default=None),
        "reprojected_tiles": _joined(tile for band in bands for tile in band.reprojected_tiles),
        "valid_share": attempt.valid_share,
        "cloud_share": attempt.cloud_share,
        "seconds": _total(attempt, "seconds"),
        "bytes": _total(attempt, "bytes"),
        "masked_share": attempt.masked_share,
    }


def _band_row(attempt: Attempt, band: BandRecord) -> Row:
    return {"timestamp": attempt.timestamp} | {name: _cell(name, getattr(band, name)) for name in _RECORDED}


def _cell(name: str, value: Any) -> Any:
    """A value of a record as text for a table."""
    if name == "bounds":
        return "|".join(f"{edge:.15g}" for edge in value)
    if name == "input_checksums":  # one for each of the input files, equal ones too
        return "|".join(value)
    return _joined(value) if isinstance(value, list | tuple) else value


def _total(attempt: Attempt, name: str) -> Any:
    values = [value for band in attempt.bands if (value := getattr(band, name)) is not None]
    return round(sum(values), 3) if values else None


def _joined(items: Any) -> str:
    """A list in one cell: the distinct items, in order, between ``|``."""
    return "|".join(dict.fromkeys(items))
