"""The audit tables: one row per registered timestamp (and band), from Dagster's event log, never from the disk; what each says
is in :mod:`thess_agg_dagster.audit.rows`."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import dagster as dg

from thess_agg_dagster.audit.attempts import Attempts
from thess_agg_dagster.audit.event_log import latest_attempts, reason_of_end, unreported
from thess_agg_dagster.audit.outcome import Attempt, BandRecord, RecordedAttempt
from thess_agg_dagster.audit.rows import (
    COLUMNS,
    MEANINGS,
    TYPES,
    Row,
    TimestampRows,
    columns_of,
    period_row,
    rows_of,
    unlisted,
)
from thess_agg_dagster.audit.told import ToldRows
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.storage.paths import pieces_if_there


def table_schema(name: str) -> dg.TableSchema:
    """The columns of an audit table with their types and meanings, as Dagster shows them."""
    return dg.TableSchema(
        [dg.TableColumn(column, TYPES.get(column, "string"), MEANINGS[column]) for column in columns_of(name)]
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


def audited(
    instance: dg.DagsterInstance,
    keys: LakeKeys,
    lake: DataLake,
    bands: Sequence[str],
    listed: Container[str],
    published: Attempts | None = None,
) -> Iterator[TimestampRows]:
    """The rows of every registered timestamp, in order. ``bands`` are those of the band report before anything is known of a
    timestamp, ``listed`` what ``time_serie.csv`` lists, ``published`` the result of :func:`latest_successes`, if already known.
    Paths are those of the current lake, which may have been elsewhere then."""
    recorded = latest_attempts(instance, keys.aggregated, published)
    truth = _LatestTruth(instance, keys.aggregated, recorded, lake)
    told = ToldRows(instance, recorded, lake, bands)

    def make(key: str) -> TimestampRows:
        attempt, provenance = truth.of(key)
        return rows_of(attempt, provenance, bands)

    for key in _registered(instance, keys.timestamps):
        rows = told.of(key, make) if key in recorded and key not in truth.silent else make(key)
        yield rows if key in listed else unlisted(rows)
    told.keep()


def composites_rows(instance: dg.DagsterInstance, keys: LakeKeys, lake: DataLake) -> list[Row]:
    """One row per registered period."""
    truth = _LatestTruth(instance, keys.composites, latest_attempts(instance, keys.composites), lake)
    found = map(truth.of, _registered(instance, keys.periods))
    return [period_row(attempt) | provenance for attempt, provenance in found]


def _registered(instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition) -> list[str]:
    return sorted(instance.get_dynamic_partitions(str(partitions.name)))


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


class _LatestTruth:
    """What became of each partition of an asset, and where that is known from."""

    def __init__(self, instance: dg.DagsterInstance, asset: dg.AssetKey, recorded: Attempts, lake: DataLake) -> None:
        self._recorded, self._lake = recorded, lake
        #: Partitions whose latest run left no attempt, with its run id.
        self.silent = unreported(instance, asset, recorded)
        latest = sorted(self.silent)[-_MOST_REASONS:]
        self._reasons = {key: reason_of_end(instance, self.silent[key]) for key in latest}

    def of(self, key: str) -> tuple[Attempt, Row]:
        found = self._recorded.get(key)
        if key in self.silent:
            message = _silent_message(self._reasons.get(key, ""), found)
            return Attempt(key, "exception", message), {"run_id": self.silent[key], "finished_at": ""}
        if found is None:
            return Attempt(key, "not_run", "not aggregated yet"), {"run_id": "", "finished_at": ""}
        finished = datetime.fromtimestamp(found.finished_at, UTC).isoformat(timespec="seconds")
        return _here(found.attempt, self._lake), {"run_id": found.run_id, "finished_at": finished}


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
