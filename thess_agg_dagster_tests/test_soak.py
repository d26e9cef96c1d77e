"""Load, soak and fuzzing at full length: ``make soak``. Each prints the figure that docs/RELIABILITY.md quotes."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from thess_agg_dagster.audit.event_log import attempt_metadata, failure_observation
from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.defs.sensors.new_rows import time_serie_sensor_of
from thess_agg_dagster.defs.sensors.reports import report_sensor_of
from thess_agg_dagster.defs.sensors.tiles import late_tiles_sensor_of
from thess_agg_dagster.keys import AGGREGATED, REPORT
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SmallLake
from thess_agg_dagster_tests.defs.test_sensors import Sensor
from thess_agg_dagster_tests.fuzz import fuzz_lists, fuzz_tiles
from thess_agg_dagster_tests.processes import ROOT, clean_environment, statuses
from thess_agg_dagster_tests.servers import PASSWORD, USER, Archive, serving
from thess_agg_dagster_tests.timestamp.test_refetch import publish

soak = pytest.mark.soak


def timestamps(count: int) -> list[str]:
    start = datetime(2017, 1, 1, tzinfo=UTC)
    return [(start + timedelta(hours=number)).isoformat(sep=" ") for number in range(count)]


def with_events(lake: SmallLake, count: int, failed: int = 0) -> list[str]:
    """A list of ``count`` timestamps, registered, each with the event of a success; the last ones failed since."""
    keys = timestamps(count)
    lake.list_rows(*((key, ["S2A_A", "S2A_B", "S2A_C"]) for key in keys))
    lake.read_list()
    for key in keys:
        bands = [
            BandRecord(band, "success", input_files=["a" * 90] * 3, valid_share=0.7, seconds=1.0) for band in BANDS
        ]
        attempt = Attempt(
            key, "success", "", bands, f"{lake.root}/data_raw/aggregated/folder", "0" * 32, ["S2A_A", "S2A_B", "S2A_C"]
        )
        metadata = {"quicklook": dg.MetadataValue.md("x" * 8000)} | attempt_metadata(attempt)
        event = dg.AssetMaterialization(AGGREGATED, partition=key, metadata=metadata)
        lake.instance.report_runless_asset_event(event)
    for key in keys[count - failed :]:
        attempt = Attempt(key, "failed_missing_inputs", "no such file", inputs="0" * 32, scene_ids=["S2A_A"])
        lake.instance.report_runless_asset_event(failure_observation(attempt, AGGREGATED))
    return keys


class Queries:
    """Counts the SELECTs of this process while it is open."""

    def __enter__(self) -> Queries:
        self.count = 0
        event.listen(Engine, "before_cursor_execute", self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._seen)

    def _seen(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        self.count += statement.lstrip().upper().startswith("SELECT")


def test_the_report_asks_as_much_of_the_log_for_many_timestamps_as_for_few(small_lake: SmallLake) -> None:
    with_events(small_lake, 1)
    run_asset(small_lake.instance, small_lake.resources(), REPORT)  # the first time, Dagster looks around
    counts = []
    for number in (5, 150):
        with_events(small_lake, number)
        with Queries() as queries:
            run_asset(small_lake.instance, small_lake.resources(), REPORT)
        counts.append(queries.count)
        assert len(small_lake.tables_on_disk()["status"]) == number
    assert counts[1] <= counts[0]


@soak
def test_a_lake_without_tiles_and_a_server_with_faults(small_lake: SmallLake) -> None:
    """Three answers in ten go wrong: busy, cut, stalled, a page, too little, another's tile."""
    rng = random.Random(1)
    keys = [f"2024-{1 + day // 28:02d}-{1 + day % 28:02d} 09:20:31" for day in range(40)]
    small_lake.list_rows(*((key, small_lake.add_timestamp(key)) for key in keys))
    tiles = {path: path.read_bytes() for path in small_lake.root.glob("cache/s2/*/*.tif")}
    archive = Archive({f"/{path.parent.name}/{path.name}": data for path, data in tiles.items()}, needs_token=True)
    faults = ["503", "429 after 1", "500", "cut", "stall", "page", "lie", "other"]
    archive.faults = {
        path: [rng.choice(faults) if rng.random() < 0.3 else "" for _ in range(50)] for path in archive.files
    }
    for path in tiles:
        if rng.random() < 0.7:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: rng.randrange(200)])
    with serving(archive):
        publish(small_lake.lake, archive, checksums=True)
        environment = clean_environment() | {"THESS_DOWNLOAD_USER": USER, "THESS_DOWNLOAD_PASSWORD": PASSWORD}
        started = time.monotonic()
        command = [sys.executable, "-m", "thess_agg_dagster", "--data-lake", str(small_lake.root)]
        command += ["--download-from", archive.url, "--download-token-url", f"{archive.url}/token"]
        result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        seconds = time.monotonic() - started
    asked = sum(archive.requests.values())
    print(f"{len(tiles)} tiles, {asked} requests, {asked - len(tiles)} of them in vain, {seconds:.0f} s")
    assert len(tiles) >= 200
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert {path: path.read_bytes() for path in tiles} == tiles
    assert set(statuses(small_lake.lake).values()) == {"success"}


@soak
def test_ten_thousand_timestamps(small_lake: SmallLake) -> None:
    with_events(small_lake, 10_000, failed=500)
    process = psutil.Process()
    before = process.memory_info().rss

    def timed(name: str, work: Callable[[], object]) -> str:
        started = time.perf_counter()
        with Queries() as queries:
            work()
        seconds = time.perf_counter() - started
        assert seconds < 60, name
        return f"{name} {seconds:.2f} s, {queries.count} queries"

    ticking = {
        "time_serie_sensor": Sensor(time_serie_sensor_of, small_lake),
        "late_tiles_sensor": Sensor(late_tiles_sensor_of, small_lake),
        "report_sensor": Sensor(report_sensor_of, small_lake),
    }
    lines = [
        timed("time_serie", small_lake.read_list),
        timed("report", lambda: run_asset(small_lake.instance, small_lake.resources(), REPORT)),
        *(timed(f"{name}, something new", sensor.tick) for name, sensor in ticking.items()),
        *(timed(f"{name}, nothing new", sensor.tick) for name, sensor in ticking.items()),
    ]
    assert len(small_lake.tables_on_disk()["band_report"]) == 30_000
    grown = (process.memory_info().rss - before) / 1e6
    print("\n10,000 timestamps, 500 of them waiting for tiles:", *lines, f"memory grown by {grown:.0f} MB", sep="\n  ")


@soak
def test_two_hundred_aggregations_in_one_process(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    small_lake.read_list()
    process, seen = psutil.Process(), []
    for number in range(200):
        assert small_lake.aggregate(FIRST, threads=2).attempt.status == "success"
        if number in (49, 199):
            gc.collect()
            seen.append((process.memory_info().rss / 1e6, process.num_fds(), threading.active_count()))
    (early, files, threads), (late, files_after, threads_after) = seen
    assert late - early < 25
    assert files_after == files
    assert threads_after == threads
    print(
        f"\n200 aggregations: {early:.0f} MB after 50, {late:.0f} MB after 200, {files_after} files, {threads_after} threads"
    )


@soak
def test_eight_workers_and_an_open_ui_on_sqlite(small_lake: SmallLake) -> None:
    keys = timestamps(500)
    ids = small_lake.add_timestamp(FIRST, ["B04"])
    small_lake.list_rows(*((key, ids) for key in keys))
    home = small_lake.root / ".dagster"
    environment = clean_environment() | {"DATA_LAKE": str(small_lake.root), "DAGSTER_HOME": str(home)}
    arguments = ["--bands", "B04", "--max-workers", "8"]
    log = small_lake.root / "log"
    started = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "thess_agg_dagster", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
        while not (home / "history" / "runs").exists():
            time.sleep(0.2)
        ui = subprocess.Popen(
            [sys.executable, "-m", "dagster_webserver", "-p", "3999", "-m", "thess_agg_dagster.definitions"],
            cwd=ROOT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        asked = 0
        try:
            while process.poll() is None:
                asked += _ask_ui()
                time.sleep(0.5)
        finally:
            ui.terminate()
            ui.wait()
    seconds = time.perf_counter() - started
    text = log.read_text()
    assert process.returncode == 0, text[-2000:]
    assert "database is locked" not in text
    assert set(statuses(small_lake.lake).values()) == {"success"}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        found = instance.get_latest_storage_id_by_partition(AGGREGATED, dg.DagsterEventType.ASSET_MATERIALIZATION)
        assert len(found) == 500
        kind = dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        events = [record.event_log_entry.dagster_event for record in instance.get_event_records(kind)]
        checked = [event.asset_check_evaluation_data.asset_key for event in events if event]
        assert checked.count(AGGREGATED) == 4 * 500
    print(f"\n8 workers, 500 timestamps: {seconds:.0f} s, {asked} answers of the UI meanwhile, none locked, none lost")


def _ask_ui() -> int:
    query = b'{"query": "{ runsOrError(limit: 50) { ... on Runs { results { runId status } } } }"}'
    request = urllib.request.Request(
        "http://127.0.0.1:3999/graphql", data=query, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(b"results" in answer.read())
    except OSError:
        return 0  # not up yet


@pytest.mark.parametrize("count", [300, pytest.param(50_000, marks=soak)])
def test_fuzzed_lists_give_rows_or_our_own_errors(tmp_path: Path, count: int) -> None:
    print(f"\nlists: {fuzz_lists(tmp_path, count)}")


@pytest.mark.parametrize("count", [300, pytest.param(50_000, marks=soak)])
def test_fuzzed_tiles_give_headers_or_our_own_errors(tmp_path: Path, count: int) -> None:
    print(f"\ntiles: {fuzz_tiles(tmp_path, count)}")


@soak
def test_the_list_under_a_guided_fuzzer(tmp_path: Path) -> None:
    """atheris, from one good row; it ends at the first error that is not ours."""
    (tmp_path / "seed").write_text("2023-02-02 09:21:09.024000+00:00,S2B_A|S2B_B\n")
    command = [sys.executable, "-m", "thess_agg_dagster_tests.fuzz_guided", "-runs=100000", str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    print("\nguided:", found.stderr.strip().splitlines()[-1])
