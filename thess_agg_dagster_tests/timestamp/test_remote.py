"""``tiles=remote``: tiles that stay where they are, read by ranges from a server on loopback that counts what it sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from thess_agg_dagster.audit.event_log import latest_successes
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.download_policy import DownloadPolicy
from thess_agg_dagster.lake.remote import RemoteTile
from thess_agg_dagster.lake.time_serie import read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.timestamp.freshness import is_due
from thess_agg_dagster.timestamp.remote import located
from thess_agg_dagster_tests.conftest import FIRST, SmallLake, scene
from thess_agg_dagster_tests.rasters import noise, read, write_tile
from thess_agg_dagster_tests.servers import PASSWORD, USER, Archive, serving

SCENE = scene(FIRST, "T34TFL")
LEFT, TOP = 690000, 4500000


@pytest.fixture
def archive() -> Iterator[Archive]:
    with serving(Archive()) as server:
        yield server


def square(rows: slice, cols: slice) -> str:
    """Pixels of 10 m as a polygon."""
    x, y = (LEFT + 10 * cols.start, LEFT + 10 * cols.stop), (TOP - 10 * rows.start, TOP - 10 * rows.stop)
    ring = [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]), (x[0], y[0])]
    return f"SRID=32634;POLYGON(({', '.join(f'{a} {b}' for a, b in ring)}))"


def tile_bytes(folder: Path, pixels: np.ndarray[Any, Any], jpeg2000: bool) -> bytes:
    options: dict[str, Any] = {} if jpeg2000 else {"driver": "COG", "blocksize": 256}
    return write_tile(
        folder / "x.tif", pixels, corner=(LEFT, TOP), block=256, jpeg2000=jpeg2000, **options
    ).read_bytes()


def block_sizes(folder: Path, data: bytes, jpeg2000: bool) -> dict[tuple[int, int], int]:
    """Bytes of each block of a tile of 4 x 4, by row and column, as the file itself says."""
    if not jpeg2000:
        with rasterio.open(folder / "x.tif") as file:
            return {
                (row, col): int(file.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1))
                for row in range(4) for col in range(4)
            }  # fmt: skip
    found, at = {}, data.index(b"\xff\x90\x00\x0a")
    while data[at : at + 2] == b"\xff\x90":  # start of tile-part: length of marker, index of tile, bytes
        number, size = int.from_bytes(data[at + 4 : at + 6]), int.from_bytes(data[at + 6 : at + 10])
        found[divmod(number, 4)] = size
        at += size
    return found


def publish(archive: Archive, small_lake: SmallLake, data: bytes) -> str:
    archive.files["/tiles/B04.jp2"] = data
    href = f"{archive.url}/tiles/B04.jp2"
    item = small_lake.lake.scene_item(SCENE)
    item.parent.mkdir(parents=True, exist_ok=True)
    item.write_text(json.dumps({"assets": {"B04": {"href": f"{href}?signature=secret"}}}))
    small_lake.tiles = "remote"
    small_lake.list_rows((FIRST, [SCENE]))
    small_lake.read_list()
    return href


@pytest.mark.parametrize("jpeg2000", [False, True], ids=["COG", "JPEG 2000"])
def test_of_an_area_only_its_blocks_travel(
    archive: Archive, small_lake: SmallLake, tmp_path: Path, jpeg2000: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(1, (1024, 1024))
    data = tile_bytes(tmp_path, pixels, jpeg2000)
    sizes = block_sizes(tmp_path, data, jpeg2000)
    assert len(sizes) == 16
    needed = sum(size for (row, col), size in sizes.items() if row >= 2 and col < 2)
    href = publish(archive, small_lake, data)
    archive.needs_token = True
    monkeypatch.setenv("THESS_DOWNLOAD_USER", USER)
    monkeypatch.setenv("THESS_DOWNLOAD_PASSWORD", PASSWORD)
    params: dict[str, Any] = {
        "bands": ["B04"], "download_from": [archive.url], "download_token_url": f"{archive.url}/token",
        "aoi": square(slice(600, 900), slice(100, 400)),
    }  # fmt: skip
    attempt = small_lake.aggregate(FIRST, **params).attempt
    assert attempt.status == "success", attempt.message
    np.testing.assert_array_equal(read(small_lake.lake.mosaic(FIRST, "B04")), pixels[600:900, 100:400])
    print(f"{sum(archive.sent.values())} bytes in {archive.requests['/tiles/B04.jp2']} requests for blocks of {needed}")
    assert sum(archive.sent.values()) < 1.3 * needed
    # Nothing was copied, and the audit tells of the address without what is secret.
    assert [path.name for path in (small_lake.root / "cache" / "s2").iterdir()] == ["stac_items"]
    (band,) = attempt.bands
    assert band.input_files == [href]
    assert band.input_checksums[0].startswith("etag:")
    assert json.loads(small_lake.lake.manifest(FIRST).read_text())["inputs"]["B04"][0]["file"] == href
    # Another ETag is another tile.
    (acquisition,) = read_time_serie(small_lake.lake.time_serie).acquisitions.values()
    made = latest_successes(small_lake.instance, AGGREGATED)[FIRST]
    given, lake = TimestampsAggregationParams(**params), small_lake.lake
    assert not is_due(acquisition, made, lake, given, lake.fingerprints())
    archive.files["/tiles/B04.jp2"] = tile_bytes(tmp_path, noise(2, (1024, 1024)), jpeg2000)
    assert is_due(acquisition, made, lake, given, lake.fingerprints())


def test_from_nowhere_else(archive: Archive, small_lake: SmallLake, tmp_path: Path) -> None:
    publish(archive, small_lake, tile_bytes(tmp_path, noise(1, (64, 64)), False))
    for allowed, kind in (([], Path), (["example.org"], Path), ([archive.url], RemoteTile)):
        params = TimestampsAggregationParams(bands=["B04"], download_from=allowed)
        assert isinstance(located(small_lake.lake, params).source(SCENE, "B04"), kind)
    in_the_lake = small_lake.add_tile(SCENE, "B04")  # which comes first
    assert located(small_lake.lake, params).source(SCENE, "B04") == in_the_lake
    assert not archive.requests


@pytest.fixture
def tile(archive: Archive) -> RemoteTile:
    archive.files["/tile"] = bytes(range(256)) * 100
    policy = DownloadPolicy((archive.url,), attempts=3, first_wait=0.01, timeout=5)
    return RemoteTile(Path("/lake/A/B04.tif"), f"{archive.url}/tile", Downloader(policy))


def test_what_breaks_on_the_way_is_asked_for_again(archive: Archive, tile: RemoteTile) -> None:
    archive.faults["/tile"] = ["503", "cut", "", "429 after 0", "cut"]
    assert tile.stat().st_size == 25600
    assert tile.part(100, 20_000) == archive.files["/tile"][100:20_000]
    archive.faults["/tile"] = ["503"] * 3
    with pytest.raises(OSError, match="the server answers 503") as caught:
        tile.part(5000, 20_000)
    assert not isinstance(caught.value, FileNotFoundError)


def test_crumbs_are_asked_for_once(archive: Archive, tile: RemoteTile) -> None:
    with tile.open() as file:
        assert file.read(10) == bytes(range(10))
    for start in (0, 5, 4000, 4090, 4100, 25_590):
        assert tile.part(start, min(start + 20, 25_600)) == archive.files["/tile"][start : start + 20]
    assert archive.requests["/tile"] == 3


def test_one_that_changes_while_it_is_read_is_not_mixed(archive: Archive, tile: RemoteTile) -> None:
    tile.stat()
    archive.files["/tile"] = b"other" * 5000
    with pytest.raises(OSError, match="changed on the server while it was read"):
        tile.part(5000, 20_000)


def test_no_redirect_into_the_own_network(archive: Archive, tile: RemoteTile) -> None:
    archive.faults["/tile"] = ["redirect http://127.0.0.2/secret"]
    with pytest.raises(OSError, match="which is not allowed"):
        tile.stat()


def test_one_that_is_gone_is_missing(archive: Archive, tile: RemoteTile) -> None:
    archive.files.clear()
    with pytest.raises(FileNotFoundError):
        tile.stat()
