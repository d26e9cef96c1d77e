"""Attempts that were read once are not read from the event log again, and what is kept of them never lies."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from thess_agg_dagster.audit import attempts
from thess_agg_dagster.audit.attempts import Attempts
from thess_agg_dagster.audit.event_log import attempt_metadata, failure_observation, latest_attempts, latest_successes
from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES

KEYS = [f"2023-{month:02}-{day:02}" for month in range(1, 4) for day in range(1, 21)]
BAND = BandRecord("B04", "success", "é\n", ["a.tif", "b.tif"], width=3, valid_share=0.25, bounds=[1.5, 2, 3, 4.25])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as made:
        publish(made, KEYS)
        yield made


def publish(instance: dg.DagsterInstance, keys: list[str], asset: dg.AssetKey = AGGREGATED, word: str = "well") -> None:
    for key in keys:
        attempt = Attempt(key, "success", word, [BAND], f"/lake/{key}", word, ["S2_A"])
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=key, metadata=attempt_metadata(attempt))
        )


def fail(instance: dg.DagsterInstance, key: str) -> None:
    instance.report_runless_asset_event(failure_observation(Attempt(key, "failed_merge", "full"), AGGREGATED))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The events that are read from the event log."""
    found: list[int] = []
    packed = attempts._packed

    def counting(record: dg.EventLogRecord) -> Any:
        found.append(record.storage_id)
        return packed(record)

    monkeypatch.setattr(attempts, "_packed", counting)
    return found


def words(found: Attempts) -> dict[str, str]:
    return {key: each.attempt.message for key, each in found.items()}


def test_what_was_read_is_not_read_again(instance: dg.DagsterInstance, read: list[int]) -> None:
    first = latest_successes(instance, AGGREGATED)
    assert len(read) == len(KEYS) == len(first)
    read.clear()
    again = latest_successes(instance, AGGREGATED)
    assert dict(again) == dict(first)
    assert read == [max(first.storage_ids.values())]  # whether it is the same event log
    (band,), folder = again[KEYS[0]].attempt.bands, again[KEYS[0]].attempt.output_folder
    assert (json.dumps(asdict(band)), folder) == (json.dumps(asdict(BAND)), f"/lake/{KEYS[0]}")
    assert again.folders == {key: f"/lake/{key}" for key in KEYS}
    read.clear()
    publish(instance, KEYS[3:5], word="anew")
    fail(instance, KEYS[7])
    found = latest_attempts(instance, AGGREGATED)
    assert words(found) == dict.fromkeys(KEYS, "well") | dict.fromkeys(KEYS[3:5], "anew") | {KEYS[7]: "full"}
    assert len(read) == 1 + 2 + 1  # of many; the two successes; of few, which are always read
    assert dict(latest_successes(instance, AGGREGATED, KEYS[:55])) == {
        key: each for key, each in latest_successes(instance, AGGREGATED).items() if key in KEYS[:55]
    }


def test_few_are_read_without_it(instance: dg.DagsterInstance, home: Path) -> None:
    latest_successes(instance, AGGREGATED, KEYS[:50])
    assert not list(home.glob("*attempts*"))


def test_what_is_not_in_the_event_log_any_more_is_forgotten(instance: dg.DagsterInstance, read: list[int]) -> None:
    latest_successes(instance, AGGREGATED)
    publish(instance, KEYS[:3], word="anew")
    publish(instance, KEYS, COMPOSITES)
    latest_successes(instance, COMPOSITES)
    latest_successes(instance, AGGREGATED)
    cache = attempts.AttemptCache.of(instance, len(KEYS))
    assert cache is not None
    kept = cache.ids("data_raw/aggregated ASSET_MATERIALIZATION")
    assert kept == set(latest_successes(instance, AGGREGATED).storage_ids.values())
    instance.wipe_assets([AGGREGATED])
    assert not latest_successes(instance, AGGREGATED)
    assert len(latest_successes(instance, COMPOSITES)) == len(KEYS)


def test_of_another_event_log_nothing_is_believed(instance: dg.DagsterInstance, home: Path, tmp_path: Path) -> None:
    """The databases of an instance were replaced by those of another, whose events have the same ids."""
    mine = latest_successes(instance, AGGREGATED)
    (tmp_path / "other").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "other")) as other:
        publish(other, KEYS, word="of another")
        (tmp_path / "other" / "thess_agg_dagster_attempts.db").write_bytes(
            (home / "thess_agg_dagster_attempts.db").read_bytes()
        )
        found = latest_successes(other, AGGREGATED)
        assert found.storage_ids == mine.storage_ids
        assert words(found) == dict.fromkeys(KEYS, "of another")
        assert words(latest_successes(other, AGGREGATED)) == dict.fromkeys(KEYS, "of another")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def damage(path: Path) -> None:
    path.write_bytes(b"no database, but more than the header of one has" * 100)


def other_columns(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("create table events (id integer primary key, data text)")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [empty, damage, other_columns, a_folder, Path.unlink])
def test_a_damaged_file_is_as_good_as_none(
    harm: Callable[[Path], None], instance: dg.DagsterInstance, home: Path
) -> None:
    before = latest_successes(instance, AGGREGATED)
    harm(home / "thess_agg_dagster_attempts.db")
    for _ in range(3):
        assert dict(latest_successes(instance, AGGREGATED)) == dict(before)
    cache = attempts.AttemptCache.of(instance, len(KEYS))
    assert cache is not None
    assert len(cache.ids("data_raw/aggregated ASSET_MATERIALIZATION")) == (0 if harm is a_folder else len(KEYS))


def test_a_file_in_use_is_not_waited_for_long(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and not for every thousand events."""
    monkeypatch.setattr(attempts, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(attempts, "_PAGE", 10)
    before = dict(latest_successes(instance, AGGREGATED))
    with sqlite3.connect(home / "thess_agg_dagster_attempts.db") as holder:
        holder.execute("begin exclusive")
        opened: list[Path] = []
        connect = sqlite3.connect

        def counting(path: Path, timeout: float) -> sqlite3.Connection:
            opened.append(path)
            return connect(path, timeout)

        monkeypatch.setattr("thess_agg_dagster.audit.attempts.sqlite3.connect", counting)
        assert dict(latest_successes(instance, AGGREGATED)) == before
        assert len(opened) == 1


def test_events_without_an_attempt_are_remembered_as_such(instance: dg.DagsterInstance, read: list[int]) -> None:
    """ "Mark as materialized" in the UI."""
    instance.report_runless_asset_event(dg.AssetMaterialization(AGGREGATED, partition=KEYS[0]))
    for _ in range(2):
        assert latest_successes(instance, AGGREGATED).keys() == set(KEYS[1:])
    assert len(read) == len(KEYS) + 1


def test_the_later_of_two_attempts(instance: dg.DagsterInstance) -> None:
    older = latest_successes(instance, AGGREGATED)
    publish(instance, KEYS[:1], word="anew")
    newer = latest_successes(instance, AGGREGATED, KEYS[:1])
    assert words(older.or_later(newer))[KEYS[0]] == words(newer.or_later(older))[KEYS[0]] == "anew"
    assert len(newer.or_later(older)) == len(KEYS)
    assert replace(older[KEYS[1]].attempt, message="") == replace(newer.or_later(older)[KEYS[1]].attempt, message="")
