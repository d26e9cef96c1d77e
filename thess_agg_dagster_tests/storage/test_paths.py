"""Every file of a lake is looked at before it is opened: regular, inside, not absurdly large."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from thess_agg_dagster.lake.catalogue import read_item
from thess_agg_dagster.lake.checksums import checksum_of
from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.download_policy import DownloadError, DownloadPolicy
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.storage.paths import NotAFileError, open_file, open_text, read_bytes, read_if_there
from thess_agg_dagster_tests.conftest import FIRST, SmallLake


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # their names are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def endless(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**41)  # of holes


UNFIT = pytest.mark.parametrize("make", [pipe, device, listening, endless])


@UNFIT
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "B04.tif.sha256"
    make(path)
    for read in (open_file, read_bytes, read_if_there, read_item, checksum_of):
        with pytest.raises(NotAFileError, match=r"B04\.tif\.sha256.*remove it"):
            read(path)
    with pytest.raises(NotAFileError), open_text(path):
        pass
    with pytest.raises(TimeSerieError, match="remove it"):
        read_time_serie(path)
    with pytest.raises(DownloadError, match="remove it|not among the allowed"):
        Downloader(DownloadPolicy((tmp_path.as_uri(),))).fetch(path.as_uri(), tmp_path / "new")


def test_links_within_are_followed_and_others_are_not(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    (tmp_path / "secret").write_text("secret")
    (lake / "real").write_text("mine")
    (lake / "inside").symlink_to(lake / "real")
    (lake / "outside").symlink_to("../secret")
    assert read_bytes(lake / "inside", within=[lake]) == b"mine"
    with pytest.raises(NotAFileError, match="outside: is a symbolic link out of the lake"):
        read_bytes(lake / "outside", within=[lake])
    assert read_if_there(lake / "gone", within=[lake]) is None


def test_a_size_beyond_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "item.json").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "item.json", 11) == b"x" * 11
    with pytest.raises(NotAFileError, match="has 11 bytes, more than the 10"):
        read_bytes(tmp_path / "item.json", 10)


def test_it_costs_its_own_timestamp_and_names_the_file(small_lake: SmallLake) -> None:
    ids = small_lake.add_timestamp(FIRST, ["B04"])
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    lake = small_lake.lake
    tile = lake.tile(ids[0], "B04")
    for path in (tile.with_name("B04.tif.sha256"), lake.scene_item(ids[0]), lake.assets_manifest):
        path.parent.mkdir(exist_ok=True)
        pipe(path)
        found = small_lake.aggregate(FIRST, bands=["B04"]).attempt
        assert found.status in ("failed_invalid_inputs", "exception")
        assert f"{path}: is a pipe" in found.message
        path.unlink()
    tile.unlink()
    device(tile)
    found = small_lake.aggregate(FIRST, bands=["B04"]).attempt
    assert found.status == "failed_invalid_inputs"
    assert small_lake.left_behind() == []
