"""Attempts: what one try at one timestamp read, wrote, and why it failed; kept as Dagster events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import dagster as dg

AGGREGATED = dg.AssetKey(["data_raw", "aggregated"])

BandStatus = Literal[
    "success",
    "missing_input",
    "unreadable_input",
    "unknown_crs",
    "dtype_conflict",
    "merge_failed",
    "write_failed",
    "skipped",
]
TimestampStatus = Literal[
    "success",
    "failed_no_tiles",
    "failed_missing_inputs",
    "failed_invalid_inputs",
    "failed_merge",
    "exception",
    "not_run",
]

# Metadata key under which an attempt stands on its event.
_KEY = "attempt"


@dataclass(frozen=True)
class BandRecord:
    """One band of an attempt: a row of the band report."""

    band: str
    status: BandStatus
    message: str = ""
    input_files: Sequence[str] = ()
    missing_files: Sequence[str] = ()
    output_path: str = ""
    crs: str = ""
    dtype: str = ""
    nodata: float | str | None = None
    width: int | None = None
    height: int | None = None
    tiles: int | None = None
    reprojected_tiles: Sequence[str] = ()
    valid_share: float | None = None
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Attempt:
    """One try at one timestamp. ``inputs`` identifies what went in: same text, same mosaics."""

    timestamp: str
    status: TimestampStatus
    message: str
    bands: Sequence[BandRecord] = field(default=())
    output_folder: str = ""
    inputs: str = ""

    def metadata(self) -> dict[str, Any]:
        """The attempt as event metadata: the whole record, and beside it what a person looks for first."""
        shown: dict[str, Any] = {_KEY: dg.MetadataValue.json(asdict(self)), "status": self.status}
        if self.message:
            shown["message"] = self.message
        if self.output_folder:
            shown["folder"] = dg.MetadataValue.path(self.output_folder)
        if self.bands:
            shown["bands"] = dg.MetadataValue.table(
                [
                    dg.TableRecord({"band": b.band, "status": b.status, "crs": b.crs, "message": b.message})
                    for b in self.bands
                ]
            )
        shares = [b.valid_share for b in self.bands if b.valid_share is not None]
        if shares:
            shown["valid_share"] = min(shares)
            shown["seconds"] = sum(b.seconds or 0 for b in self.bands)
            shown["megabytes"] = sum(b.bytes or 0 for b in self.bands) / 1e6
        return shown

    def observation(self) -> dg.AssetObservation:
        """The event of an attempt that published nothing."""
        return dg.AssetObservation(
            AGGREGATED, partition=self.timestamp, description=self.message, metadata=self.metadata()
        )


def status_of(bands: Iterable[BandRecord]) -> TimestampStatus:
    """A timestamp's status from its bands': the fault that comes first on the way from tiles to mosaics."""
    found = {band.status for band in bands}
    if "missing_input" in found:
        return "failed_missing_inputs"
    if found & {"unreadable_input", "unknown_crs", "dtype_conflict"}:
        return "failed_invalid_inputs"
    if found & {"merge_failed", "write_failed", "skipped"}:
        return "failed_merge"
    return "success"


@dataclass(frozen=True)
class RecordedAttempt:
    """An attempt as found in the event log."""

    attempt: Attempt
    run_id: str
    finished_at: float
    storage_id: int


def latest_attempts(instance: dg.DagsterInstance) -> dict[str, RecordedAttempt]:
    """The latest attempt of each timestamp, in a constant number of queries.

    A success is a materialization, a failure an observation; whichever is younger counts. Where the youngest of either
    kind is not ours ("mark as materialized" in the UI), nothing is known of that kind: such a timestamp is run again.
    """
    latest: dict[str, RecordedAttempt] = {}
    for event_type, fetch in (
        (dg.DagsterEventType.ASSET_MATERIALIZATION, instance.fetch_materializations),
        (dg.DagsterEventType.ASSET_OBSERVATION, instance.fetch_observations),
    ):
        ids = list(instance.get_latest_storage_id_by_partition(AGGREGATED, event_type).values())
        # SQLite takes a bounded number of variables in one statement.
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            for record in fetch(dg.AssetRecordsFilter(AGGREGATED, storage_ids=page), limit=_PAGE).records:
                found = _recorded(record)
                known = latest.get(found.attempt.timestamp) if found else None
                if found and (known is None or known.storage_id < found.storage_id):
                    latest[found.attempt.timestamp] = found
    return latest


_PAGE = 10_000


def unreported(instance: dg.DagsterInstance, recorded: Mapping[str, RecordedAttempt]) -> dict[str, str]:
    """Timestamps whose latest run ended without leaving an attempt (killed, crashed, or stopped), and its run id."""
    planned = instance.get_latest_storage_id_by_partition(AGGREGATED, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    silent = [run for key, run in planned.items() if key not in recorded or recorded[key].storage_id < run]
    runs: dict[str, str] = {}
    for start in range(0, len(silent), _PAGE):
        page = silent[start : start + _PAGE]
        records = instance.get_event_records(
            dg.EventRecordsFilter(
                dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, asset_key=AGGREGATED, storage_ids=page
            )
        )
        run_ids = {record.partition_key: record.run_id for record in records if record.partition_key}
        finished = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
        ended = instance.get_run_records(dg.RunsFilter(run_ids=list(run_ids.values()), statuses=finished))
        ids = {record.dagster_run.run_id for record in ended}
        runs |= {key: run_id for key, run_id in run_ids.items() if run_id in ids}
    return runs


def _recorded(record: dg.EventLogRecord) -> RecordedAttempt | None:
    event = record.asset_materialization or _observation(record)
    value = event.metadata.get(_KEY) if event else None
    if not isinstance(value, dg.JsonMetadataValue) or not isinstance(value.data, dict):
        return None  # an event of another origin, e.g. "mark as materialized" in the UI
    data = dict(value.data)
    bands = [BandRecord(**band) for band in data.pop("bands")]
    return RecordedAttempt(Attempt(**data, bands=bands), record.run_id, record.timestamp, record.storage_id)


def _observation(record: dg.EventLogRecord) -> dg.AssetObservation | None:
    event = record.event_log_entry.dagster_event
    return event.asset_observation_data.asset_observation if event and event.is_asset_observation else None
