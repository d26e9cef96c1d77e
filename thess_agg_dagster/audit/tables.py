"""The audit tables: one row per registered timestamp (and band), from Dagster's event log, never from the disk."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TextIO, TypeAlias, get_type_hints

import dagster as dg

from thess_agg_dagster.audit.attempts import Attempts
from thess_agg_dagster.audit.event_log import latest_attempts, reason_of_end, unreported
from thess_agg_dagster.audit.outcome import Attempt, BandRecord, Column, RecordedAttempt
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.storage.paths import pieces_if_there

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

_MEANINGS = {
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
_TYPES = {"listed": "bool", "success": "bool"} | {name: column.kind for name, column in _RECORDED.items()}


def columns_of(name: str) -> Sequence[str]:
    """The columns of an audit table."""
    return COMPOSITE_COLUMNS if name == "composites" else COLUMNS[name]


def table_schema(name: str) -> dg.TableSchema:
    """The columns of an audit table with their types and meanings, as Dagster shows them."""
    return dg.TableSchema(
        [dg.TableColumn(column, _TYPES.get(column, "string"), _MEANINGS[column]) for column in columns_of(name)]
    )


_SILENT = "the run ended before it could report (killed, stopped, or failed before this step)"
# Of more runs nobody reads why they ended; each is looked up by itself.
_MOST_REASONS = 100


#: Metadata key of the report: the newest event that it could know of.
EVENTS_UP_TO = "events_up_to"


def newest_event(instance: dg.DagsterInstance, keys: LakeKeys, stale: bool = False) -> int:
    """Storage id of the newest event that the tables include; 0 before there is any. With ``stale``, also of those that
    mark timestamps as stale, of which the tables say nothing."""
    fetched = (
        *([instance.fetch_observations(keys.raw_tiles, limit=1)] if stale else []),
        instance.fetch_materializations(keys.aggregated, limit=1),
        instance.fetch_observations(keys.aggregated, limit=1),
        instance.fetch_materializations(keys.time_serie, limit=1),
        instance.fetch_materializations(keys.composites, limit=1),
        instance.fetch_observations(keys.composites, limit=1),
    )
    return max((record.storage_id for found in fetched for record in found.records), default=0)


#: Metadata key of the report: why somebody was not told of it.
NOT_TOLD = "not_told"
#: Metadata key of the report: what :func:`tables_digest` gave when it was written.
TABLES_DIGEST = "tables_digest"


def tables_digest(lake: DataLake) -> str:
    """Identifies the audit tables in their current state and place: different if another program wrote them or the lake
    was moved."""
    digest = hashlib.sha256(str(lake.root).encode())
    for name in (*COLUMNS, "composites"):
        there = False
        for piece in pieces_if_there(lake.audit_table(name)):
            digest.update(piece)
            there = True
        if not there and name in COLUMNS:
            digest.update(b"no such table")
    return digest.hexdigest()[:32]


Row: TypeAlias = dict[str, Any]


class TimestampRows(NamedTuple):
    """What the tables say of one timestamp: a row of each, and one for each band."""

    status: Row
    summary: Row
    band_report: Sequence[Row]

    def of(self, table: str) -> Sequence[Row]:
        return self.band_report if table == "band_report" else [getattr(self, table)]


def audited(
    instance: dg.DagsterInstance, keys: LakeKeys, lake: DataLake, published: Attempts | None = None
) -> Iterator[tuple[Attempt, Row]]:
    """The latest outcome of every registered timestamp, in order, and where it is known from; ``published`` is the result of
    :func:`latest_successes`, if already known. Paths are those of the current lake, which may have been elsewhere then."""
    recorded = latest_attempts(instance, keys.aggregated, published)
    return _latest_truth(instance, keys.aggregated, keys.timestamps, recorded, lake)


def rows_of(attempt: Attempt, provenance: Row, bands: Sequence[str], listed: bool) -> TimestampRows:
    """The rows of a timestamp, which ``time_serie.csv`` lists or no longer does. ``bands`` are those of the band report
    before anything is known about it."""
    if not attempt.bands:  # it ended before there was anything to say about a band
        attempt = replace(attempt, bands=[BandRecord(band, "skipped", attempt.message) for band in bands])
    return TimestampRows(
        _status_row(attempt, listed) | provenance,
        _summary_row(attempt) | provenance,
        [_band_row(attempt, band) | provenance for band in _sorted_bands(attempt)],
    )


def composites_rows(instance: dg.DagsterInstance, keys: LakeKeys, lake: DataLake) -> list[Row]:
    """One row per registered period."""
    recorded = latest_attempts(instance, keys.composites)
    return [
        {
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
        | provenance
        for attempt, provenance in _latest_truth(instance, keys.composites, keys.periods, recorded, lake)
    ]


@dataclass(frozen=True)
class AuditTables:
    """What the audit tables say, as passed from the report asset to the IO manager: of the timestamps one after the other,
    since there may be more than fit into memory, and of the periods.

    ``up_to`` is the id of the newest event in them, ``as_of`` the time at which they were begun. ``stale`` says of stale
    timestamps what has changed (``None``: unknown), ``metrics`` whether Prometheus is to get the numbers.
    """

    timestamps: Iterator[TimestampRows]
    periods: Sequence[Row]
    up_to: int
    as_of: datetime
    stale: Mapping[str, str] | None = None
    metrics: bool = False


class TableFile:
    """A table that is written row by row: as text, numbers in full, nothing for what is missing."""

    def __init__(self, name: str, file: TextIO) -> None:
        self._columns = columns_of(name)
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(self._columns)

    def add(self, rows: Iterable[Row]) -> None:
        self._writer.writerows([row[column] for column in self._columns] for row in rows)


def _latest_truth(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    partitions: dg.DynamicPartitionsDefinition,
    recorded: Attempts,
    lake: DataLake,
) -> Iterator[tuple[Attempt, Row]]:
    """What became of each registered partition, and where that is known from."""
    silent = unreported(instance, asset, recorded)
    reasons = {key: reason_of_end(instance, silent[key]) for key in sorted(silent)[-_MOST_REASONS:]}
    for key in sorted(instance.get_dynamic_partitions(str(partitions.name))):
        found = recorded.get(key)
        if key in silent:
            attempt = Attempt(key, "exception", _silent_message(reasons.get(key, ""), found))
        elif found is not None:
            attempt = _here(found.attempt, lake)
        else:
            attempt = Attempt(key, "not_run", "not aggregated yet")
        yield attempt, {"run_id": silent[key], "finished_at": ""} if key in silent else _provenance(found)


def _here(attempt: Attempt, lake: DataLake) -> Attempt:
    """An attempt whose paths are those of the lake at hand."""
    bands = [_band_here(band, lake) for band in attempt.bands]
    return replace(attempt, bands=bands, output_folder=lake.here(attempt.output_folder))


def _band_here(band: BandRecord, lake: DataLake) -> BandRecord:
    recorded = [band.output_path, *band.input_files, *band.missing_files]
    here = [lake.here(path) for path in recorded]
    if here == recorded:  # as nearly always, and a copy of thousands of bands takes its time
        return band
    output, others, count = here[0], here[1:], len(band.input_files)
    return replace(band, output_path=output, input_files=others[:count], missing_files=others[count:])


def _silent_message(reason: str, before: RecordedAttempt | None) -> str:
    """What is known about a run without an attempt; the problem before it may still exist."""
    parts = [": ".join(filter(None, (_SILENT, reason))), "look at it in the UI, then run it again"]
    if before is not None and before.attempt.status == "success":
        parts.append("the previous version stays published")
    elif before is not None:
        parts.append(f"previous attempt: {before.attempt.status}: {before.attempt.message}")
    return "; ".join(parts)


def _sorted_bands(attempt: Attempt) -> list[BandRecord]:
    return sorted(attempt.bands, key=lambda band: band.band)


def _provenance(found: RecordedAttempt | None) -> Row:
    if found is None:
        return {"run_id": "", "finished_at": ""}
    finished = datetime.fromtimestamp(found.finished_at, UTC).isoformat(timespec="seconds")
    return {"run_id": found.run_id, "finished_at": finished}


def _status_row(attempt: Attempt, listed: bool) -> Row:
    vanished = "" if listed else "no longer in time_serie.csv (files on disk stay)"
    return {
        "timestamp": attempt.timestamp,
        "status": attempt.status,
        "message": "; ".join(filter(None, (vanished, attempt.message))),
        "listed": listed,
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
