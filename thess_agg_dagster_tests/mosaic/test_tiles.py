"""What a tile's header must say, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from thess_agg_dagster.mosaic.tiles import TileError, inspect_tile
from thess_agg_dagster_tests.rasters import noise, write_tile


def refused(path: Path) -> tuple[str, str]:
    with pytest.raises(TileError) as caught:
        inspect_tile(path)
    assert caught.value.problem.path == path
    return caught.value.problem.kind, str(caught.value)


@pytest.mark.parametrize("jpeg2000", [False, True])
def test_header_of_a_tile_under_a_tif_name(tmp_path: Path, jpeg2000: bool) -> None:
    path = write_tile(tmp_path / "B04.tif", noise(1, (100, 130)), jpeg2000=jpeg2000)
    tile = inspect_tile(path)
    assert tile.shape == (100, 130)
    assert (tile.dtype, tile.nodata_tag) == ("uint16", None)
    assert tile.driver == ("JP2OpenJPEG" if jpeg2000 else "GTiff")
    assert tile.crs.to_epsg() == 32634
    assert tuple(tile.geobox.affine)[:6] == (10, 0, 600000, 0, -10, 4500000)


def test_missing_file(tmp_path: Path) -> None:
    kind, message = refused(tmp_path / "B04.tif")
    assert kind == "missing_input"
    assert "no such file" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html><body>503 Service Unavailable</body></html>",
        b'{"detail": "Expired token"}',
        b"II*\x00" + b"\0" * 40,
    ],
    ids=["empty", "html", "json", "bare header"],
)
def test_not_a_raster(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "B04.tif"
    path.write_bytes(content)
    kind, message = refused(path)
    assert kind == "unreadable_input"
    assert "download the tile again" in message


def test_a_vrt_is_not_a_tile(tmp_path: Path) -> None:
    real = write_tile(tmp_path / "real.tif", noise(1, (64, 64)))
    path = tmp_path / "B04.tif"
    path.write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{real}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(path) as opened_by_gdal:
        assert opened_by_gdal.driver == "VRT"
    assert refused(path)[0] == "unreadable_input"


def test_no_crs(tmp_path: Path) -> None:
    assert refused(write_tile(tmp_path / "B04.tif", noise(1, (64, 64)), crs=None))[0] == "unknown_crs"


def test_engineering_crs(tmp_path: Path) -> None:
    local = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]'
    assert refused(write_tile(tmp_path / "B04.tif", noise(1, (64, 64)), crs=local))[0] == "unknown_crs"


@pytest.mark.parametrize(
    "transform",
    [Affine(10, 1, 600000, 1, -10, 4500000), Affine(10, 0, 600000, 0, 10, 4500000)],
    ids=["rotated", "south-up"],
)
def test_not_north_up(tmp_path: Path, transform: Affine) -> None:
    kind, message = refused(write_tile(tmp_path / "B04.tif", noise(1, (64, 64)), transform=transform))
    assert kind == "unreadable_input"
    assert "north-up" in message


@pytest.mark.parametrize("pixel", [1e-200, 1e-6, 1e9])
def test_pixels_of_no_possible_size(tmp_path: Path, pixel: float) -> None:
    kind, message = refused(write_tile(tmp_path / "B04.tif", noise(1, (64, 64)), pixel=pixel))
    assert kind == "unreadable_input"
    assert f"pixels of {pixel:g} x {pixel:g} at 600000, 4.5e+06" in message


def test_more_than_one_band(tmp_path: Path) -> None:
    kind, message = refused(write_tile(tmp_path / "B04.tif", np.stack([noise(1, (64, 64))] * 3)))
    assert kind == "unreadable_input"
    assert "3 bands" in message


@pytest.mark.parametrize("dtype", ["complex64", "int64", "uint64"])
def test_unsupported_dtype(tmp_path: Path, dtype: str) -> None:
    kind, message = refused(write_tile(tmp_path / "B04.tif", noise(1, (64, 64), dtype=dtype)))
    assert kind == "dtype_conflict"
    assert dtype in message
    assert "uint16" in message


def test_a_header_that_claims_millions_of_pixels(tmp_path: Path) -> None:
    path = tmp_path / "B04.tif"
    profile = {"width": 2_000_000, "height": 2_000_000, "count": 1, "dtype": "uint16", "crs": "EPSG:32634"}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        sparse_ok=True,
        tiled=True,
        blockxsize=16384,
        blockysize=16384,
        bigtiff="YES",
        transform=Affine(10, 0, 600000, 0, -10, 4500000),
        **profile,
    ):
        pass
    assert refused(path)[0] == "unreadable_input"


def test_siblings_do_not_change_a_tile(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "a" / "B04.tif", noise(1, (64, 64)), crs=None)
    georeferenced = write_tile(tmp_path / "b" / "B04.tif", noise(1, (64, 64)))
    with rasterio.open(georeferenced) as file:
        wkt = file.crs.to_wkt()
    shutil.copy(georeferenced, tmp_path / "a" / "B04.tif.ovr")
    (tmp_path / "a" / "B04.tif.aux.xml").write_text(
        f"<PAMDataset><SRS>{wkt.replace(chr(34), '&quot;')}</SRS></PAMDataset>"
    )
    (tmp_path / "a" / "B04.tfw").write_text("10\n0\n0\n-10\n600005\n4499995\n")
    with rasterio.open(path) as opened_by_gdal:
        assert opened_by_gdal.crs is not None
    assert refused(path)[0] == "unknown_crs"


@pytest.mark.parametrize("nodata", [None, 0])
def test_a_mask_inside_the_file_is_not_passed_over(tmp_path: Path, nodata: float | None) -> None:
    path = write_tile(tmp_path / "B04.tif", noise(1, (64, 64)), nodata=nodata)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as tile:
        tile.write_mask(np.arange(64 * 64).reshape(64, 64) % 3 > 0)
    kind, message = refused(path)
    assert kind == "unreadable_input"
    assert "has an internal mask, which is not supported; write it into the pixels" in message


def test_what_is_unpacked_at_once_is_bounded(tmp_path: Path) -> None:
    """A few kilobytes that claim half a gigabyte in one strip: nothing of it is decoded."""
    path = tmp_path / "B04.tif"
    size = 16384
    options = {"driver": "GTiff", "tiled": False, "compress": "zstd", "sparse_ok": True, "blockysize": size}
    transform = Affine(10, 0, 600000, 0, -10, 4500000)
    with rasterio.open(
        path, "w", width=size, height=size, count=1, dtype="uint16", crs="EPSG:32634", transform=transform, **options
    ):
        pass
    kind, message = refused(path)
    assert kind == "unreadable_input"
    assert "is packed in pieces of 537 MB, more than the 268 that are read at once" in message
