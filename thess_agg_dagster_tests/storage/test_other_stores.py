"""What differs between stores, in Google's and Azure's: the calls of their libraries, seen by servers of their APIs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import rasterio
from rasterio.env import getenv

from thess_agg_dagster.lake.bucket import publish_run
from thess_agg_dagster.lake.checksums import ChangedError
from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.download_policy import DownloadError, DownloadPolicy
from thess_agg_dagster.lake.publish import keep_aside
from thess_agg_dagster.lake.published import MANIFEST
from thess_agg_dagster.mosaic.blocks import TileReader
from thess_agg_dagster.mosaic.tiles import inspect_tile
from thess_agg_dagster.storage.conditional import put_if, version_of
from thess_agg_dagster.storage.fingerprints import fingerprint_of, fingerprints_below
from thess_agg_dagster.storage.gdal import gdal_env, gdal_name, store_env
from thess_agg_dagster.storage.paths import files_below, lake_path, names_in, read_bytes, upload
from thess_agg_dagster_tests.conftest import FIRST, SECOND, SmallLake
from thess_agg_dagster_tests.processes import invoke, statuses
from thess_agg_dagster_tests.rasters import noise, read, write_tile
from thess_agg_dagster_tests.servers import StoreServer
from thess_agg_dagster_tests.stores import azure_environment, gs_environment, serving_azure, serving_gs

#: How a store is served, and found.
Kind = tuple[Callable[[], AbstractContextManager[StoreServer]], Callable[[StoreServer], dict[str, str]]]
KINDS: dict[str, Kind] = {"gs": (serving_gs, gs_environment), "az": (serving_azure, azure_environment)}


@pytest.fixture(scope="module", params=["gs", pytest.param("az", marks=pytest.mark.azure)])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def running(scheme: str) -> Iterator[StoreServer]:
    with KINDS[scheme][0]() as server:
        yield server


@pytest.fixture
def server(running: StoreServer, scheme: str, monkeypatch: pytest.MonkeyPatch) -> StoreServer:
    """A server without faults, and an environment in which it is found."""
    running.faults.clear()
    running.requests.clear()
    for name, value in KINDS[scheme][1](running).items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture
def new_bucket(server: StoreServer, scheme: str) -> str:
    name = f"lake-{uuid.uuid4().hex}"
    address = f"{scheme}://{name}"
    cast(Any, lake_path(address)).fs.mkdir(name)
    return address


@pytest.fixture
def folder(new_bucket: str) -> Path:
    return lake_path(new_bucket) / "some where" / "2023-02-02 09_21_09.024000+00_00"


@pytest.fixture
def lake_kind() -> str:
    return "bucket"


def test_a_lake(new_bucket: str, small_lake: SmallLake, tmp_path: Path) -> None:
    """From tiles to tables by the command, its workers in processes of their own; the pixels are those of a local lake."""
    bands = ["B04", "SCL"]
    small_lake.list_rows(*((timestamp, small_lake.add_timestamp(timestamp, bands)) for timestamp in (FIRST, SECOND)))
    arguments = ("--data-lake", str(small_lake.root), "--bands", ",".join(bands), "--max-workers", "2")
    home = str(small_lake.instance.root_directory)
    result = invoke(*arguments, DAGSTER_HOME=home)
    assert result.exit_code == 0, result.output
    assert statuses(small_lake.lake) == {FIRST: "success", SECOND: "success"}
    assert "2 unchanged and skipped" in invoke(*arguments, DAGSTER_HOME=home).output
    before = small_lake.lake.published(FIRST).folder
    assert small_lake.aggregate(FIRST, bands=bands, merge_method="max").attempt.status == "success"
    run = small_lake.lake.published(FIRST).folder
    assert run != before
    assert set(names_in(run.parent)) == {run.name, MANIFEST}
    assert names_in(run) == ["B04.tif", "SCL.tif", "quicklook.jpg"]
    assert small_lake.left_behind() == []
    local = SmallLake(tmp_path / "local", small_lake.instance)
    local.list_rows((FIRST, local.add_timestamp(FIRST, bands)))
    local.aggregate(FIRST, bands=bands, merge_method="max")
    for band in bands:
        with store_env(), rasterio.open(gdal_name(run / f"{band}.tif")) as mosaic:
            np.testing.assert_array_equal(mosaic.read(1), read(local.lake.mosaic(FIRST, band)))


def test_a_manifest_is_replaced_only_if_it_is_still_the_same(folder: Path) -> None:
    place = folder / MANIFEST
    assert version_of(place) is None
    assert put_if(place, b"first", None)
    assert not put_if(place, b"late", None)
    first = version_of(place)
    assert put_if(place, b"second", first)
    assert not put_if(place, b"late, too", first)
    assert read_bytes(place) == b"second"
    place.unlink()
    assert not put_if(place, b"late, too", first)


def test_of_two_runs_the_later_is_refused(folder: Path, tmp_path: Path) -> None:
    def publish(run: str, replaces: str | None) -> None:
        staged = tmp_path / run
        staged.mkdir()
        (staged / "B04.tif").write_text(run)
        (staged / MANIFEST).write_text(json.dumps({"timestamp": FIRST, "outputs": [{"file": f"{run}/B04.tif"}]}))
        publish_run(staged, folder / run, MANIFEST, replaces)

    runs = [f"2023-02-02T09-21-0{second}.000000Z-aaaa" for second in range(3)]
    publish(runs[0], None)
    there = version_of(folder / MANIFEST)
    publish(runs[1], there)
    with pytest.raises(ChangedError, match="another run has published this timestamp"):
        publish(runs[2], there)
    assert json.loads(read_bytes(folder / MANIFEST))["outputs"] == [{"file": f"{runs[1]}/B04.tif"}]
    assert runs[2] not in names_in(folder)


def test_what_may_not_be_written_leaves_nothing(folder: Path, server: StoreServer, tmp_path: Path) -> None:
    (folder / MANIFEST).write_bytes(b"{}")
    version = version_of(folder / MANIFEST)
    server.faults += [("PUT", ".", 403, 9), ("POST", "upload", 403, 9)]
    for attempt in (version, None):
        with pytest.raises(PermissionError):
            put_if(folder / MANIFEST, b"new", attempt)
    (tmp_path / "file").write_bytes(b"new")
    with pytest.raises(PermissionError):
        upload(tmp_path / "file", folder / "file")
    server.faults.clear()
    assert (read_bytes(folder / MANIFEST), names_in(folder)) == (b"{}", [MANIFEST])


def test_a_busy_store_is_asked_again(folder: Path, server: StoreServer) -> None:
    (folder / MANIFEST).write_bytes(b"{}")
    version = version_of(folder / MANIFEST)
    server.faults += [("PUT", "manifest", 503, 1), ("POST", "upload", 503, 1)]
    assert put_if(folder / MANIFEST, b"new", version)
    assert read_bytes(folder / MANIFEST) == b"new"


def test_listings_and_single_questions_agree(folder: Path) -> None:
    paths = [folder / "a" / "B04.tif", folder / "a" / "b" / "B04.tif", folder / "a b+c" / "B08.tif"]
    for path in paths:
        path.write_bytes(b"pixels")
    listed = fingerprints_below([folder])
    assert [listed(path) for path in paths] == [fingerprint_of(path) for path in paths]
    assert all(listed(path) for path in paths)
    assert (listed(folder / "none"), fingerprint_of(folder / "none")) == (None, None)
    assert files_below(folder, "B04.tif", (1, 2)) == paths[:2]
    assert names_in(folder) == ["a", "a b+c"]
    assert (names_in(folder / "none"), files_below(folder / "none", "x")) == ([], [])
    before = fingerprint_of(paths[0])
    paths[0].write_bytes(b"others")
    assert fingerprint_of(paths[0]) != before
    keep_aside(paths[0], "B04.tif.broken")
    assert read_bytes(paths[0].with_name("B04.tif.broken")) == b"others"


def test_a_large_file_travels_in_pieces(folder: Path, server: StoreServer, scheme: str, tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(20 * 2**20)
    (tmp_path / "file").write_bytes(data)
    server.requests.clear()
    upload(tmp_path / "file", folder / "file")
    assert read_bytes(folder / "file") == data
    # Azure's library sends up to 64 MiB at once, and more in pieces of 4.
    assert sum("upload_id" in path for _, path in server.requests) == (3 if scheme == "gs" else 0)


def test_gdal_finds_an_account_by_the_names_of_adlfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "secret")
    with gdal_env():
        found = getenv()
    assert (found["AZURE_STORAGE_ACCOUNT"], found["AZURE_STORAGE_ACCESS_KEY"]) == ("mine", "secret")


def test_of_a_tile_only_what_is_needed_is_read(folder: Path, server: StoreServer) -> None:
    pixels = noise(5, (2048, 2048))
    path = write_tile(folder / "B04.tif", pixels, block=512)
    tile = inspect_tile(path)
    server.sent = 0
    reader = TileReader(tile)
    with gdal_env():
        np.testing.assert_array_equal(reader.decode((2, 1)), pixels[1024:1536, 512:1024])
        reader.close()
    assert server.sent < path.stat().st_size / 4


def test_downloads(folder: Path, server: StoreServer, tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(10 * 2**20)
    source = folder / "B04.tif"
    source.write_bytes(data)
    downloader = Downloader(DownloadPolicy(allowed=(str(folder.parent),), first_wait=0.01))
    arrived: list[int] = []
    downloader.fetch(str(source), tmp_path / "tile", arrived.append)
    assert (tmp_path / "tile").read_bytes() == data
    assert sum(arrived) == len(data)
    with pytest.raises(DownloadError, match="no such file"):
        downloader.fetch(f"{folder}/none", tmp_path / "tile")
    with pytest.raises(DownloadError, match="not among the allowed sources"):
        downloader.fetch(f"{folder.parent.parent}/other", tmp_path / "tile")
    server.faults.append(("GET", "B04", 403, 1000))
    server.faults.append(("HEAD", "B04", 403, 1000))
    with pytest.raises(DownloadError, match="no permission; check the credentials"):
        downloader.fetch(str(source), tmp_path / "tile")
