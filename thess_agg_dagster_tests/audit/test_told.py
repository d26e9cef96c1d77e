"""Rows that were told before are read as they were, and only where they would come out the same."""

from __future__ import annotations

import csv
import io
import sqlite3
import zlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from thess_agg_dagster.audit import attempts, told
from thess_agg_dagster.audit.event_log import attempt_metadata, failure_observation
from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.audit.rows import COLUMNS, TableFile
from thess_agg_dagster.audit.tables import audited
from thess_agg_dagster.keys import AGGREGATED, HERE, timestamps
from thess_agg_dagster.lake.layout import DataLake

KEYS = [f"2023-{month:02}-{day:02}" for month in range(1, 4) for day in range(1, 21)]
LAKE = DataLake(Path("/lake"))
BAND = BandRecord(
    "B04", "success", 'said "no",\nthen é', ["/lake/cache/s2/a/B04.tif"], output_path="/lake/data_raw/aggregated/x/B04.tif",
    nodata=float("nan"), width=3, valid_share=0.1, bounds=[1.5, 2, 3, 4.25], harmonized=True,
)  # fmt: skip


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with instance_in(tmp_path / "home", "well") as made:
        yield made


def instance_in(home: Path, word: str) -> dg.DagsterInstance:
    home.mkdir()
    made = dg.DagsterInstance.local_temp(str(home))
    made.add_dynamic_partitions(str(timestamps.name), [*KEYS, "2024-01-01"])
    for key in KEYS:
        publish(made, key, word)
    return made


def publish(instance: dg.DagsterInstance, key: str, word: str = "well", bands: Sequence[BandRecord] = (BAND,)) -> None:
    attempt = Attempt(key, "success", word, bands, "/lake/data_raw/aggregated/x", parameters='{"grid": "fixed"}')
    event = dg.AssetMaterialization(AGGREGATED, partition=key, metadata=attempt_metadata(attempt))
    instance.report_runless_asset_event(event)


def rows(
    instance: dg.DagsterInstance, lake: DataLake = LAKE, bands: Sequence[str] = ("B04",), listed: Container[str] = KEYS
) -> list[str]:
    """As text, in which NaN equals itself."""
    found = audited(instance, HERE, lake, bands, listed)
    return [repr((each.status, each.common, each.summary, each.band_report)) for each in found]


def lines(instance: dg.DagsterInstance) -> list[str]:
    """What a report looks at, of every timestamp."""
    return [repr((each.status, each.common, each.lines)) for each in audited(instance, HERE, LAKE, ["B04"], KEYS)]


def kept(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory, "thess_agg_dagster_attempts.db")


def made_anew(instance: dg.DagsterInstance, **options: Any) -> list[str]:
    """Oracle: the same without anything that was kept."""
    kept(instance).unlink(missing_ok=True)
    return rows(instance, **options)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The attempts that are unpacked."""
    found: list[int] = []
    unpacked = attempts._unpacked

    def counting(packed: Any) -> Any:
        found.append(packed.storage_id)
        return unpacked(packed)

    monkeypatch.setattr(attempts, "_unpacked", counting)
    return found


def test_they_are_made_once(instance: dg.DagsterInstance, looked_at: list[int]) -> None:
    first = lines(instance)
    assert len(looked_at) == len(KEYS) == len(first) - 1  # one was registered, and never run
    looked_at.clear()
    assert lines(instance) == first
    assert looked_at == []
    publish(instance, KEYS[3], "anew")
    instance.report_runless_asset_event(failure_observation(Attempt(KEYS[7], "failed_merge", "full"), AGGREGATED))
    second = lines(instance)
    assert len(looked_at) == 2
    assert [number for number, (a, b) in enumerate(zip(first, second, strict=True)) if a != b] == [3, 7]
    assert rows(instance) == made_anew(instance)
    assert lines(instance) == second


@pytest.mark.parametrize(
    "options",
    [
        {"lake": DataLake(Path("/moved"))},
        {"lake": replace(LAKE, tiles="tiles/{scene_id}/{band}.jp2")},
        {"bands": ["B04", "B08"]},
        {"listed": KEYS[5:]},
    ],
)
def test_in_other_circumstances_they_are_others(instance: dg.DagsterInstance, options: dict[str, Any]) -> None:
    publish(instance, KEYS[0], bands=[])
    before = rows(instance)
    found = rows(instance, **options)
    assert found != before or "tiles" in str(options)
    assert found == made_anew(instance, **options)
    assert rows(instance) == before


def test_a_release_believes_only_its_own(
    instance: dg.DagsterInstance, looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lines(instance)
    looked_at.clear()
    monkeypatch.setattr(told, "__version__", "0.1.9")
    assert lines(instance) == before
    assert len(looked_at) == len(KEYS)


def test_of_another_event_log_nothing_is_believed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """The databases of an instance were replaced by those of another, whose events have the same ids."""
    mine = rows(instance)
    with instance_in(tmp_path / "other", "of another") as other:
        kept(other).write_bytes(kept(instance).read_bytes())
        with sqlite3.connect(kept(other)) as database:
            database.execute("delete from events")  # by which this would be noticed first
        found = lines(other)
        assert len([row for row in found if "of another" in row]) == len(KEYS)
        assert rows(other) == made_anew(other) != mine
        assert lines(other) == found


@pytest.mark.parametrize("content", [b"", b"no rows", zlib.compress(b"["), zlib.compress(b"[]")])
def test_what_cannot_be_read_is_made(instance: dg.DagsterInstance, content: bytes) -> None:
    before = lines(instance)
    with sqlite3.connect(kept(instance)) as database:
        database.execute("update told set content = ?", [content])
    assert lines(instance) == before


def test_of_few_nothing_is_kept(instance: dg.DagsterInstance) -> None:
    instance.wipe_assets([AGGREGATED])
    for key in KEYS[:3]:
        publish(instance, key)
    rows(instance)
    assert not kept(instance).exists()


@pytest.mark.parametrize("listed", [KEYS, KEYS[:-1], []])
@pytest.mark.parametrize("table", COLUMNS)
def test_what_is_written_of_them_are_their_cells(
    instance: dg.DagsterInstance, table: str, listed: Container[str]
) -> None:
    rows(instance)
    file = io.StringIO(newline="")
    writing, expected = TableFile(table, file), [list(COLUMNS[table])]
    for each in audited(instance, HERE, LAKE, ("B04",), listed):
        writing.add_timestamp(each)
        for row in each.of(table):
            cells = [row[column] for column in COLUMNS[table]]
            expected.append(["" if cell is None else str(cell) for cell in cells])
    file.seek(0)
    assert list(csv.reader(file)) == expected
    assert len(expected) > len(KEYS)
