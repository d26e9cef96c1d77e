"""A lake in a bucket: what is asked of the store, in which order things appear, and what happens when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import local_folder, staged_file
from thess_agg_dagster.mosaic.blocks import BlockCache, TileReader
from thess_agg_dagster.mosaic.grid import whole
from thess_agg_dagster.mosaic.tiles import TileError, inspect_tile
from thess_agg_dagster.storage.errors import SystemFaultError
from thess_agg_dagster.storage.fingerprints import fingerprint_of
from thess_agg_dagster.storage.gdal import gdal_env, gdal_name, store_env
from thess_agg_dagster.storage.paths import is_remote, lake_path, names_in
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SECOND, SmallLake, scene
from thess_agg_dagster_tests.processes import invoke, statuses
from thess_agg_dagster_tests.rasters import noise, read, write_tile
from thess_agg_dagster_tests.servers import S3Server, make_bucket


@pytest.fixture
def lake_kind() -> str:
    return "bucket"


@pytest.fixture
def ready(small_lake: SmallLake, s3_server: S3Server) -> SmallLake:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, small_lake.add_timestamp(SECOND)))
    small_lake.read_list()
    s3_server.requests.clear()
    return small_lake


def asked(server: S3Server, method: str, ending: str) -> int:
    return sum(verb == method and path.endswith(ending) for verb, path in server.requests)


def test_addresses() -> None:
    assert lake_path("some/where") == Path.cwd() / "some/where"
    assert not is_remote(lake_path("~/lake"))
    path = lake_path("s3://bucket/some/where/") / "cache"
    assert is_remote(path)
    assert (str(path), gdal_name(path)) == ("s3://bucket/some/where/cache", "/vsis3/bucket/some/where/cache")
    lake = DataLake.at("s3://bucket/lake", "s3://other/tables")
    assert str(lake.manifest(FIRST)).startswith("s3://bucket/lake/data_raw/aggregated/2023-02-02 09_21_09")
    assert str(lake.time_serie) == "s3://other/tables/time_serie.csv"


def test_the_pixels_are_those_of_a_local_lake(ready: SmallLake, tmp_path: Path) -> None:
    local = SmallLake(tmp_path / "local", ready.instance)
    local.list_rows((FIRST, local.add_timestamp(FIRST)))
    options = {"mask_scl_classes": [8, 9], "resampling": "bilinear", "format": "cog", "stac": True}
    assert local.aggregate(FIRST, **options).attempt.status == "success"
    assert ready.aggregate(FIRST, **options).attempt.status == "success"
    for band in BANDS:
        np.testing.assert_array_equal(read(ready.lake.mosaic(FIRST, band)), read(local.lake.mosaic(FIRST, band)))
    ready.tables()
    folder = ready.lake.published(FIRST).folder
    links = json.loads(ready.lake.collection.read_text())["links"]
    assert [link["href"] for link in links if link["rel"] == "item"] == [
        f"./{folder.parent.name}/{folder.name}/item.json"
    ]
    item = json.loads(ready.lake.published(FIRST).item.read_text())
    assert {link["href"] for link in item["links"]} == {"../../collection.json"}
    assert item["assets"]["B04"]["href"] == "./B04.tif"
    assert item["assets"]["B04"]["file:size"] == ready.lake.mosaic(FIRST, "B04").stat().st_size


def test_only_what_an_area_needs_is_read(s3_server: S3Server, small_lake: SmallLake) -> None:
    """One tile of 16 blocks, an area in one of them: bytes by ranges, not the file."""
    name = scene(FIRST, "T34TFL")
    pixels = noise(5, (2048, 2048))
    for band in BANDS:
        small_lake.add_tile(name, band, pixels=pixels.astype("uint8") % 12 if band == "SCL" else pixels, block=512)
    small_lake.list_rows((FIRST, [name]))
    size = small_lake.lake.tile(name, "B04").stat().st_size
    left, top = 690000, 4500000
    s3_server.sent = 0
    corner = f"SRID=32634;POLYGON(({left} {top}, {left + 9000} {top}, {left + 9000} {top - 9000}, {left} {top - 9000}, {left} {top}))"
    small_lake.read_list()
    assert small_lake.aggregate(FIRST, aoi=corner, bands=["B04"]).attempt.status == "success"
    np.testing.assert_array_equal(read(small_lake.lake.mosaic(FIRST, "B04")), pixels[:90, :90])
    assert s3_server.sent < size / 4


def test_a_timestamp_is_what_its_manifest_names(ready: SmallLake, s3_server: S3Server) -> None:
    ready.aggregate(FIRST)
    before = ready.lake.published(FIRST)
    ready.add_tile(scene(FIRST, "T34TFL"), "B04", pixels=noise(77, (120, 120)))
    s3_server.requests.clear()
    found = ready.aggregate(FIRST, bands=["B04", "B08"]).attempt
    # SCL, which was not asked for this time, is up to date and stays.
    run = ready.lake.published(FIRST).folder
    assert run != before.folder
    names = ["B04.tif", "B08.tif", "SCL.tif", "quicklook.jpg"]
    assert sorted(path.name for path in run.iterdir()) == names
    assert {path.name for path in run.parent.iterdir()} == {run.name, "manifest.json"}
    manifest = json.loads(ready.lake.manifest(FIRST).read_text())
    assert {each["file"] for each in manifest["outputs"]} == {f"{run.name}/{band}.tif" for band in BANDS}
    assert (found.output_folder, {band.output_path for band in found.bands}) == (
        str(run), {f"{run}/{band}.tif" for band in BANDS},
    )  # fmt: skip
    # The manifest came after the last file, and what it replaced went after it.
    changes = [
        (verb, path.rpartition("/")[2]) for verb, path in s3_server.requests
        if verb in ("DELETE", "POST", "PUT") and "data_raw/aggregated" in path
    ]  # fmt: skip
    assert sorted(changes[:4]) == [("PUT", name) for name in names]
    assert changes[4] == ("PUT", "manifest.json")
    assert sorted(changes[5:]) == [("DELETE", name) for name in names]


def test_what_the_command_replaces_is_gone_whatever_was_there_before(ready: SmallLake) -> None:
    """Three times in one process, to and fro."""
    home = str(ready.instance.root_directory)
    arguments = ("--data-lake", str(ready.root), "--bands", "B04", "--timestamps", FIRST)
    seen = set()
    for method in ("first", "max", "first"):
        result = invoke(*arguments, "--merge-method", method, DAGSTER_HOME=home)
        assert result.exit_code == 0, result.output
        run = ready.lake.published(FIRST).folder
        assert set(names_in(run.parent)) == {run.name, "manifest.json"}
        assert names_in(run) == ["B04.tif", "quicklook.jpg"]
        seen.add(run)
    assert len(seen) == 3


def test_an_upload_that_fails_leaves_what_was_published(ready: SmallLake, s3_server: S3Server) -> None:
    """The store refuses the second mosaic of the second attempt, for good."""
    assert ready.aggregate(FIRST).attempt.status == "success"
    before = {path: path.read_bytes() for path in ready.lake.published(FIRST).folder.iterdir()}
    s3_server.faults.append(("PUT", r"aggregated/.*/B08\.tif", 403, 100))
    assert ready.aggregate(FIRST, merge_method="max").attempt.status == "failed_merge"
    folder = ready.lake.published(FIRST).folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "manifest.json"}
    s3_server.faults.clear()
    home = str(ready.instance.root_directory)
    assert invoke("--data-lake", str(ready.root), DAGSTER_HOME=home).exit_code == 0
    assert statuses(ready.lake) == {FIRST: "success", SECOND: "success"}
    assert ready.left_behind() == []


def test_a_store_that_is_busy_is_asked_again(ready: SmallLake, s3_server: S3Server) -> None:
    s3_server.faults += [
        ("GET", r"T35TKF.*B04\.tif", 503, 2),
        ("HEAD", r"T34TFL.*SCL\.tif", 500, 1),
        ("PUT", r"aggregated/.*manifest", 503, 2),
        ("PUT", r"aggregated/", 500, 1),
    ]
    found = ready.aggregate(FIRST)
    assert found.attempt.status == "success"
    assert all(times == 0 for *_, times in s3_server.faults)


def test_a_store_that_is_down_is_no_fault_of_the_tiles(ready: SmallLake, s3_server: S3Server) -> None:
    """Not "missing": who compares later must not take the outage for a change."""
    s3_server.faults.append(("HEAD", "cache/s2", 503, 10_000))
    with pytest.raises(OSError, match=r".") as caught:
        fingerprint_of(ready.lake.tile(scene(FIRST, "T34TFL"), "B04"))
    assert not isinstance(caught.value, FileNotFoundError)


def test_what_cannot_be_read_by_ranges_is_read_from_a_copy(s3_server: S3Server) -> None:
    make_bucket(s3_server, "ranges")
    pixels = noise(3, (1024, 1024))
    path = write_tile(lake_path("s3://ranges/scene/B04.tif"), pixels, block=512)
    tile = inspect_tile(path)
    reader = TileReader(tile)
    with gdal_env():
        s3_server.faults.append(("GET", "B04", 403, 1))  # which GDAL does not ask twice
        found = {chunk: reader.decode(chunk) for chunk in reader.chunks(whole(tile.geobox))}
        reader.close()
        for chunk, decoded in found.items():
            np.testing.assert_array_equal(decoded, pixels[reader.box(chunk).slices])
        s3_server.faults[:] = [("GET", "B04", 403, 10)]
        with pytest.raises(SystemFaultError, match="the system is at fault"):
            TileReader(tile).decode((0, 0))
        s3_server.faults.clear()
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(TileError, match="truncated or damaged"):
            TileReader(tile).decode((1, 1))


def test_blocks_of_a_tile_are_fetched_several_at_a_time(s3_server: S3Server, tmp_path: Path) -> None:
    make_bucket(s3_server, "blocks")
    pixels = noise(3, (1024, 1024))
    tile = inspect_tile(write_tile(lake_path("s3://blocks/scene/B04.tif"), pixels, block=256))
    waiting, busiest, lock = 0, 0, threading.Lock()

    def gate(*_: str) -> None:
        nonlocal waiting, busiest
        with lock:
            waiting += 1
            busiest = max(busiest, waiting)
        time.sleep(0.1)
        with lock:
            waiting -= 1

    everything = whole(tile.geobox)
    cache = BlockCache([TileReader(tile, chunk=256)], 2**30, tmp_path, threading.Semaphore(1))
    cache.announce(0, everything)
    s3_server.gate = gate
    try:
        np.testing.assert_array_equal(cache.read(0, everything), pixels)
    finally:
        s3_server.gate = None
        cache.close()
    assert cache.decoded == 16
    assert 2 <= busiest <= 4


def test_a_tile_that_was_replaced_is_read_anew(ready: SmallLake) -> None:
    """In one process: GDAL would remember an object's bytes."""
    ready.aggregate(FIRST, bands=["B04"])
    pixels = noise(123, (120, 120))
    ready.add_tile(scene(FIRST, "T35TKF"), "B04", east=True, pixels=pixels)
    ready.aggregate(FIRST, bands=["B04"])
    with store_env(), rasterio.open(gdal_name(ready.lake.tile(scene(FIRST, "T35TKF"), "B04"))) as tile:
        bounds = tile.bounds
    with MemoryFile(ready.lake.mosaic(FIRST, "B04").read_bytes()) as memory, memory.open() as mosaic:
        found = mosaic.read(1, window=mosaic.window(*bounds))
    np.testing.assert_array_equal(found, pixels)


def test_what_a_killed_process_left_in_the_scratch_is_removed(small_lake: SmallLake) -> None:
    pid = os.fork()
    if pid == 0:
        with staged_file(small_lake.lake.time_serie) as file:
            file.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(small_lake.left_behind()) == 1
    with staged_file(small_lake.lake.time_serie) as file:
        file.write_text("whole")
    assert small_lake.left_behind() == []
    assert small_lake.lake.time_serie.read_text() == "whole"


def test_somebody_elses_scratch_is_not_used(small_lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the folder could change what is uploaded."""
    owner = os.getuid()
    scratch = local_folder(small_lake.lake.staging)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    scratch.rename(scratch.with_name(f"thess-agg-dagster-{owner + 1}"))
    with pytest.raises(PermissionError, match="set TMPDIR"), staged_file(small_lake.lake.time_serie):
        pass


def test_state_is_kept_at_home_where_nothing_else_is_said(ready: SmallLake, tmp_path: Path) -> None:
    result = invoke("--data-lake", str(ready.root), "--bands", "B04", HOME=str(tmp_path / "me"))
    assert result.exit_code == 0, result.output
    where = tmp_path / "me" / ".thess-agg-dagster" / str(ready.root).removeprefix("s3://")
    assert f"UI       DATA_LAKE={ready.root} DAGSTER_HOME={tmp_path}/me/.thess-agg-dagster/s3/" in result.stdout
    assert not where.exists()


def test_without_the_library_of_a_store_it_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['gcsfs'] = None; sys.argv = ['x', '--data-lake', 'gs://bucket/lake']; from thess_agg_dagster.runs.command import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert result.returncode == 2
    assert "gcsfs" in result.stderr
    assert "Traceback" not in result.stderr


def test_opening_a_tile_changes_neither_environment_nor_warnings(ready: SmallLake) -> None:
    """Both belong to the process; GDAL is told of the endpoint by settings of its own."""
    before, filters = dict(os.environ), list(warnings.filters)
    ready.aggregate(FIRST, bands=["B04"])
    assert (dict(os.environ), list(warnings.filters)) == (before, filters)
