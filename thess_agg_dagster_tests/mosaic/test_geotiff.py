"""Cloud-optimized mosaics: valid to an independent validator, their overviews right, and cheap to look at from afar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from thess_agg_dagster.mosaic.choices import COMPRESSIONS
from thess_agg_dagster.mosaic.engine import WriteError, write_mosaic
from thess_agg_dagster.mosaic.geotiff import verify
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import plan_mosaic
from thess_agg_dagster_tests.rasters import noise, read, write_tile
from thess_agg_dagster_tests.servers import listening


def write_cog(tmp_path: Path, band: str = "B04", dtype: str = "uint16", size: int = 1536, **options: Any) -> Path:
    pixels = noise(1, (size, size), high=12 if dtype == "uint8" else 10000, dtype=dtype)
    empty = np.nan if dtype == "float32" else 0
    pixels[: size // 2, : max(512, size // 4)] = empty
    pixels[np.random.default_rng(3).random(pixels.shape) < 0.2] = empty
    tile = write_tile(tmp_path / "tile.tif", pixels, block=512)
    out = tmp_path / "cog.tif"
    write_mosaic(
        plan_mosaic([tile], band, MosaicOptions(format="cog", threads=2, **options)), out, lambda: {"scenes": "a|b"}
    )
    return out


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize(("band", "dtype"), [("B04", "uint16"), ("B04", "float32"), ("SCL", "uint8")])
def test_an_independent_validator_finds_nothing(tmp_path: Path, compress: str, band: str, dtype: str) -> None:
    out = write_cog(tmp_path, band, dtype, compress=compress)
    assert cog_validate(out, strict=True) == (True, [], [])
    tile = read(tmp_path / "tile.tif")
    with rasterio.open(out) as mosaic:
        pixels = mosaic.read(1)
        np.testing.assert_array_equal(pixels, tile)
        assert (mosaic.descriptions, mosaic.tags()["scenes"]) == ((band,), "a|b")
        assert mosaic.nodata == 0 if dtype != "float32" else np.isnan(mosaic.nodata)
    for level in (0, 1):
        with rasterio.open(out, overview_level=level) as mosaic:
            pixels, before = mosaic.read(1), pixels
        if band == "SCL":  # a class is one of the four
            four = np.stack([before[row::2, col::2] for row in (0, 1) for col in (0, 1)])
            assert (pixels == four).any(axis=0).all()
        else:
            empty = np.isnan if dtype == "float32" else np.logical_not
            mean = np.ma.array(before, mask=empty(before), dtype=float).reshape(len(pixels), 2, -1, 2).mean(axis=(1, 3))
            assert (empty(pixels) == mean.mask).all()
            np.testing.assert_allclose(pixels[~mean.mask], mean.compressed(), atol=0.51)
    assert [path.name for path in tmp_path.iterdir()] in (["tile.tif", "cog.tif"], ["cog.tif", "tile.tif"])


def test_a_cog_cut_short_is_found(tmp_path: Path) -> None:
    out = write_cog(tmp_path, size=1500)
    filled = [(row, col) for row in range(3) for col in range(3) if (row, col) != (0, 0)]
    verify(out, filled, overviews=True)
    out.write_bytes(out.read_bytes()[:-6])
    with pytest.raises(OSError, match="incomplete"):
        verify(out, filled, overviews=True)


def test_a_cog_that_cannot_be_made_leaves_no_draft(tmp_path: Path) -> None:
    tile = write_tile(tmp_path / "tile.tif", noise(1, (600, 600)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cog.tif").mkdir()  # a folder where the file should go
    with pytest.raises(WriteError, match=r"cog\.tif: cannot be written"):
        write_mosaic(plan_mosaic([tile], "B04", MosaicOptions(format="cog")), tmp_path / "out" / "cog.tif")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cog.tif"]


def test_a_look_from_afar_costs_little(tmp_path: Path) -> None:
    """A server that serves byte ranges: an overview, and a window at full resolution, for a small part of the file."""
    out = write_cog(tmp_path, size=4096)
    with (
        serving(out) as (url, sent),
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", VSI_CACHE="FALSE"),
        rasterio.open(f"/vsicurl/{url}") as remote,
        rasterio.open(out) as local,
    ):
        for options in ({"out_shape": (256, 256)}, {"window": ((3000, 3100), (3000, 3200))}):
            np.testing.assert_array_equal(remote.read(1, **options), local.read(1, **options))
    assert sum(sent) < 0.1 * out.stat().st_size
    assert len(sent) <= 8


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, list[int]]]:
    """A file on loopback, by ranges; yields its address and the sizes of all answers so far."""
    sent: list[int] = []
    data = path.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def do_GET(self) -> None:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
            sent.append(len(part))

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as url:
        yield f"{url}/cog.tif", sent
