"""Damaged lists and tiles by the thousand: whatever comes in, only the product's own errors come out."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from thess_agg_dagster.lake.layout import is_plain_name
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic.engine import write_mosaic
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import plan_mosaic
from thess_agg_dagster.mosaic.tiles import PlanError, TileError, inspect_tile
from thess_agg_dagster_tests.rasters import noise, write_tile

_LIST = (
    b"acq_datetime,tile_ids,tiles_count\n2023-02-02 09:21:09.024000+00:00,S2B_A|S2B_B,2\n"
    b'"2023-04-13T09:20:29Z","S2B_C;S2B_D",2\n'
)
_BITS = [
    b",",
    b'"',
    b"\n",
    b"\r",
    b"|",
    b"\0",
    b"\xff",
    b"../",
    b"=",
    b"\xe2\x80\xae",
    b"9" * 40,
    b"2023-02-02",
    b" ",
    b";",
]


def _damaged(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        where = rng.randrange(len(data) + 1)
        what = rng.random()
        if what < 0.35 and where < len(data):
            data[where] = rng.randrange(256)
        elif what < 0.6:
            data[where:where] = rng.choice(_BITS)
        elif what < 0.8:
            del data[where : where + rng.randint(1, 30)]
        elif what < 0.9:
            del data[where:]
        else:
            end = min(len(data), where + 60)
            data[where:where] = data[where:end]
    return bytes(data)


def fuzz_lists(folder: Path, count: int) -> Counter[str]:
    """Read ``count`` damaged lists; what came of them, counted."""
    rng, path, seen = random.Random(1), folder / "time_serie.csv", Counter[str]()
    for _ in range(count):
        path.write_bytes(_damaged(rng, _LIST))
        try:
            series = read_time_serie(path)
        except TimeSerieError:
            seen["unusable"] += 1
            continue
        seen["rows refused" if series.refused else "all rows good"] += 1
        assert all(str(row).isprintable() and len(str(row)) < 400 for row in series.refused)
        for key, acquisition in series.acquisitions.items():
            assert "/" not in key
            assert "\0" not in key
            assert all(is_plain_name(scene_id) for scene_id in acquisition.scene_ids)
    return seen


def fuzz_tiles(folder: Path, count: int) -> Counter[str]:
    """Open ``count`` damaged tiles, GeoTIFF and JPEG 2000, and merge those whose header still stands."""
    rng, seen = random.Random(2), Counter[str]()
    originals = [
        write_tile(folder / f"{n}.tif", noise(n, (48, 48)), jpeg2000=n == 2, block=16 if n == 1 else 48).read_bytes()
        for n in range(3)
    ]
    path, out = folder / "S2A" / "B04.tif", folder / "out.tif"
    path.parent.mkdir()
    for number in range(count):
        path.write_bytes(_damaged(rng, originals[number % 3]))
        try:
            tile = inspect_tile(path)
            if max(tile.shape) > 5000:
                seen["large"] += 1
                continue
            write_mosaic(plan_mosaic([path], "B04", MosaicOptions(threads=1)), out)
            seen["merged"] += 1
        except TileError as error:
            seen[error.problem.kind] += 1
        except PlanError as error:
            seen[error.problems[0].kind] += 1
    return seen
