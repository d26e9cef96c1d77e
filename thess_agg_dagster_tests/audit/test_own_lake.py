"""An instance that is not the lake's says nothing of it, and changes nothing; one that is lost is read back from manifests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from thess_agg_dagster.audit.event_log import latest_attempts
from thess_agg_dagster.keys import AGGREGATED, VERIFICATION
from thess_agg_dagster.lake.time_serie import read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster.runs.rebuild import rebuilt
from thess_agg_dagster.timestamp.freshness import is_due
from thess_agg_dagster_tests.conftest import FIRST, SECOND, Begin, SmallLake, in_folder_and_bucket
from thess_agg_dagster_tests.processes import invoke

NOT_READ_BACK = ["run_id", "finished_at"]
# What a manifest of 0.1.0 does not tell, and the mosaics do not either.
NOT_IN_OLD_ONES = ["seconds", "message", "reprojected_tiles"]


def publish_two(lake: SmallLake) -> None:
    """Two published timestamps, their tables and their STAC collection."""
    lake.list_rows(*((key, lake.add_timestamp(key)) for key in (FIRST, SECOND)))
    lake.read_list()
    for key in (FIRST, SECOND):
        assert lake.aggregate(key, stac=True).attempt.status == "success"
    lake.tables()


@pytest.fixture
def published(begin_with: Begin) -> SmallLake:
    return begin_with(publish_two)


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance that has never seen a lake."""
    home = tmp_path / "stranger"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def as_0_1_0(lake: SmallLake, timestamp: str) -> None:
    """A manifest as 0.1.0 wrote it."""
    manifest = json.loads(lake.lake.manifest(timestamp).read_text())
    del manifest["attempt"]
    lake.lake.manifest(timestamp).write_text(json.dumps(manifest))


def on_disk(lake: SmallLake) -> dict[str, bytes]:
    names = [lake.lake.audit_table(name) for name in ("status", "summary", "band_report")]
    return {str(path): path.read_bytes() for path in (*names, lake.lake.glance, lake.lake.collection)}


@in_folder_and_bucket
def test_an_instance_that_knows_nothing_of_the_lake_changes_nothing(
    published: SmallLake, stranger: dg.DagsterInstance
) -> None:
    before = on_disk(published)
    other = SmallLake(published.root, stranger)
    with pytest.raises(dg.Failure) as refused:
        other.tables()
    for part in (str(published.root), stranger.root_directory, "DAGSTER_HOME is not set", "2 timestamps", "rebuild"):
        assert part in str(refused.value.description)
    with pytest.raises(dg.Failure, match="knows nothing"):  # nor does it say that nothing has changed
        run_asset(stranger, other.resources(), VERIFICATION)
    assert on_disk(published) == before


def test_the_instance_of_another_lake_changes_nothing(published: SmallLake, tmp_path: Path) -> None:
    other = SmallLake(tmp_path / "other", published.instance)
    other.list_rows((FIRST, other.add_timestamp(FIRST)))
    other.lake.tables_folder.joinpath("kept").touch()
    with pytest.raises(dg.Failure) as refused:
        other.tables()
    for part in (str(other.root), published.instance.root_directory, str(published.lake.timestamp_folder(FIRST))):
        assert part in str(refused.value.description)
    assert not other.lake.audit_table("status").exists()
    # One timestamp of its own does not make the others so.
    published.instance.add_dynamic_partitions("timestamp", [FIRST])
    other.aggregate(FIRST)
    with pytest.raises(dg.Failure, match="belongs to another lake"):
        other.tables()
    with pytest.raises(ValueError, match="belongs to another lake"):
        list(rebuilt(published.instance, other.lake, TimestampsAggregationParams()))


def test_a_lake_that_was_moved_with_its_instance_goes_on(published: SmallLake, tmp_path: Path) -> None:
    moved = SmallLake(tmp_path / "moved", published.instance)
    shutil.move(published.root, moved.root)
    shutil.rmtree(moved.lake.timestamp_folder(SECOND))  # and one is lost
    assert set(moved.tables()["status"]["status"]) == {"success"}


def test_the_command_refuses_before_it_does_anything(published: SmallLake, tmp_path: Path) -> None:
    before, home = on_disk(published), tmp_path / "wrong-home"
    result = invoke("--data-lake", str(published.root), DAGSTER_HOME=str(home))
    assert result.exit_code == 2
    for part in (str(home), str(published.root), "knows nothing of 2 timestamps"):
        assert part in " ".join(result.stderr.split())
    assert on_disk(published) == before


@in_folder_and_bucket
def test_a_lost_instance_is_read_back(published: SmallLake, stranger: dg.DagsterInstance) -> None:
    """The second timestamp is as 0.1.0 left it."""
    as_0_1_0(published, SECOND)
    before = published.tables_on_disk()
    params = TimestampsAggregationParams(stac=True)
    assert list(rebuilt(stranger, published.lake, params)) == [(FIRST, None), (SECOND, None)]
    assert list(rebuilt(stranger, published.lake, params)) == []  # nothing twice

    again = SmallLake(published.root, stranger).tables()
    for name, table in before.items():
        for key, lost in ((FIRST, NOT_READ_BACK), (SECOND, NOT_READ_BACK + NOT_IN_OLD_ONES)):
            found, expected = (
                each[each["timestamp"] == key].drop(columns=lost, errors="ignore") for each in (again[name], table)
            )
            pd.testing.assert_frame_equal(found, expected)
    series, fingerprints = read_time_serie(published.lake.time_serie), published.lake.fingerprints()
    latest = latest_attempts(stranger, AGGREGATED)
    due = [
        key
        for key, row in series.acquisitions.items()
        if is_due(row, latest[key], published.lake, params, fingerprints)
    ]
    assert due == []


def test_a_tile_that_changed_meanwhile_makes_its_timestamp_due(
    published: SmallLake, stranger: dg.DagsterInstance
) -> None:
    as_0_1_0(published, FIRST)
    for key in (FIRST, SECOND):
        published.add_tile(next(iter(read_time_serie(published.lake.time_serie).acquisitions[key].scene_ids)), "B04")
    list(rebuilt(stranger, published.lake, TimestampsAggregationParams(stac=True)))
    published.instance = stranger
    series, fingerprints, latest = (
        read_time_serie(published.lake.time_serie),
        published.lake.fingerprints(),
        latest_attempts(stranger, AGGREGATED),
    )
    params = TimestampsAggregationParams(stac=True)
    for key in (FIRST, SECOND):
        assert is_due(series.acquisitions[key], latest[key], published.lake, params, fingerprints)


def test_the_command_reads_back_and_tells_what_it_cannot(published: SmallLake, tmp_path: Path) -> None:
    arguments = ("rebuild", "--data-lake", str(published.root))
    good = published.lake.manifest(SECOND).read_text()
    published.lake.manifest(SECOND).write_text(json.dumps({"timestamp": SECOND}))
    first = invoke(*arguments)
    assert first.exit_code == 1
    assert f"{FIRST}  restored" in first.stdout
    assert f"{published.lake.manifest(SECOND)}: cannot be restored (KeyError" in first.stderr
    published.lake.manifest(SECOND).write_text(good)
    assert invoke(*arguments).exit_code == 0
    assert published.tables_on_disk()["status"]["status"].tolist() == ["success", "success"]
    result = invoke("--data-lake", str(published.root), "--stac")
    assert "2 unchanged and skipped" in result.stdout


def test_a_collection_is_kept_while_there_are_items(published: SmallLake) -> None:
    before = published.lake.collection.read_bytes()
    published.instance.delete_dynamic_partition("timestamp", FIRST)
    published.tables()
    assert published.lake.collection.read_bytes() == before
    for key in (FIRST, SECOND):  # that nobody can read
        published.lake.published(key).item.write_text("{")
    published.tables()
    assert published.lake.collection.read_bytes() == before
    for key in (FIRST, SECOND):
        published.lake.published(key).item.unlink()
    published.tables()
    assert not published.lake.collection.exists()
