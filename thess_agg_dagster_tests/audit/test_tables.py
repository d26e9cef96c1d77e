"""The audit tables from attempts in an event log (Dagster's, in memory; no run), against rows written by hand."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from thess_agg_dagster.audit import tables
from thess_agg_dagster.audit.event_log import attempt_metadata, latest_attempts
from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.audit.rows import COLUMNS, COMPOSITE_COLUMNS, TableFile, long_cells
from thess_agg_dagster.audit.tables import audited, composites_rows, newest_event, table_schema, tables_digest
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, HERE, RAW_TILES, TIME_SERIE, periods, timestamps
from thess_agg_dagster.lake.layout import DataLake

GOOD, BAD, NEW = "2023-02-02 09:21:09+00:00", "2023-04-13 09:20:29+00:00", "2023-06-22 09:15:59+00:00"
BANDS = ("B04", "SCL")
OLD_PLACE = "/old/lake/cache/s2"

B04 = BandRecord(
    band="B04",
    status="success",
    message="dtype promoted",
    input_files=(f"{OLD_PLACE}/S2_A/B04.tif", f"{OLD_PLACE}/S2_B/B04.tif"),
    output_path=f"/old/lake/data_raw/aggregated/{GOOD}/B04.tif",
    crs="EPSG:32634",
    dtype="uint16",
    nodata=0,
    width=30,
    height=20,
    tiles=2,
    reprojected_tiles=("S2_B",),
    valid_share=0.75,
    seconds=1.2345,
    bytes=1000,
    grid="fixed",
    resolution=10.0,
    bounds=(600000.0, 4499800.0, 600300.125, 4500000.0),
    masked_share=0.25,
    baselines=("05.10", "02.14"),
    harmonized=True,
    input_checksums=("sha256:1", "sha256:1"),
    output_checksum="sha256:2",
    refetched=("S2_B/B04 cut off",),
    inputs="of B04",
    tile_shares=("S2_A=0.5", "S2_B=0.5"),
)
THERE = DataLake(Path("/old/lake"))
SCL = replace(
    B04, band="SCL", message="", output_path="", tiles=1, crs="EPSG:32635", reprojected_tiles=("S2_B", "S2_C"),
    valid_share=0.5, cloud_share=0.1, seconds=1.0, bytes=24, masked_share=None, bounds=(), input_checksums=(),
)  # fmt: skip
SUCCESS = Attempt(GOOD, "success", "B04: dtype promoted", (SCL, B04), f"/old/lake/data_raw/aggregated/{GOOD}", "all")
FAILURE = Attempt(
    BAD,
    "failed_missing_inputs",
    "B08 of S2_A: is not there",
    (
        BandRecord("B04", "skipped", "not merged, because of B08"),
        BandRecord("B08", "missing_input", "is not there", missing_files=(f"{OLD_PLACE}/S2_A/B08.tif",)),
        BandRecord("B11", "missing_input", "is not there", missing_files=(f"{OLD_PLACE}/S2_A/B08.tif", "/x/B11.tif")),
    ),
)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions(str(timestamps.name), [NEW, BAD, GOOD])
        yield made


def record(instance: dg.DagsterInstance, attempt: Attempt) -> str:
    """Leave an attempt in the event log, as a run does; when it ended, to the second."""
    kind: Any = dg.AssetMaterialization if attempt.status == "success" else dg.AssetObservation
    event = kind(AGGREGATED, partition=attempt.timestamp, metadata=attempt_metadata(attempt))
    instance.report_runless_asset_event(event)
    ended = latest_attempts(instance, AGGREGATED)[attempt.timestamp].finished_at
    return datetime.fromtimestamp(ended, UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")


def rows(
    instance: dg.DagsterInstance,
    name: str,
    listed: Any = (GOOD, BAD, NEW),
    lake: DataLake = THERE,
) -> list[dict[str, Any]]:
    return [row for each in audited(instance, HERE, lake, BANDS, listed) for row in each.of(name)]


def test_a_table_is_read_whatever_a_cell_holds(instance: dg.DagsterInstance) -> None:
    """Thousands of tiles are more than the csv module reads by itself, whose limit stays for whoever reads a list."""
    tiles = [f"/archive/S2_{number}/B04.tif" for number in range(10_000)]
    band = BandRecord("B04", "success", 'said "no",\nthen é', tiles)
    record(instance, Attempt(GOOD, "success", "", [band]))
    text = io.StringIO(newline="")
    TableFile("band_report", text).add(rows(instance, "band_report", [GOOD]))
    text.seek(0)
    before = csv.field_size_limit()
    with long_cells():
        (found,) = (row for row in csv.DictReader(text) if row["timestamp"] == GOOD)
    assert (found["input_files"], found["message"]) == ("|".join(tiles), band.message)
    assert len(found["input_files"]) > before == csv.field_size_limit()


def test_a_table_as_text(instance: dg.DagsterInstance) -> None:
    """As pandas reads and writes it: every column in its order, numbers in full, nothing for what is missing."""
    record(instance, SUCCESS)
    record(instance, FAILURE)
    for name, columns in COLUMNS.items():
        found, text = rows(instance, name), io.StringIO()
        TableFile(name, text).add(found)
        assert text.getvalue() == pd.DataFrame(found, columns=list(columns), dtype=object).to_csv(index=False)


def test_nothing_is_known_yet(instance: dg.DagsterInstance) -> None:
    row = {"status": "not_run", "message": "not aggregated yet", "listed": True, "seconds": None}
    nowhere = {"run_id": "", "finished_at": ""}
    assert rows(instance, "status") == [{"timestamp": key} | row | nowhere for key in (GOOD, BAD, NEW)]
    report = rows(instance, "band_report")
    assert [(each["timestamp"], each["band"]) for each in report] == [(k, b) for k in (GOOD, BAD, NEW) for b in BANDS]
    assert {(each["status"], each["message"], each["run_id"]) for each in report} == {
        ("skipped", "not aggregated yet", "")
    }
    summary = rows(instance, "summary")[0]
    assert (summary["success"], summary["bands"], summary["failed_bands"]) == (False, "B04|SCL", "")
    assert (summary["error_message"], summary["tiles"], summary["bytes"]) == ("not aggregated yet", None, None)


def test_a_success(instance: dg.DagsterInstance) -> None:
    ended = record(instance, SUCCESS)
    status, summary, report = (rows(instance, name) for name in COLUMNS)
    assert status[0] == {
        "timestamp": GOOD, "status": "success", "message": "B04: dtype promoted", "listed": True, "seconds": 2.234,
        "run_id": "", "finished_at": ended,
    }  # fmt: skip
    assert summary[0] == {
        "timestamp": GOOD, "success": True, "failed_bands": "", "missing_files": "", "error_message": "",
        "output_folder": f"/old/lake/data_raw/aggregated/{GOOD}", "bands": "B04|SCL", "crs": "EPSG:32634|EPSG:32635",
        "tiles": 2, "reprojected_tiles": "S2_B|S2_C", "valid_share": 0.5, "cloud_share": 0.1, "seconds": 2.234,
        "bytes": 1024, "run_id": "", "finished_at": ended, "masked_share": 0.25,
    }  # fmt: skip
    assert [each["band"] for each in report[:3]] == ["B04", "SCL", "B04"]
    assert report[0] == {
        "timestamp": GOOD, "band": "B04", "status": "success",
        "input_files": f"{OLD_PLACE}/S2_A/B04.tif|{OLD_PLACE}/S2_B/B04.tif",
        "output_path": f"/old/lake/data_raw/aggregated/{GOOD}/B04.tif", "message": "dtype promoted", "crs": "EPSG:32634",
        "dtype": "uint16", "nodata": 0, "width": 30, "height": 20, "tiles": 2, "reprojected_tiles": "S2_B",
        "valid_share": 0.75, "cloud_share": None, "seconds": 1.2345, "bytes": 1000, "run_id": "", "finished_at": ended,
        "grid": "fixed", "resolution": 10.0, "bounds": "600000|4499800|600300.125|4500000", "masked_share": 0.25,
        "baselines": "05.10|02.14", "harmonized": True, "input_checksums": "sha256:1|sha256:1",
        "output_checksum": "sha256:2", "refetched": "S2_B/B04 cut off", "tile_shares": "S2_A=0.5|S2_B=0.5", "derived_from": "",
    }  # fmt: skip


def test_a_failure(instance: dg.DagsterInstance) -> None:
    record(instance, FAILURE)
    status, summary, report = (rows(instance, name) for name in COLUMNS)
    assert (status[1]["status"], status[1]["message"]) == ("failed_missing_inputs", "B08 of S2_A: is not there")
    assert status[1]["seconds"] is None
    told = summary[1]
    assert (told["success"], told["failed_bands"], told["bands"]) == (False, "B08|B11", "B04|B08|B11")
    assert told["missing_files"] == f"{OLD_PLACE}/S2_A/B08.tif|/x/B11.tif"
    assert told["error_message"] == "B08 of S2_A: is not there"
    assert [(each["band"], each["status"]) for each in report if each["timestamp"] == BAD] == [
        ("B04", "skipped"), ("B08", "missing_input"), ("B11", "missing_input"),
    ]  # fmt: skip


def test_the_latest_attempt_counts(instance: dg.DagsterInstance) -> None:
    record(instance, SUCCESS)
    failed = replace(FAILURE, timestamp=GOOD)
    record(instance, failed)
    assert rows(instance, "status")[0]["status"] == "failed_missing_inputs"
    record(instance, SUCCESS)
    assert rows(instance, "status")[0]["status"] == "success"


def test_what_is_not_listed_any_more(instance: dg.DagsterInstance) -> None:
    record(instance, SUCCESS)
    found = rows(instance, "status", listed={BAD})
    gone = "no longer in time_serie.csv (files on disk stay)"
    assert [(each["listed"], each["message"]) for each in found] == [
        (False, f"{gone}; B04: dtype promoted"),
        (True, "not aggregated yet"),
        (False, f"{gone}; not aggregated yet"),
    ]


def test_paths_are_those_of_the_lake_at_hand(instance: dg.DagsterInstance) -> None:
    record(instance, SUCCESS)
    record(instance, FAILURE)
    lake = DataLake(Path("/new"))
    report = rows(instance, "band_report", lake=lake)
    assert report[0]["input_files"] == "/new/cache/s2/S2_A/B04.tif|/new/cache/s2/S2_B/B04.tif"
    assert report[0]["output_path"] == f"/new/data_raw/aggregated/{GOOD}/B04.tif"
    summary = rows(instance, "summary", lake=lake)
    assert summary[0]["output_folder"] == f"/new/data_raw/aggregated/{GOOD}"
    assert summary[1]["missing_files"] == "/new/cache/s2/S2_A/B08.tif|/x/B11.tif"


SILENT = "the run ended before it could report (killed, stopped, or failed before this step)"
AGAIN = "look at it in the UI, then run it again"


@pytest.mark.parametrize(
    ("before", "reason", "message"),
    [
        (None, "", f"{SILENT}; {AGAIN}"),
        (None, "out of memory", f"{SILENT}: out of memory; {AGAIN}"),
        (SUCCESS, "", f"{SILENT}; {AGAIN}; the previous version stays published"),
        (
            replace(FAILURE, timestamp=GOOD),
            "",
            f"{SILENT}; {AGAIN}; previous attempt: failed_missing_inputs: B08 of S2_A: is not there",
        ),
    ],
)
def test_a_run_that_ended_without_a_word(
    before: Attempt | None, reason: str, message: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Which runs did is found by ``unreported``, which test_reliability.py kills runs for.)"""
    if before:
        record(instance, before)
    monkeypatch.setattr(tables, "unreported", lambda *_: {GOOD: "run-1"})
    monkeypatch.setattr(tables, "reason_of_end", lambda _, run: reason if run == "run-1" else "another's")
    status, *others = rows(instance, "status")
    assert (status["status"], status["message"]) == ("exception", message)
    assert (status["run_id"], status["finished_at"]) == ("run-1", "")
    assert {each["status"] for each in others} == {"not_run"}
    told = [each for each in rows(instance, "band_report") if each["timestamp"] == GOOD]
    assert [(each["band"], each["status"], each["message"]) for each in told] == [
        (b, "skipped", message) for b in BANDS
    ]


def test_of_many_silent_runs_the_latest_are_looked_up(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"2024-01-{day:02}" for day in range(1, 31)] + [
        f"2024-{month:02}-{day:02}" for month in (2, 3, 4) for day in range(1, 26)
    ]
    asked: list[str] = []
    monkeypatch.setattr(tables, "unreported", lambda *_: {key: key for key in keys})

    def note(_: object, run: str) -> str:
        asked.append(run)
        return ""

    monkeypatch.setattr(tables, "reason_of_end", note)
    list(audited(instance, HERE, THERE, BANDS, ()))
    assert asked == sorted(keys)[-100:]


def test_every_column_has_a_type_and_a_meaning() -> None:
    for name, columns in COLUMNS.items():
        schema = table_schema(name)
        assert [each.name for each in schema.columns] == list(columns)
        assert all(each.description for each in schema.columns)
    types = {each.name: each.type for name in COLUMNS for each in table_schema(name).columns}
    assert {name for name, kind in types.items() if kind == "bool"} == {"success", "listed", "harmonized"}
    assert {name for name, kind in types.items() if kind == "int"} == {"width", "height", "tiles", "bytes"}
    shares = {"valid_share", "cloud_share", "masked_share"}
    assert {name for name, kind in types.items() if kind == "float"} == shares | {"resolution", "seconds"}
    assert set(types.values()) == {"bool", "int", "float", "string"}


def test_the_newest_event_that_tables_tell_of(instance: dg.DagsterInstance) -> None:
    assert newest_event(instance, HERE) == 0
    record(instance, SUCCESS)
    first = newest_event(instance, HERE)
    assert first == latest_attempts(instance, AGGREGATED)[GOOD].storage_id
    record(instance, FAILURE)
    second = newest_event(instance, HERE)
    assert second == latest_attempts(instance, AGGREGATED)[BAD].storage_id > first
    instance.report_runless_asset_event(dg.AssetMaterialization(TIME_SERIE))
    assert newest_event(instance, HERE) > second
    newest = newest_event(instance, HERE)
    instance.report_runless_asset_event(dg.AssetMaterialization("somebody else's"))
    assert newest_event(instance, HERE) == newest


@pytest.mark.parametrize(
    ("event", "with_stale_alone"),
    [
        (dg.AssetMaterialization(AGGREGATED, partition=GOOD), False),
        (dg.AssetObservation(AGGREGATED, partition=GOOD), False),
        (dg.AssetMaterialization(TIME_SERIE), False),
        (dg.AssetMaterialization(COMPOSITES, partition="2023-02"), False),
        (dg.AssetObservation(COMPOSITES, partition="2023-02"), False),
        (dg.AssetObservation(RAW_TILES, partition=GOOD), True),
    ],
)
def test_each_kind_of_event_counts(instance: dg.DagsterInstance, event: Any, with_stale_alone: bool) -> None:
    """Marks of stale timestamps only where they are asked for; the newest of several, whatever comes after it."""
    for _ in range(2):
        instance.report_runless_asset_event(event)
    last = instance.event_log_storage.get_maximum_record_id()
    instance.report_runless_asset_event(dg.AssetMaterialization("somebody else's"))
    assert newest_event(instance, HERE, stale=True) == last
    assert newest_event(instance, HERE) == (0 if with_stale_alone else last)


def test_of_many_events_only_the_newest_of_each_kind_are_read(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked for every few seconds, and there are thousands."""
    for _ in range(3):
        for asset in (AGGREGATED, TIME_SERIE, COMPOSITES, RAW_TILES):
            for kind in (dg.AssetMaterialization, dg.AssetObservation):
                instance.report_runless_asset_event(kind(asset))
    read: list[int] = []

    def counting(fetch: Any) -> Any:
        def fetched(*args: Any, **named: Any) -> Any:
            found = fetch(*args, **named)
            read.append(len(found.records))
            return found

        return fetched

    for name in ("fetch_materializations", "fetch_observations"):
        monkeypatch.setattr(instance, name, counting(getattr(instance, name)))
    newest_event(instance, HERE)
    assert read == [1] * 5
    newest_event(instance, HERE, stale=True)
    assert read == [1] * 11


def test_the_table_of_composites(instance: dg.DagsterInstance) -> None:
    lake = DataLake(Path("/new"))
    assert composites_rows(instance, HERE, lake) == []
    instance.add_dynamic_partitions(str(periods.name), ["2023-03", "2023-02"])
    folder = "/old/lake/data_raw/composites/2023-02"
    made = replace(SUCCESS, timestamp="2023-02", output_folder=folder, scene_ids=(GOOD, BAD))
    instance.report_runless_asset_event(
        dg.AssetMaterialization(COMPOSITES, partition="2023-02", metadata=attempt_metadata(made))
    )
    ended = latest_attempts(instance, COMPOSITES)["2023-02"].finished_at
    finished = datetime.fromtimestamp(ended, UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")
    table = composites_rows(instance, HERE, lake)
    assert tuple(table[0]) == COMPOSITE_COLUMNS
    assert table == [
        {
            "period": "2023-02", "status": "success", "message": "B04: dtype promoted", "timestamps": f"{GOOD}|{BAD}",
            "bands": "SCL|B04", "output_folder": "/new/data_raw/composites/2023-02", "valid_share": 0.5, "seconds": 2.234,
            "bytes": 1024, "run_id": "", "finished_at": finished,
        },
        {
            "period": "2023-03", "status": "not_run", "message": "not aggregated yet", "timestamps": "", "bands": "",
            "output_folder": "", "valid_share": None, "seconds": None, "bytes": None, "run_id": "", "finished_at": "",
        },
    ]  # fmt: skip
    schema = table_schema("composites")
    assert [each.name for each in schema.columns] == list(COMPOSITE_COLUMNS)
    assert all(each.description for each in schema.columns)
    # It is no timestamp.
    assert [row["status"] for row in rows(instance, "status")] == ["not_run"] * 3


def test_tables_are_identified_by_what_they_hold_and_where(tmp_path: Path) -> None:
    lake = DataLake(tmp_path)
    lake.tables_folder.mkdir()
    nothing = tables_digest(lake)
    assert nothing == hashlib.sha256(str(tmp_path).encode() + b"no such table" * 3).hexdigest()[:32]
    for name in COLUMNS:
        lake.audit_table(name).write_text(name)
    held = str(tmp_path).encode() + b"statussummaryband_report"
    assert tables_digest(lake) == hashlib.sha256(held).hexdigest()[:32]
    lake.audit_table("composites").write_text("composites")
    assert tables_digest(lake) == hashlib.sha256(held + b"composites").hexdigest()[:32]
