"""Dagster's event log: outcomes are written to it as events, and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import dagster as dg

from thess_agg_dagster.audit.attempts import ATTEMPT, Attempts, pages, read_attempts
from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.keys import LakeKeys

# Scenes shown of one timestamp; an overpass has a dozen.
_MOST_SCENES = 100


def attempt_metadata(attempt: Attempt) -> dict[str, Any]:
    """The attempt as event metadata: first what people look for, last the complete record."""
    shown: dict[str, Any] = {"status": attempt.status}
    if attempt.message:
        shown["message"] = attempt.message
    if attempt.output_folder:
        shown["folder"] = dg.MetadataValue.path(attempt.output_folder)
    if attempt.bands:
        shown["bands"] = dg.MetadataValue.table([_row(band) for band in attempt.bands], _BANDS_SCHEMA)
    if attempt.parameters:
        shown["parameters"] = spelled_out(attempt.parameters)
    if attempt.valid_share is not None:
        seconds = sum(b.seconds or 0 for b in attempt.bands)
        megabytes = sum(b.bytes or 0 for b in attempt.bands) / 1e6
        shown |= {"valid_share": attempt.valid_share, "seconds": round(seconds, 3), "megabytes": round(megabytes, 3)}
        if seconds:
            shown["megabytes_per_second"] = round(megabytes / seconds, 2)
    if attempt.cloud_share is not None:
        shown["cloud_share"] = attempt.cloud_share
    if attempt.masked_share is not None:
        shown["masked_share"] = attempt.masked_share
    return shown | {ATTEMPT: dg.MetadataValue.json(asdict(attempt))}


def spelled_out(parameters: str) -> str:
    """The parameters of an attempt, in readable form."""
    differing = json.loads(parameters)
    return ", ".join(f"{name}={value}" for name, value in differing.items()) or "all defaults"


def changes_since(made: Attempt, now: Attempt) -> str:
    """Why a timestamp was made again: what has changed since its last success."""
    told = _asked_for_since(made, now.parameters, now.scene_ids)
    told += _other_bands(made, [band.band for band in now.bands], _ndvi_of(now))
    read = {path: sum for band in made.bands for path, sum in zip(band.input_files, band.input_checksums, strict=False)}
    told += [
        f"the content of {path} has changed"
        for band in now.bands
        for path, sum in zip(band.input_files, band.input_checksums, strict=False)
        if read.get(path, sum) != sum
    ]
    return "; ".join(told) or "nothing: the same tiles and parameters"


def why_stale(
    made: Attempt, parameters: str, scene_ids: Sequence[str], bands: Sequence[str], ndvi: str | None = None
) -> str:
    """What has changed since a success that is now stale; Dagster shows only a new data version."""
    told = _asked_for_since(made, parameters, scene_ids) + _other_bands(made, bands, ndvi)
    return "; ".join(told) or "tiles: files, checksums or STAC items have changed"


def _other_bands(made: Attempt, bands: Sequence[str], ndvi: str | None) -> list[str]:
    """Bands that a success lacks, and another dtype of its NDVI."""
    told = [f"band {band} added" for band in bands if band not in {each.band for each in made.bands}]
    before = _ndvi_of(made)
    return [*told, f"ndvi: {before} -> {ndvi}"] if ndvi and before and before != ndvi else told


def _ndvi_of(attempt: Attempt) -> str | None:
    return next((band.dtype for band in attempt.bands if band.derived_from), None)


def _asked_for_since(made: Attempt, parameters: str, scene_ids: Sequence[str]) -> list[str]:
    """Changes in parameters and tile list since a success, whose parameters may be unknown."""
    told = []
    if made.parameters and made.parameters != parameters:
        before, after = json.loads(made.parameters), json.loads(parameters)
        for name in dict.fromkeys([*before, *after]):
            if before.get(name) != after.get(name):
                told.append(f"{name}: {before.get(name, 'default')} -> {after.get(name, 'default')}")
    for what, scenes, others in (
        ("added", scene_ids, made.scene_ids),
        ("no longer listed", made.scene_ids, scene_ids),
    ):
        told += [f"{scene} {what}" for scene in scenes if scene not in others]
    return told


def failure_observation(attempt: Attempt, asset: dg.AssetKey) -> dg.AssetObservation:
    """The event of an attempt that published nothing."""
    return dg.AssetObservation(
        asset, partition=attempt.timestamp, description=attempt.message, metadata=attempt_metadata(attempt)
    )


def first_sight(keys: LakeKeys, timestamp: str, scene_ids: Sequence[str] = ()) -> dg.AssetObservation:
    """The event of a timestamp's raw tiles on registration, with which Dagster compares later ones."""
    return inputs_observed(keys, timestamp, "registered", scene_ids)


def inputs_observed(
    keys: LakeKeys, timestamp: str, inputs: str, scene_ids: Sequence[str], changed: str = ""
) -> dg.AssetObservation:
    """The event that gives Dagster the data version of a timestamp's raw tiles, and readers the scenes and what
    ``changed`` since its mosaics were made."""
    rows = [dg.TableRecord({"scene_id": scene_id}) for scene_id in scene_ids[:_MOST_SCENES]]
    seen: dict[str, Any] = ({"changed": changed} if changed else {}) | {
        "scenes": len(scene_ids),
        "tiles": dg.MetadataValue.table(rows, dg.TableSchema([dg.TableColumn("scene_id")])),
    }
    tags = {"dagster/data_version": inputs}
    return dg.AssetObservation(keys.raw_tiles, changed or None, metadata=seen, partition=timestamp, tags=tags)


def mosaics_observed(keys: LakeKeys, period: str, mosaics: str, timestamps: Sequence[str]) -> dg.AssetObservation:
    """The event that tells Dagster the data version of a period's published mosaics, and a person which these are."""
    seen: dict[str, Any] = {
        "timestamps": len(timestamps),
        "published": dg.MetadataValue.json(list(timestamps[:_MOST_SCENES])),
    }
    tags = {"dagster/data_version": mosaics}
    return dg.AssetObservation(keys.mosaics_by_period, metadata=seen, partition=period, tags=tags)


@contextmanager
def stopping_is_final() -> Iterator[None]:
    """Fail without retries if a run is stopped (Ctrl-C, SIGTERM, "terminate" in the UI).

    Dagster treats an interrupt like a fault of the machine: a step with a retry policy would start again.
    """
    try:
        yield
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
        raise dg.Failure(STOPPED, allow_retries=False) from interrupt


STOPPED = "stopped before it finished; the previous version stays published; run it again"

_BANDS_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("band"),
        dg.TableColumn("status"),
        dg.TableColumn("crs"),
        dg.TableColumn("size", description="Columns x rows of the grid."),
        dg.TableColumn("dtype"),
        dg.TableColumn("tiles", "int"),
        dg.TableColumn("valid", description="Share of the grid's pixels that hold a value."),
        dg.TableColumn("masked", description="Share of the grid's pixels that the SCL mask emptied."),
        dg.TableColumn("seconds", "float"),
        dg.TableColumn("MB", "float"),
        dg.TableColumn("reprojected", description="Tiles reprojected from another CRS or pixel grid."),
        dg.TableColumn("message"),
    ]
)


def _row(band: BandRecord) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "band": band.band,
            "status": band.status,
            "crs": band.crs,
            "size": f"{band.width}x{band.height}" if band.width else "",
            "dtype": band.dtype,
            "tiles": band.tiles,
            "valid": "" if band.valid_share is None else f"{band.valid_share:.1%}",
            "masked": "" if band.masked_share is None else f"{band.masked_share:.1%}",
            "seconds": band.seconds,
            "MB": None if band.bytes is None else round(band.bytes / 1e6, 2),
            "reprojected": ", ".join(band.reprojected_tiles),
            "message": band.message,
        }
    )


def latest_attempts(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    successes: Attempts | None = None,
    among: Collection[str] | None = None,
) -> Attempts:
    """The latest attempt of each partition of an asset (all, or those in ``among``); known ``successes`` save queries.

    A success is a materialization, a failure an observation; the more recent one counts. If the most recent of a kind
    is not ours ("mark as materialized" in the UI), nothing is known of that kind, and the timestamp is run again.
    """
    made = latest_successes(instance, asset, among) if successes is None else successes
    return made.or_later(read_attempts(instance, asset, dg.DagsterEventType.ASSET_OBSERVATION, among))


def latest_successes(
    instance: dg.DagsterInstance, asset: dg.AssetKey, among: Collection[str] | None = None
) -> Attempts:
    """The latest successful attempt of each partition of an asset, whatever happened since."""
    return read_attempts(instance, asset, dg.DagsterEventType.ASSET_MATERIALIZATION, among)


def failed_since(instance: dg.DagsterInstance, asset: dg.AssetKey, event: int) -> Mapping[str, int]:
    """Partitions that failed after an event, with the storage id of the event that says so."""
    kind = dg.DagsterEventType.ASSET_OBSERVATION
    return instance.get_latest_storage_id_by_partition(asset, kind, after_cursor=event)


def published_since(instance: dg.DagsterInstance, asset: dg.AssetKey, event: int) -> Mapping[str, int]:
    """Partitions that were published after an event, and the event of each that tells so, by storage id."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    return instance.get_latest_storage_id_by_partition(asset, kind, after_cursor=event)


def unreported(instance: dg.DagsterInstance, asset: dg.AssetKey, recorded: Attempts) -> dict[str, str]:
    """Partitions whose latest run ended without recording an attempt (killed, crashed, or stopped), with its run id."""
    planned = instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    told = recorded.storage_ids
    silent = [run for key, run in planned.items() if told.get(key, 0) < run]
    runs: dict[str, str] = {}
    for page in pages(silent):
        records = instance.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, asset_key=asset, storage_ids=page)
        )
        run_ids = {record.partition_key: record.run_id for record in records if record.partition_key}
        finished = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
        ended = instance.get_run_records(dg.RunsFilter(run_ids=list(run_ids.values()), statuses=finished))
        ids = {record.dagster_run.run_id for record in ended}
        runs |= {key: run_id for key, run_id in run_ids.items() if run_id in ids}
    return runs


def reason_of_end(instance: dg.DagsterInstance, run_id: str) -> str:
    """Why a run without an attempt ended, in the words of whatever ended it; empty if unknown."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED}
    said = ""
    for entry in reversed(instance.all_logs(run_id, of_type=kinds)):
        event = entry.dagster_event
        if event is None:
            continue
        data: Any = event.event_specific_data
        # A run that failed because of a step repeats its error, and not the words of a Failure.
        if step := getattr(data, "first_step_failure_event", None):
            data = step.event_specific_data
        if failure := getattr(data, "user_failure_data", None):
            return str(failure.description or "")
        error = getattr(data, "error", None)
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None:
            return _plain(error.message)
        said = said or event.message or ""
    return said


def _plain(message: str) -> str:
    """The first line of an error as Dagster recorded it; of pydantic's only what is wrong."""
    faults = re.findall(r"Value error, (.*?) \[type=", message, re.DOTALL)
    return "; ".join(faults) or message.strip().splitlines()[0]
