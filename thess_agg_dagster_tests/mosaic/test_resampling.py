"""Every resampling against the exact projection: aligned, nearly aligned, unaligned, in one zone and between two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform

from thess_agg_dagster.mosaic.choices import METHODS, RESAMPLINGS
from thess_agg_dagster.mosaic.engine import write_mosaic
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.place import place
from thess_agg_dagster.mosaic.plan import plan_mosaic
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster.mosaic.tiles import Tile
from thess_agg_dagster.storage.gdal import gdal_env
from thess_agg_dagster_tests.rasters import ZONE_34, ZONE_35, Array, noise, read, write_tile

# South of the equator the same meridian's zone counts from 10 000 km.
SOUTH, NORTHING = "EPSG:32734", 1e7

KERNELS: dict[str, Callable[[Array], Array]] = {
    "bilinear": lambda x: np.clip(1 - x, 0, None),
    "cubic": lambda x: np.where(
        x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0)
    ),
    "cubic_spline": lambda x: np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - x) ** 3 / 6, 0)),
    "lanczos": lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0),
}
STATISTICS = ("average", "rms", "mode", "max", "min", "med", "q1", "q3", "sum")


def resampled(pixels: Array, tile: GeoBox, grid: GeoBox, resampling: str, empty: float = 0) -> Array:
    """What our placement makes of a tile on the whole of a grid."""
    header = Tile(Path("a.tif"), tile, CRS.from_user_input(str(tile.crs)), str(pixels.dtype), None, "GTiff", (64, 64))
    placement = place(header, empty, grid, Resampling[resampling])
    out = np.full(tuple(grid.shape), empty, pixels.dtype)
    window = placement.footprint
    source = placement.source_box(window)
    with gdal_env():
        out[window.slices] = placement.resample(pixels[source.slices], source, window)
    return out


def box(crs: str, corner: tuple[float, float], shape: tuple[int, int], pixel: float = 10) -> GeoBox:
    return GeoBox(shape, Affine(pixel, 0, corner[0], 0, -pixel, corner[1]), crs)


def by_kernel(pixels: Array, tile: GeoBox, grid: GeoBox, resampling: str, span: float) -> tuple[Array, Array]:
    """The kernel's definition at each exactly projected pixel centre; and which kernels lie wholly inside the tile."""
    rows, cols = np.indices(tuple(grid.shape)) + 0.5
    x, y = grid.affine * (cols.ravel(), rows.ravel())
    sx, sy = map(np.array, transform(str(grid.crs), str(tile.crs), x, y))
    col, row = ~tile.affine * (sx, sy)
    kernel = KERNELS[resampling]
    across = kernel(np.abs(np.arange(tile.shape[1]) + 0.5 - col[:, None]) / span)
    down = kernel(np.abs(np.arange(tile.shape[0]) + 0.5 - row[:, None]) / span)
    with np.errstate(invalid="ignore"):
        values = ((down @ pixels) * across).sum(1) / (down.sum(1) * across.sum(1))
    reach = 3 * span + 1
    inside = (np.minimum(col, row) > reach) & (col < tile.shape[1] - reach) & (row < tile.shape[0] - reach)
    return values.reshape(rows.shape), inside.reshape(rows.shape)


@pytest.mark.parametrize("resampling", KERNELS)
@pytest.mark.parametrize(
    ("crs", "corner", "pixel", "atol"),
    [
        (SOUTH, (600004, NORTHING + 603), 10, 0.02),
        (SOUTH, (600004, NORTHING + 600), 10, 0.02),  # aligned down, not across
        (SOUTH, (600000.02, NORTHING + 600.02), 10, 0.02),  # nearly aligned
        (ZONE_34, (600003, 601), 10, 0.02),
        (ZONE_34, (600000, 600), 30, 0.02),  # an odd factor: centres on centres
        (SOUTH, (600000, NORTHING + 600), 30, 0.02),
        (ZONE_34, (600002, 604), 30, 0.02),
        (ZONE_34, (600002, 604), 15, 0.02),
        (ZONE_34, (600002, 604), 25, 0.02),
        (ZONE_35, None, 10, 15.0),  # a hundredth of a pixel, in noise of a thousand
        (ZONE_35, None, 30, 15.0),
    ],
)
def test_kernels_are_what_they_are_called_wherever_the_tile_lies(
    resampling: str, crs: str, corner: tuple[float, float] | None, pixel: float, atol: float
) -> None:
    if corner is None:  # the same place in the zone beside it
        (x,), (y,) = transform(ZONE_34, ZONE_35, [600000], [600])
        corner = (round(x), round(y))
    pixels = noise(1, (90, 90), high=1000, dtype="float64")
    tile = box(crs, corner, pixels.shape)
    size = int(900 / pixel)
    grid = box(ZONE_34, (600000, 600), (size, size), pixel)
    expected, inside = by_kernel(pixels, tile, grid, resampling, pixel / 10)
    result = resampled(pixels, tile, grid, resampling)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(result[inside], expected[inside], atol=atol)


@pytest.mark.parametrize("resampling", STATISTICS)
@pytest.mark.parametrize("hair", [1e-9, -1e-3])
@pytest.mark.parametrize(("factor", "shift"), [(1, 5), (2, 0), (3, 10), (2.5, 0), (0.5, 0)])
@pytest.mark.parametrize("crs", [ZONE_34, SOUTH])
def test_edges_that_nearly_coincide_take_in_no_neighbour(
    resampling: str, hair: float, factor: float, shift: float, crs: str
) -> None:
    """Oracle: GDAL in one zone, where every edge is a whole number."""
    pixels = noise(2, (60, 60), high=9, dtype="float64")
    exact = box(ZONE_34, (600000 + shift, 600), pixels.shape)
    north = NORTHING if crs == SOUTH else 0
    tile = box(crs, (600000 + shift + hair, 600 + north - hair), pixels.shape)
    size = int(600 / (10 * factor))
    grid = box(ZONE_34, (600000, 600), (size, size), 10 * factor)
    expected = np.zeros(tuple(grid.shape))
    reproject(
        pixels, expected, src_transform=exact.affine, src_crs=ZONE_34, dst_transform=grid.affine, dst_crs=ZONE_34,
        src_nodata=0, dst_nodata=0, resampling=Resampling[resampling],
    )  # fmt: skip
    result = resampled(pixels, tile, grid, resampling)
    # At a tile's own edge GDAL's mean is one of other pixels.
    np.testing.assert_allclose(result[1:-1, 1:-1], expected[1:-1, 1:-1], atol=0.005)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_nothing_of_a_tile_is_lost_where_zones_of_two_hemispheres_meet(tmp_path: Path, resampling: str) -> None:
    north, south = noise(1, (60, 60)), noise(2, (60, 60))
    tiles = [
        write_tile(tmp_path / "a.tif", north, corner=(600000, 600)),
        write_tile(tmp_path / "b.tif", south, crs=SOUTH, corner=(600600, NORTHING + 600)),
    ]
    stats = write_mosaic(plan_mosaic(tiles, "B04", MosaicOptions(resampling=resampling)), tmp_path / "out.tif")
    assert stats.valid_share == 1
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), np.hstack([north, south]))


@pytest.mark.parametrize("tag", [None, -9999.0, -np.inf])
@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_nan_is_empty_beside_any_tag_in_every_resampling(resampling: str, tag: float | None) -> None:
    """Oracle: the same tile in thousandths, integers, of which one value is empty."""
    pixels = noise(3, (60, 60), 100, 200, dtype="float32")
    holes = np.random.default_rng(4).random(pixels.shape) < 0.1
    holes[10:20, 30:50] = True
    pixels[holes] = np.nan
    other = np.random.default_rng(5).random(pixels.shape) < 0.5
    if tag is not None:
        pixels[holes & other] = tag
    for tile, grid in (
        (box(ZONE_34, (600004, 603), (60, 60)), box(ZONE_34, (600000, 600), (60, 60))),
        (box(ZONE_34, (600000, 600), (60, 60)), box(ZONE_34, (600000, 600), (20, 20), 30)),
    ):
        empty = np.nan if tag is None else tag
        result = resampled(pixels, tile, grid, resampling, empty).astype("float64")
        result[np.isnan(result) | (result == empty)] = -1
        whole = np.where(holes, -1, np.nan_to_num(pixels, neginf=0) * 1000).astype("int32")
        expected = resampled(whole, tile, grid, resampling, -1)
        np.testing.assert_array_equal(result == -1, expected == -1)
        valid = expected != -1
        np.testing.assert_allclose(result[valid], expected[valid] / 1000, atol=0.002)
        assert 0.5 < valid.mean() < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("resampling", ["bilinear", "max"])
def test_nan_beside_a_tag_is_empty_for_every_merge_method(tmp_path: Path, method: str, resampling: str) -> None:
    """Oracle: the same tiles with NaN alone."""
    tagged, plain = [], []
    for number, corner in enumerate([(600000, 4500000), (600123, 4500057)]):
        pixels = noise(number, (40, 40), 100, 200, dtype="float32")
        holes = np.random.default_rng(number).random(pixels.shape)
        pixels[holes < 0.2] = np.nan
        plain.append(write_tile(tmp_path / f"plain{number}.tif", pixels, corner=corner))
        pixels[holes < 0.1] = -9999
        tagged.append(write_tile(tmp_path / f"tagged{number}.tif", pixels, corner=corner, nodata=-9999))
    for tiles, name in ((tagged, "tagged-out.tif"), (plain, "plain-out.tif")):
        options = MosaicOptions(merge_method=method, resampling=resampling, target=Target(resolution=10))
        write_mosaic(plan_mosaic(tiles, "B04", options), tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / "tagged-out.tif"), read(tmp_path / "plain-out.tif"))
    assert 0.5 < np.isfinite(read(tmp_path / "plain-out.tif")).mean() < 0.98
