"""What is written to Dagster's event log and read back: attempts, what has changed since, and runs that ended in silence."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import dagster as dg
import pytest
from pydantic import BaseModel, field_validator

from thess_agg_dagster.audit import attempts
from thess_agg_dagster.audit.attempts import Attempts
from thess_agg_dagster.audit.event_log import (
    STOPPED,
    attempt_metadata,
    changes_since,
    failed_since,
    failure_observation,
    first_sight,
    inputs_observed,
    latest_attempts,
    latest_successes,
    mosaics_observed,
    published_since,
    reason_of_end,
    spelled_out,
    stopping_is_final,
    unreported,
    why_stale,
)
from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, HERE, MOSAICS_BY_PERIOD, RAW_TILES, timestamps

FIRST, SECOND, THIRD = "2023-02-02", "2023-04-13", "2023-06-22"
B04 = BandRecord(
    "B04", "success", "a remark", ["/a/B04.tif", "/b/B04.tif"], crs="EPSG:32634", dtype="uint16", width=30, height=20,
    tiles=2, reprojected_tiles=["S2_B", "S2_C"], valid_share=0.75, cloud_share=0.1, masked_share=0.25, seconds=1.2345,
    bytes=2_345_678, input_checksums=["x:1", "x:2"],
)  # fmt: skip
B08 = BandRecord("B08", "merge_failed", "is cut off")
MADE = Attempt(FIRST, "success", "all well", [B04], "/out", "all", ["S2_A", "S2_B"], parameters='{"dtype": "uint8"}')


def made(timestamp: str, **other: Any) -> Attempt:
    return replace(MADE, timestamp=timestamp, **other)


def failed(timestamp: str, **other: Any) -> Attempt:
    return Attempt(timestamp, "failed_merge", "B08: is cut off", [B08], **other)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def as_json(attempt: Attempt) -> Any:
    """All that an attempt says, as the event log keeps it."""
    return json.loads(json.dumps(asdict(attempt)))


def record(instance: dg.DagsterInstance, *attempts: Attempt, asset: dg.AssetKey = AGGREGATED) -> None:
    for attempt in attempts:
        event: Any = failure_observation(attempt, asset)
        if attempt.status == "success":
            event = dg.AssetMaterialization(asset, partition=attempt.timestamp, metadata=attempt_metadata(attempt))
        instance.report_runless_asset_event(event)


def plain(value: Any) -> Any:
    """Metadata as plain values; tables as their rows."""
    if isinstance(value, dg.TableMetadataValue):
        return [each.data for each in value.records]
    return getattr(value, "value", value)


# --- what an event shows --------------------------------------------------------------------------------------


def test_an_attempt_is_shown_and_recorded() -> None:
    shown = attempt_metadata(
        replace(MADE, bands=[B04, replace(B08, bytes=1_010_000, valid_share=0.5, masked_share=0.5)])
    )
    *names, last = shown
    assert names == [
        "status", "message", "folder", "bands", "parameters", "valid_share", "seconds", "megabytes",
        "megabytes_per_second", "cloud_share", "masked_share",
    ]  # fmt: skip
    assert last == "attempt"
    found = {name: plain(value) for name, value in shown.items()}
    assert (found["status"], found["message"], found["folder"]) == ("success", "all well", "/out")
    assert (found["valid_share"], found["cloud_share"], found["masked_share"]) == (0.5, 0.1, 0.5)
    assert (found["seconds"], found["megabytes"], found["megabytes_per_second"]) == (1.234, 3.356, 2.72)
    assert found["parameters"] == "dtype=uint8"
    assert found["bands"] == [
        {
            "band": "B04", "status": "success", "crs": "EPSG:32634", "size": "30x20", "dtype": "uint16", "tiles": 2,
            "valid": "75.0%", "masked": "25.0%", "seconds": 1.2345, "MB": 2.35, "reprojected": "S2_B, S2_C",
            "message": "a remark",
        },
        {
            "band": "B08", "status": "merge_failed", "crs": "", "size": "", "dtype": "", "tiles": None, "valid": "50.0%",
            "masked": "50.0%", "seconds": None, "MB": 1.01, "reprojected": "", "message": "is cut off",
        },
    ]  # fmt: skip
    schema = shown["bands"].schema
    assert [column.name for column in schema.columns] == list(found["bands"][0])


def test_what_an_attempt_does_not_know_is_not_shown() -> None:
    nothing = Attempt(FIRST, "exception", "")
    shown = attempt_metadata(nothing)
    assert (list(shown), shown["status"]) == (["status", "attempt"], "exception")
    assert shown["attempt"].data == as_json(nothing)
    shown = attempt_metadata(replace(nothing, bands=[B08]))
    assert list(shown) == ["status", "bands", "attempt"]
    assert plain(shown["bands"])[0] == {
        "band": "B08", "status": "merge_failed", "crs": "", "size": "", "dtype": "", "tiles": None, "valid": "",
        "masked": "", "seconds": None, "MB": None, "reprojected": "", "message": "is cut off",
    }  # fmt: skip
    # A mosaic whose time nobody took.
    shown = attempt_metadata(replace(nothing, bands=[replace(B08, valid_share=0.0)]))
    assert (shown["valid_share"], shown["seconds"], shown["megabytes"]) == (0.0, 0, 0)
    assert "megabytes_per_second" not in shown


def test_parameters_are_spelled_out() -> None:
    assert spelled_out('{"dtype": "uint8", "bounds": [1, 2]}') == "dtype=uint8, bounds=[1, 2]"
    assert spelled_out("{}") == "all defaults"


def test_events_carry_what_dagster_compares() -> None:
    seen = inputs_observed(HERE, FIRST, "v1", [f"S2_{n}" for n in range(130)], "S2_1 added")
    assert (seen.asset_key, seen.partition, seen.description) == (RAW_TILES, FIRST, "S2_1 added")
    assert seen.tags == {"dagster/data_version": "v1"}
    assert list(seen.metadata) == ["changed", "scenes", "tiles"]
    assert (plain(seen.metadata["changed"]), plain(seen.metadata["scenes"])) == ("S2_1 added", 130)
    assert plain(seen.metadata["tiles"]) == [{"scene_id": f"S2_{n}"} for n in range(100)]
    seen = first_sight(HERE, FIRST, ["S2_A"])
    assert (seen.asset_key, seen.tags, seen.description) == (RAW_TILES, {"dagster/data_version": "registered"}, None)
    assert list(seen.metadata) == ["scenes", "tiles"]
    seen = mosaics_observed(HERE, "2023-02", "v2", [str(n) for n in range(130)])
    assert (seen.asset_key, seen.partition) == (MOSAICS_BY_PERIOD, "2023-02")
    assert seen.tags == {"dagster/data_version": "v2"}
    assert plain(seen.metadata["timestamps"]) == 130
    assert plain(seen.metadata["published"]) == [str(n) for n in range(100)]


# --- what has changed -----------------------------------------------------------------------------------------

NDVI = BandRecord("NDVI", "success", dtype="float32", derived_from=("B08", "B04"))


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({}, "nothing: the same tiles and parameters"),
        ({"parameters": '{"dtype": "uint8", "stac": true}'}, "stac: default -> True"),
        ({"parameters": "{}"}, "dtype: uint8 -> default"),
        ({"parameters": '{"dtype": "int16"}'}, "dtype: uint8 -> int16"),
        ({"parameters": '{"dtype":    "uint8"}'}, "nothing: the same tiles and parameters"),
        ({"scene_ids": ["S2_C", "S2_B"]}, "S2_C added; S2_A no longer listed"),
        ({"bands": [B04, BandRecord("B11", "success")]}, "band B11 added"),
        ({"bands": []}, "nothing: the same tiles and parameters"),
        ({"bands": [replace(B04, input_checksums=["x:0", "x:2"])]}, "the content of /a/B04.tif has changed"),
        ({"bands": [replace(B04, input_checksums=["x:1", "x:3"])]}, "the content of /b/B04.tif has changed"),
        ({"bands": [replace(B04, input_files=["/c/B04.tif"])]}, "nothing: the same tiles and parameters"),
        ({"bands": [replace(B04, input_checksums=["".join(["x", ":1"])])]}, "nothing: the same tiles and parameters"),
        ({"bands": [replace(B04, input_checksums=[])]}, "nothing: the same tiles and parameters"),
        (
            {"parameters": '{"dtype": "int8"}', "scene_ids": ["S2_A"], "bands": [BandRecord("B02", "success")]},
            "dtype: uint8 -> int8; S2_B no longer listed; band B02 added",
        ),
    ],
)
def test_what_has_changed_since_a_success(now: Mapping[str, Any], told: str) -> None:
    assert changes_since(MADE, replace(MADE, **now)) == told


def test_changes_since_a_success_that_says_little() -> None:
    """0.1.0 recorded no parameters, and not every tile's checksum."""
    old = replace(MADE, parameters="", bands=[replace(B04, input_checksums=["x:1"])])
    assert changes_since(old, MADE) == "nothing: the same tiles and parameters"
    assert why_stale(old, '{"dtype": "int8"}', ["S2_A", "S2_B"], ["B04"]) == (
        "tiles: files, checksums or STAC items have changed"
    )


@pytest.mark.parametrize(
    ("bands", "ndvi", "told"),
    [
        (["B04"], None, "tiles: files, checksums or STAC items have changed"),
        (["B04", "NDVI"], "float32", "tiles: files, checksums or STAC items have changed"),
        (["B04", "NDVI"], "".join(["float", "32"]), "tiles: files, checksums or STAC items have changed"),
        (["B04", "NDVI"], "int16", "ndvi: float32 -> int16"),
        (["B04", "B08"], None, "band B08 added"),
        (["B08", "NDVI"], "int16", "band B08 added; ndvi: float32 -> int16"),
    ],
)
def test_why_a_success_is_stale(bands: Sequence[str], ndvi: str | None, told: str) -> None:
    success = replace(MADE, bands=[B04, NDVI])
    assert why_stale(success, MADE.parameters, MADE.scene_ids, bands, ndvi) == told
    if told.startswith("tiles"):
        added = why_stale(success, '{"dtype": "int8"}', ["S2_A", "S2_B", "S2_C"], bands, ndvi)
        assert added == "dtype: uint8 -> int8; S2_C added"
    # One that had no NDVI: a band is added, and nothing is said of its dtype.
    assert "ndvi" not in why_stale(MADE, MADE.parameters, MADE.scene_ids, bands, ndvi)


def test_another_ndvi_is_a_change() -> None:
    before, now = replace(MADE, bands=[B04, NDVI]), replace(MADE, bands=[B04, replace(NDVI, dtype="int16")])
    assert changes_since(before, now) == "ndvi: float32 -> int16"
    assert changes_since(now, before) == "ndvi: int16 -> float32"
    assert changes_since(before, before) == "nothing: the same tiles and parameters"


# --- what is read back ----------------------------------------------------------------------------------------


def test_attempts_are_read_back_as_they_were_written(instance: dg.DagsterInstance) -> None:
    record(instance, made(FIRST), failed(SECOND))
    found = latest_attempts(instance, AGGREGATED)
    assert {key: as_json(each.attempt) for key, each in found.items()} == {
        FIRST: as_json(made(FIRST)),
        SECOND: as_json(failed(SECOND)),
    }
    assert found[FIRST].storage_id < found[SECOND].storage_id
    assert found[FIRST].finished_at > 1.7e9


def test_the_latest_of_both_kinds_counts(instance: dg.DagsterInstance) -> None:
    record(
        instance, made(FIRST, message="old"), made(FIRST, message="new"), failed(FIRST),
        failed(SECOND), made(SECOND), failed(THIRD), failed(THIRD, inputs="last"),
    )  # fmt: skip
    latest, successes = latest_attempts(instance, AGGREGATED), latest_successes(instance, AGGREGATED)
    assert {key: each.attempt.status for key, each in latest.items()} == {
        FIRST: "failed_merge", SECOND: "success", THIRD: "failed_merge",
    }  # fmt: skip
    assert latest[THIRD].attempt.inputs == "last"
    assert {key: each.attempt.message for key, each in successes.items()} == {FIRST: "new", SECOND: "all well"}
    # Known successes are not asked for again, and not changed.
    assert dict(latest_attempts(instance, AGGREGATED, successes)) == dict(latest)
    assert latest_attempts(instance, AGGREGATED, Attempts({})).keys() == {FIRST, SECOND, THIRD}
    assert latest_attempts(instance, AGGREGATED, Attempts({}))[SECOND].attempt.status == "failed_merge"
    assert successes.keys() == {FIRST, SECOND}


def test_some_of_them_or_those_of_another_asset(instance: dg.DagsterInstance) -> None:
    record(instance, made(FIRST), failed(SECOND), made(THIRD))
    record(instance, made("2023-02"), failed("2023-03"), asset=COMPOSITES)
    assert set(latest_attempts(instance, AGGREGATED)) == {FIRST, SECOND, THIRD}
    assert set(latest_attempts(instance, AGGREGATED, among=[SECOND, THIRD, "never"])) == {SECOND, THIRD}
    assert not latest_attempts(instance, AGGREGATED, among=[])
    assert set(latest_successes(instance, AGGREGATED, among=[FIRST, SECOND])) == {FIRST}
    assert set(latest_attempts(instance, COMPOSITES)) == {"2023-02", "2023-03"}
    assert set(latest_successes(instance, COMPOSITES)) == {"2023-02"}


@pytest.mark.parametrize("page", [1, 2, 5, 6])
def test_more_than_fit_one_question(page: int, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_PAGE", page)
    keys = [f"2023-01-0{day}" for day in range(1, 7)]
    record(instance, *map(made, keys[:5]), failed(keys[5]))
    assert sorted(latest_attempts(instance, AGGREGATED)) == keys
    assert sorted(latest_successes(instance, AGGREGATED, among=keys)) == keys[:5]


def test_since_an_event(instance: dg.DagsterInstance) -> None:
    record(instance, made(FIRST), failed(SECOND))
    before = latest_attempts(instance, AGGREGATED)[SECOND].storage_id
    assert (failed_since(instance, AGGREGATED, before), published_since(instance, AGGREGATED, before)) == ({}, {})
    record(instance, made(SECOND), failed(THIRD))
    latest = latest_attempts(instance, AGGREGATED)
    assert failed_since(instance, AGGREGATED, before) == {THIRD: latest[THIRD].storage_id}
    assert published_since(instance, AGGREGATED, before) == {SECOND: latest[SECOND].storage_id}


@pytest.mark.parametrize(
    "metadata",
    [{}, {"attempt": "text"}, {"attempt": dg.MetadataValue.json([1])}, {"attempt": dg.MetadataValue.json({})}],
)
def test_events_of_others_say_nothing(instance: dg.DagsterInstance, metadata: Mapping[str, Any]) -> None:
    """ "Mark as materialized" in the UI, after a success and a failure of ours."""
    record(instance, made(FIRST), failed(FIRST))
    instance.report_runless_asset_event(dg.AssetMaterialization(AGGREGATED, partition=FIRST, metadata=metadata))
    assert not latest_successes(instance, AGGREGATED)
    assert latest_attempts(instance, AGGREGATED)[FIRST].attempt.status == "failed_merge"
    instance.report_runless_asset_event(dg.AssetObservation(AGGREGATED, partition=FIRST, metadata=metadata))
    assert not latest_attempts(instance, AGGREGATED)


def test_records_of_every_release_are_read(instance: dg.DagsterInstance) -> None:
    """Fields that come later are passed over, and those that were not there yet have their defaults."""
    later = asdict(made(FIRST)) | {"invented": 7}
    later["bands"] = [asdict(B04) | {"invented": 8}, "no band", None]
    first = {"timestamp": SECOND, "bands": [{"band": "B04"}, {"status": "success"}]}
    least = {"timestamp": THIRD, "bands": None}
    for data in (later, first, least):
        metadata = {"attempt": dg.MetadataValue.json(json.loads(json.dumps(data)))}
        event = dg.AssetMaterialization(AGGREGATED, partition=str(data["timestamp"]), metadata=metadata)
        instance.report_runless_asset_event(event)
    found = {key: each.attempt for key, each in latest_attempts(instance, AGGREGATED).items()}
    assert as_json(found[FIRST]) == as_json(made(FIRST))
    assert found[SECOND] == Attempt(SECOND, "", "", [BandRecord("B04", ""), BandRecord("", "success")], schema=0)  # type: ignore[arg-type]
    assert found[THIRD] == Attempt(THIRD, "", "", [], schema=0)  # type: ignore[arg-type]


# --- runs that end in silence ---------------------------------------------------------------------------------


class Settings(BaseModel):
    bands: str
    method: str = ""

    @field_validator("bands", "method")
    @classmethod
    def _wrong(cls, value: str) -> str:
        raise ValueError(f"{value} is\nno band")


def end(how: str) -> None:
    """Let the step end in one of several ways."""
    if how == "cause":
        try:
            raise ValueError("the\ncause")
        except ValueError as error:
            try:
                raise KeyError("between") from error
            except KeyError as between:
                raise RuntimeError("outer") from between
    if how == "stopped":
        with stopping_is_final():
            raise KeyboardInterrupt
    if how == "failure":
        raise dg.Failure("out of memory")
    if how == "no words":
        raise dg.Failure()
    if how == "settings":
        Settings(bands="B99", method="x")
    raise RuntimeError(f"{how}\nand more")


@dg.asset(key=AGGREGATED, partitions_def=timestamps)
def aggregated(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    how = context.partition_key.partition("!")[2]
    if how == "success":
        return dg.MaterializeResult(metadata=attempt_metadata(made(context.partition_key)))
    if how == "told":
        context.log_event(failure_observation(failed(context.partition_key), AGGREGATED))
    end(how)
    raise AssertionError


def run(instance: dg.DagsterInstance, partition: str) -> str:
    logging.getLogger("dagster").setLevel(logging.CRITICAL + 1)
    instance.add_dynamic_partitions(str(timestamps.name), [partition])
    return dg.materialize([aggregated], instance=instance, partition_key=partition, raise_on_error=False).run_id


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("failure", "out of memory"),
        ("no words", ""),
        ("stopped", STOPPED),
        ("cause", "ValueError: the"),
        ("settings", "B99 is\nno band; x is\nno band"),
        ("plain", "RuntimeError: plain"),
    ],
)
def test_a_run_that_failed_without_an_attempt_says_why(instance: dg.DagsterInstance, how: str, reason: str) -> None:
    key = f"{FIRST}!{how}"
    ended = run(instance, key)
    assert unreported(instance, AGGREGATED, latest_attempts(instance, AGGREGATED)) == {key: ended}
    assert reason_of_end(instance, ended) == reason


def test_runs_that_reported_or_go_on_are_not_silent(instance: dg.DagsterInstance) -> None:
    for how in ("success", "told"):
        run(instance, f"{FIRST}!{how}")
    assert unreported(instance, AGGREGATED, latest_attempts(instance, AGGREGATED)) == {}
    job = dg.Definitions([aggregated], jobs=[dg.define_asset_job("job", [aggregated])]).resolve_job_def("job")
    keys = [f"{FIRST}!success", THIRD]
    instance.add_dynamic_partitions(str(timestamps.name), keys)
    runs = [
        instance.create_run_for_job(job, tags={"dagster/partition": key}, asset_selection=frozenset([AGGREGATED]))
        for key in keys
    ]
    assert unreported(instance, AGGREGATED, latest_attempts(instance, AGGREGATED)) == {}
    assert reason_of_end(instance, runs[0].run_id) == ""
    # Both are stopped before they begin: the one of a timestamp that has a success, too.
    instance.report_run_canceled(runs[0], "stopped by somebody")
    instance.report_run_failed(runs[1], "killed")
    silent = unreported(instance, AGGREGATED, latest_attempts(instance, AGGREGATED))
    assert silent == {key: each.run_id for key, each in zip(keys, runs, strict=True)}
    assert [reason_of_end(instance, each.run_id) for each in runs] == ["stopped by somebody", "killed"]
    assert unreported(instance, COMPOSITES, latest_attempts(instance, AGGREGATED)) == {}


def test_a_stop_is_final() -> None:
    for stop in (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        with pytest.raises(dg.Failure) as caught, stopping_is_final():
            raise stop
        assert (caught.value.description, caught.value.allow_retries) == (STOPPED, False)
    with pytest.raises(ValueError, match="other"), stopping_is_final():
        raise ValueError("other")
    with stopping_is_final():
        pass
