"""Each block that can contribute is decoded once, and hidden tiles are not read: by counting."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thess_agg_dagster.mosaic.blocks import Pixels, TileReader
from thess_agg_dagster.mosaic.engine import WriteError, _Merger, write_mosaic
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import plan_mosaic
from thess_agg_dagster.mosaic.sizes import Sizes
from thess_agg_dagster_tests.rasters import ZONE_34, ZONE_35, noise, read, write_tile

#: Chunks are single blocks of the file.
SINGLE = Sizes(block=64, window=64, chunk=1)

Decoded = Counter[tuple[str, tuple[int, int]]]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Counts every decode by tile and chunk."""
    count: Decoded = Counter()
    original = TileReader.decode

    def counting(self: TileReader, chunk: tuple[int, int]) -> Pixels:
        count[self.tile.path.stem, chunk] += 1
        return original(self, chunk)

    monkeypatch.setattr(TileReader, "decode", counting)
    return count


@pytest.mark.parametrize("jpeg2000", [False, True])
@pytest.mark.parametrize("cache", [96 * 2**20, 50_000], ids=["in memory", "parked on disk"])
@pytest.mark.parametrize("strip", [2, 50])
def test_every_block_of_two_zones_is_decoded_once(
    tmp_path: Path, decoded: Decoded, jpeg2000: bool, cache: int, strip: int
) -> None:
    sizes = replace(SINGLE, cache_bytes=cache, strip=strip)
    a = write_tile(
        tmp_path / "a.tif", noise(1, (400, 400)), crs=ZONE_35, corner=(200000, 4500000), pixel=100, jpeg2000=jpeg2000
    )
    b = write_tile(
        tmp_path / "b.tif", noise(2, (400, 400)), crs=ZONE_34, corner=(680000, 4500000), pixel=100, jpeg2000=jpeg2000
    )
    plan = plan_mosaic([a, b], "B04", MosaicOptions(threads=3, sizes=sizes))
    stats = write_mosaic(plan, tmp_path / "out.tif")
    assert set(decoded.values()) == {1}
    assert {stem for stem, _ in decoded} == {"a", "b"}
    assert sum(1 for stem, _ in decoded if stem == "a") == 7 * 7
    assert stats.blocks_decoded == sum(decoded.values())


@pytest.mark.parametrize(("method", "hidden"), [("first", "b"), ("last", "a")])
def test_a_hidden_tile_is_not_read(tmp_path: Path, decoded: Decoded, method: str, hidden: str) -> None:
    a = write_tile(tmp_path / "a.tif", noise(1, (256, 256)))
    b = write_tile(tmp_path / "b.tif", noise(2, (256, 256)))
    write_mosaic(plan_mosaic([a, b], "B04", MosaicOptions(merge_method=method, sizes=SINGLE)), tmp_path / "out.tif")
    assert {stem for stem, _ in decoded} == {"a", "b"} - {hidden}


def test_only_blocks_behind_empty_pixels_are_read(tmp_path: Path, decoded: Decoded) -> None:
    pixels = noise(1, (256, 256))
    pixels[70:90, 200:220] = 0
    a = write_tile(tmp_path / "a.tif", pixels)
    b = write_tile(tmp_path / "b.tif", noise(2, (256, 256)))
    write_mosaic(plan_mosaic([a, b], "B04", MosaicOptions(sizes=SINGLE)), tmp_path / "out.tif")
    assert [chunk for stem, chunk in decoded if stem == "b"] == [(1, 3)]
    expected = np.where(pixels == 0, read(b), pixels)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), expected)


def test_nothing_is_kept_when_the_last_window_is_done(tmp_path: Path) -> None:
    paths = [
        write_tile(tmp_path / f"{n}.tif", noise(n, (300, 300)), corner=(600000 + 1000 * n, 4500000)) for n in range(3)
    ]
    kept = []
    original = _Merger.close

    def closing(self: _Merger) -> None:
        handles = sum(reader._handles.qsize() for reader in self._readers)
        kept.append((self.cache._bytes, len(self.cache._in_memory), len(self.cache._blocks), handles))
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Merger, "close", closing)
        write_mosaic(plan_mosaic(paths, "B04", MosaicOptions()), tmp_path / "out.tif")
    assert kept == [(0, 0, 0, 0)]


@pytest.mark.parametrize(
    ("layout", "chunk"),
    [
        ({"tiled": False, "blockysize": 1}, (512, 1500)),
        ({"tiled": True, "block": 128}, (512, 512)),
        ({"tiled": True, "block": 1024}, (1024, 1024)),
    ],
)
def test_small_blocks_are_decoded_several_at_a_time(
    tmp_path: Path, layout: dict[str, int], chunk: tuple[int, int]
) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (1500, 1500)), **layout)  # type: ignore[arg-type]
    plan = plan_mosaic([path], "B04", MosaicOptions())
    assert TileReader(plan.tiles[0]).chunk_shape == chunk
    write_mosaic(plan, tmp_path / "out.tif")
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(path))


@pytest.mark.parametrize("fault", ["no room", "half written"])
def test_a_full_disk_while_parking_is_an_error_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Blocks that wait on disk cannot be put there: the write is an error for all who wait, within seconds."""

    def failing(handle: int, data: memoryview, offset: int) -> int:
        if fault == "no room":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data) // 2

    monkeypatch.setattr(os, "pwrite", failing)
    a = write_tile(tmp_path / "a.tif", noise(1, (600, 600)), crs=ZONE_35, corner=(200000, 4500000), pixel=100)
    b = write_tile(tmp_path / "b.tif", noise(2, (600, 600)), crs=ZONE_34, corner=(680000, 4500000), pixel=100)
    plan = plan_mosaic([a, b], "B04", MosaicOptions(threads=3, sizes=Sizes(block=64, window=64, cache_bytes=50_000)))
    with pytest.raises(WriteError, match="No space left on device"):
        write_mosaic(plan, tmp_path / "out.tif")
