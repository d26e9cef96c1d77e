"""Crashes, full disks, two at once: each fault provoked for real. docs/RELIABILITY.md quotes what was seen."""

from __future__ import annotations

import errno
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import psutil
import pytest
import rasterio

from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.mosaic import blocks
from thess_agg_dagster.mosaic.tiles import open_tile
from thess_agg_dagster.runs import instance as instance_module
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster.runs.instance import fail_abandoned_runs
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SECOND, THIRD, SmallLake, scene
from thess_agg_dagster_tests.processes import ROOT, clean_environment, invoke, statuses
from thess_agg_dagster_tests.rasters import write_tile
from thess_agg_dagster_tests.servers import listening

UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.QUEUED]


def fork(work: Callable[[], None]) -> int:
    """A child process that does ``work``; warm, so that a hundred of them are cheap."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def constant_tiles(lake: SmallLake, value: int) -> None:
    """Both tiles of every band hold one value, so that a mixed set of mosaics shows."""
    for tile in ("T35TKF", "T34TFL"):
        for band in BANDS:
            pixels = np.full((120, 120), value, "uint16")
            lake.add_tile(scene(FIRST, tile), band, east=tile == "T35TKF", pixels=pixels)


def read_whole_set(folder: Path) -> set[int]:
    """All values of all bands, read as a careful reader does: the folder is opened once, its files through it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        found: set[int] = set()
        for band in BANDS:
            with rasterio.open(f"/proc/self/fd/{handle}/{band}.tif") as mosaic:
                found |= set(np.unique(mosaic.read(1)).tolist()) - {0}
        return found
    finally:
        os.close(handle)


def keep_reading(folder: Path, log: Path) -> None:
    """Until killed: read the set again and again; every fault is a line in the log."""
    with log.open("w") as file:
        while True:
            try:
                values = read_whole_set(folder)
                fault = f"mixed or empty: {values}" if len(values) != 1 else ""
            except rasterio.RasterioIOError as error:
                # The set that was opened has been replaced and removed meanwhile; its name must still be there.
                fault = "" if folder.is_dir() and "No such file" in str(error) else str(error)
            file.write(json.dumps(fault) + "\n")
            file.flush()


@pytest.mark.parametrize("most", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_killed_at_random_moments_while_a_reader_reads(small_lake: SmallLake, tmp_path: Path, most: int) -> None:
    constant_tiles(small_lake, 1)
    small_lake.list_rows((FIRST, [scene(FIRST, "T35TKF"), scene(FIRST, "T34TFL")]))
    small_lake.read_list()
    assert small_lake.aggregate(FIRST, threads=2).attempt.status == "success"
    folder, log = small_lake.lake.timestamp_folder(FIRST), tmp_path / "reader.log"
    reference = small_lake.instance.get_ref()

    def aggregate() -> None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the child's, for good
        with dg.DagsterInstance.from_ref(reference) as instance:
            run_asset(instance, small_lake.resources(threads=2), AGGREGATED, FIRST)

    started = time.monotonic()
    assert small_lake.aggregate(FIRST, threads=2).attempt.status == "success"
    whole = time.monotonic() - started  # what a run takes here and now
    reader = fork(lambda: keep_reading(folder, log))
    rng = random.Random(7)
    kills = rounds = survived = 0
    try:
        while kills < most:
            rounds += 1
            constant_tiles(small_lake, 1 + rounds)
            child = fork(aggregate)
            time.sleep(rng.uniform(0, whole))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            kills += os.WIFSIGNALED(status)
            survived += os.WIFEXITED(status)
            assert len(read_whole_set(folder)) == 1
    finally:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) > most
    assert [line for line in lines if line] == []

    # The next run completes; nothing is left of those that did not.
    constant_tiles(small_lake, 9999)
    assert small_lake.aggregate(FIRST).attempt.status == "success"
    assert read_whole_set(folder) == {9999}
    assert list(small_lake.lake.staging.iterdir()) == []
    assert len(small_lake.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))) > 0
    fail_abandoned_runs(small_lake.instance)
    assert small_lake.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) == []
    assert small_lake.tables()["status"]["status"].tolist() == ["success"]
    print(f"{kills} kills, {survived} finished first, {len(lines)} sets read meanwhile")


def test_a_killed_run_is_told_in_the_tables(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    small_lake.read_list()
    reference = small_lake.instance.get_ref()

    def aggregate() -> None:
        with dg.DagsterInstance.from_ref(reference) as instance:
            blocks.TileReader.decode = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            run_asset(instance, small_lake.resources(), AGGREGATED, FIRST)

    _, status = os.waitpid(fork(aggregate), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert small_lake.tables()["status"]["status"].tolist() == ["not_run"]  # for all anyone knows, it is at work
    fail_abandoned_runs(small_lake.instance)
    status_table = small_lake.tables()["status"]
    assert status_table["status"].tolist() == ["exception"]
    assert "the run ended before it could report" in status_table["message"][0]
    (failed,) = small_lake.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert status_table["run_id"].tolist() == [failed.run_id]


def test_runs_of_living_processes_and_other_machines_are_left_alone(small_lake: SmallLake) -> None:
    assert instance_module.is_alive(instance_module.process_tags()[instance_module.PROCESS_TAG])
    assert instance_module.is_alive("another-machine:1:2.5")
    assert not instance_module.is_alive(f"{os.uname().nodename}:{os.getpid()}:2.5")


def list_many(lake: SmallLake, count: int) -> None:
    """A list of that many timestamps, each with its tiles of one band."""
    keys = [f"2024-01-01 00:00:{second:02d}" for second in range(count)]
    lake.list_rows(*((key, lake.add_timestamp(key, ["B04"])) for key in keys))


def wait_until_published(lake: SmallLake, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(lake.lake.aggregated.glob("2024*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGINT, ["--debug"])]
)
def test_stopped(small_lake: SmallLake, number: int, options: list[str]) -> None:
    """Ctrl-C or SIGTERM: no staging, no run that seems to go on, tables that tell the truth, then the rest is made."""
    list_many(small_lake, 30)
    command = ["-m", "thess_agg_dagster", "--data-lake", str(small_lake.root), "--bands", "B04"]
    process = subprocess.Popen(
        [sys.executable, *command, *options], cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_until_published(small_lake, 3)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to all
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Stopped" in stderr
    assert "Traceback" not in stderr
    assert list(small_lake.lake.staging.iterdir()) == []
    found = statuses(small_lake.lake)
    made = {path.name.replace("_", ":") for path in small_lake.lake.aggregated.glob("2024*")}
    assert {key for key, status in found.items() if status == "success"} <= made
    assert 3 <= len(made) < 30
    with dg.DagsterInstance.from_config(str(small_lake.root / ".dagster")) as instance:
        assert instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) == []
    # What was left is made by the next command; one of them shows it.
    left = next(key for key, status in found.items() if status != "success")
    assert invoke(*command[2:], "--timestamps", left).exit_code == 0
    assert statuses(small_lake.lake)[left] == "success"


def test_a_worker_that_dies_takes_only_its_own_timestamp(small_lake: SmallLake) -> None:
    list_many(small_lake, 14)
    command = ["-m", "thess_agg_dagster", "--data-lake", str(small_lake.root), "--bands", "B04", "--max-workers", "2"]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    wait_until_published(small_lake, 4)
    while True:  # until one is caught in the act
        staged = list(small_lake.lake.staging.iterdir())
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if _holds(p, staged)]
        if workers:
            workers[0].kill()
            break
        assert process.poll() is None
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    found = list(statuses(small_lake.lake).values())
    assert sorted(set(found)) == ["exception", "success"]
    assert found.count("exception") == 1
    assert "worker process died" in stderr
    assert list(small_lake.lake.staging.iterdir()) == []
    assert invoke(*command[2:]).exit_code == 0
    assert set(statuses(small_lake.lake).values()) == {"success"}


def _holds(process: psutil.Process, folders: list[Path]) -> bool:
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]  # noqa: PTH115
    except OSError:
        return False
    return any(str(folder) in links for folder in folders)


def test_several_first_starts_at_once_and_one_result(small_lake: SmallLake) -> None:
    """Four commands on a lake without an instance: no broken database, one whole set, every run in the log."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, small_lake.add_timestamp(SECOND)))
    command = [sys.executable, "-m", "thess_agg_dagster", "--data-lake", str(small_lake.root), "--force"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert not any("locked" in output or "head" in output for output in outputs)
    for key in (FIRST, SECOND):
        made = list(small_lake.lake.timestamp_folder(key).iterdir())
        assert sorted(path.name for path in made) == ["B04.tif", "B08.tif", "SCL.tif", "manifest.json", "quicklook.jpg"]
    assert list(small_lake.lake.staging.iterdir()) == []
    with dg.DagsterInstance.from_config(str(small_lake.root / ".dagster")) as instance:
        assert instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])) == 4 * 4
        records = instance.fetch_materializations(AGGREGATED, limit=100).records
        assert sorted(str(record.partition_key) for record in records) == [FIRST] * 4 + [SECOND] * 4


# --- disks ----------------------------------------------------------------------------------------------------


def aggregate_with_mounts(
    lake: SmallLake, mounts: str, *options: str, check: str = "true"
) -> subprocess.CompletedProcess[str]:
    """Run the command where ``mounts`` (a shell script) has been done, seen by nobody else.

    Its exit status comes back, or 99 where ``check``, a shell command run there afterwards, fails.
    """
    script = f'set -e; {mounts}\nset +e; "$@"; status=$?; {{ {check}; }} || exit 99; exit $status'
    command = [sys.executable, "-m", "thess_agg_dagster", "--data-lake", str(lake.root), "--force", *options]
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def published(small_lake: SmallLake) -> dict[str, bytes]:
    """A lake with one good timestamp, and the bytes of its mosaics and tables."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    result = invoke("--data-lake", str(small_lake.root))
    assert result.exit_code == 0, result.output
    return contents(small_lake)


def contents(lake: SmallLake) -> dict[str, bytes]:
    files = [*lake.lake.aggregated.rglob("*.tif"), *lake.lake.tables_folder.glob("*")]
    return {str(path): path.read_bytes() for path in files}


def test_disk_full_while_writing_mosaics(small_lake: SmallLake, published: dict[str, bytes]) -> None:
    """A tmpfs of 270 KB for the mosaics, which holds the old ones and has no room for new ones beside them."""
    aggregated = small_lake.lake.aggregated
    mounts = (
        f"cp -a '{aggregated}' '{aggregated}.copy'; mount -t tmpfs -o size=270k tmpfs '{aggregated}'; "
        f"cp -a '{aggregated}.copy'/* '{aggregated}'"
    )
    check = f"cmp '{aggregated}'/*/B04.tif '{aggregated}.copy'/*/B04.tif && [ -z \"$(ls -A '{aggregated}/.staging')\" ]"
    result = aggregate_with_mounts(small_lake, mounts, "--compress", "none", check=check)
    assert result.returncode == 1, result.stderr
    assert statuses(small_lake.lake) == {FIRST: "failed_merge"}
    message = small_lake.tables_on_disk()["status"]["message"][0]
    assert "cannot be written" in message
    assert "MB before compression" in message
    assert "MB are free there" in message


def test_disk_full_while_writing_tables(small_lake: SmallLake, published: dict[str, bytes]) -> None:
    tables = small_lake.lake.tables_folder
    mounts = (
        f"cp -a '{tables}' '{tables}.copy'; mount -t tmpfs -o size=16k tmpfs '{tables}'; cp -a '{tables}.copy'/* '{tables}'"
        f"; cat /dev/zero > '{tables}/filler' 2>/dev/null || true"
    )
    check = " && ".join(
        f"cmp '{tables}'/*_{name}.csv '{tables}.copy'/*_{name}.csv" for name in ("status", "summary", "band_report")
    )
    result = aggregate_with_mounts(small_lake, mounts, check=check)
    assert result.returncode == 1, result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert "timestamps_aggregation_status.csv" in result.stderr


def test_a_read_only_lake(small_lake: SmallLake, published: dict[str, bytes]) -> None:
    """The folder of the mosaics is mounted read-only."""
    aggregated = small_lake.lake.aggregated
    mounts = f"mount --bind '{aggregated}' '{aggregated}'; mount -o remount,bind,ro '{aggregated}'"
    result = aggregate_with_mounts(small_lake, mounts)
    assert result.returncode == 1, result.stderr
    assert statuses(small_lake.lake) == {FIRST: "failed_merge"}
    assert "Read-only file system" in result.stdout
    after = contents(small_lake)
    assert {path: content for path, content in after.items() if path.endswith(".tif")} == {
        path: content for path, content in published.items() if path.endswith(".tif")
    }


def test_a_lake_without_permission(small_lake: SmallLake, published: dict[str, bytes]) -> None:
    """The folder of the mosaics may not be written, and the process has no right to override that."""
    aggregated = small_lake.lake.aggregated
    for folder in (small_lake.lake.staging, aggregated):
        folder.chmod(0o555)
    result = subprocess.run(
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m", "thess_agg_dagster",
         "--data-lake", str(small_lake.root), "--force"],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "Permission denied" in result.stdout
    assert statuses(small_lake.lake) == {FIRST: "failed_merge"}


# --- trying again ---------------------------------------------------------------------------------------------


def test_faults_of_the_system_are_tried_again_and_bad_input_is_not(
    small_lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO cannot be provoked on demand, so the first two openings of a tile's pixels raise it; SIGBUS aside, the rest is real."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, small_lake.add_timestamp(SECOND)))
    small_lake.read_list()
    calls: list[Path] = []

    def failing(path: Path, driver: str, overview: int | None) -> object:
        calls.append(path)
        if len(calls) <= 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return open_tile(path, driver, overview)

    monkeypatch.setattr("thess_agg_dagster.mosaic.blocks.open_tile", failing)
    assert small_lake.aggregate(FIRST, threads=1, bands=["B04"]).attempt.status == "success"
    assert retries(small_lake) == 2
    monkeypatch.undo()

    path = small_lake.lake.tile(scene(SECOND, "T34TFL"), "B04")
    path.write_bytes(path.read_bytes()[:3000])
    assert small_lake.aggregate(SECOND, bands=["B04"]).attempt.status == "failed_invalid_inputs"
    assert retries(small_lake) == 2


def retries(lake: SmallLake) -> int:
    events = [
        record.event_log_entry.dagster_event
        for found in lake.instance.get_runs()
        for record in lake.instance.get_records_for_run(found.run_id).records
    ]
    return sum(event is not None and event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY for event in events)


# --- hostile input --------------------------------------------------------------------------------------------


def test_a_symbolic_link_out_of_the_lake_is_not_followed(small_lake: SmallLake, tmp_path: Path) -> None:
    ids = small_lake.add_timestamp(FIRST, ["B04"])
    secret = tmp_path / "secret.tif"
    small_lake.lake.tile(ids[1], "B04").rename(secret)
    small_lake.lake.tile(ids[1], "B04").symlink_to(secret)
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    found = small_lake.aggregate(FIRST, bands=["B04"])
    assert found.attempt.status == "failed_invalid_inputs"
    assert "symbolic link out of the lake" in found.attempt.message


def test_the_cache_as_a_whole_may_live_elsewhere(small_lake: SmallLake, tmp_path: Path) -> None:
    ids = small_lake.add_timestamp(FIRST, ["B04"])
    (small_lake.root / "cache").rename(tmp_path / "big-disk")
    (small_lake.root / "cache").symlink_to(tmp_path / "big-disk")
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    assert small_lake.aggregate(FIRST, bands=["B04"]).attempt.status == "success"


def test_secrets_of_the_environment_are_written_nowhere(small_lake: SmallLake) -> None:
    """A canary in the environment, a good, a failed and a crashed timestamp; then every byte the run left is searched."""
    ids = small_lake.add_timestamp(FIRST)
    broken = small_lake.add_timestamp(SECOND)
    small_lake.lake.tile(broken[0], "B04").write_text("<html>")
    small_lake.list_rows((FIRST, ids), (SECOND, broken), (THIRD, []), ("nonsense", []))
    canary = "c4n4ry-5ecret"
    result = invoke("--data-lake", str(small_lake.root), AWS_SECRET_ACCESS_KEY=canary, CDSE_PASSWORD=canary)
    assert result.exit_code == 1
    assert canary not in result.output
    left = [path for path in small_lake.root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in left)
    assert [path for path in left if canary.encode() in path.read_bytes()] == []


DOCUMENTS = {
    "VRT, local": '<VRTDataset rasterXSize="60" rasterYSize="60"><SRS>EPSG:32634</SRS><GeoTransform>600000,10,0,4500000,0,-10'
    '</GeoTransform><VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{file}</SourceFilename>'
    "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>",
    "VRT, remote": '<VRTDataset rasterXSize="60" rasterYSize="60"><SRS>EPSG:32634</SRS><VRTRasterBand dataType="UInt16" '
    'band="1"><SimpleSource><SourceFilename>/vsicurl/{url}/tile.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>',
    "WMS": '<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
    "<UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY><LowerRightX>9</LowerRightX><LowerRightY>9</LowerRightY>"
    "<SizeX>60</SizeX><SizeY>60</SizeY></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>",
    "GTI": "<GDALTileIndexDataset><IndexDataset>{url}/index.gpkg</IndexDataset><IndexLayer>tiles</IndexLayer></GDALTileIndexDataset>",
    "HTTP": "{url}/tile.tif",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_name_files_or_urls_are_not_obeyed(small_lake: SmallLake, tmp_path: Path, name: str) -> None:
    """A canary server on loopback and a canary file, both named by a "tile": neither is asked, neither shows."""
    asked: list[str] = []

    class Canary(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with listening(Canary) as url:
        file = write_tile(tmp_path / "canary.tif", np.full((60, 60), 4242, "uint16"))
        ids = small_lake.add_timestamp(FIRST, ["B04"])
        small_lake.lake.tile(ids[1], "B04").write_text(DOCUMENTS[name].format(file=file, url=url))
        for sibling in (".ovr", ".msk", ".aux.xml"):
            small_lake.lake.tile(ids[0], "B04").with_name("B04.tif" + sibling).write_text(
                DOCUMENTS["VRT, remote"].format(url=url)
            )
        small_lake.list_rows((FIRST, ids))
        small_lake.read_list()
        before = file.stat().st_atime_ns
        found = small_lake.aggregate(FIRST, bands=["B04"])
        assert found.attempt.status == "failed_invalid_inputs"
        assert found.attempt.bands[0].status == "unreadable_input"
        small_lake.lake.tile(ids[1], "B04").unlink()
        small_lake.add_tile(ids[1], "B04")
        assert small_lake.aggregate(FIRST, bands=["B04"]).attempt.status == "success"

        assert asked == []
        assert file.stat().st_atime_ns == before
