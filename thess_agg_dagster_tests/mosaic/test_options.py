"""What makes mosaics ready for a time series, on pixels: areas, reduction, cloud masks, offsets. Oracles: numpy, GDAL."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.merge import merge
from rasterio.warp import reproject, transform

from thess_agg_dagster.mosaic.area import read_area
from thess_agg_dagster.mosaic.choices import METHODS
from thess_agg_dagster.mosaic.engine import MosaicStats, write_mosaic
from thess_agg_dagster.mosaic.inspection import Note, Source
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import plan_mosaic, plan_mosaics
from thess_agg_dagster.mosaic.sizes import Sizes
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster.mosaic.tiles import PlanError
from thess_agg_dagster_tests.rasters import DATA, SMALL, ZONE_34, ZONE_35, Array, noise, read, write_tile


def mosaic(
    sources: Sequence[Source], out: Path, band: str = "B04", sizes: Sizes = SMALL, **options: Any
) -> MosaicStats:
    plans, problems = plan_mosaics({band: sources}, MosaicOptions(sizes=sizes, **options))
    if problems:
        raise PlanError(problems[band])
    return write_mosaic(plans[band], out)


def classes(seed: int, shape: tuple[int, int]) -> Array:
    """Clouds and their shadows in patches of a few pixels; class 0 where nothing is."""
    patches = np.random.default_rng(seed).choice([0, 3, 4, 5, 6, 8, 9, 10], (-(-shape[0] // 6), -(-shape[1] // 6)))
    return np.kron(patches, np.ones((6, 6), int))[: shape[0], : shape[1]].astype("uint8")


# --- cloud mask -----------------------------------------------------------------------------------------------


def masked_by_hand(pixels: Array, scl: Array, mask: Sequence[int]) -> Array:
    return np.where(np.isin(np.kron(scl, np.ones((2, 2), int)), mask), 0, pixels).astype(pixels.dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jpeg2000", [False, True])
def test_a_clear_pixel_of_another_tile_wins(tmp_path: Path, method: str, jpeg2000: bool) -> None:
    """Oracle: rasterio.merge of tiles that numpy masked beforehand."""
    sources, by_hand, before = [], [], []
    for number, corner in enumerate([(600000, 4500000), (601200, 4500600), (600600, 4499000)]):
        pixels, scl = noise(number, (210, 190), high=3000), classes(number, (105, 95))
        pixels[:30, :50] = 0
        path = write_tile(tmp_path / f"{number}.tif", pixels, corner=corner, jpeg2000=jpeg2000)
        scl_path = write_tile(tmp_path / f"{number}-scl.tif", scl, corner=corner, pixel=20, jpeg2000=jpeg2000)
        sources.append(Source(path, scl_path))
        clear = masked_by_hand(pixels, scl, (3, 8, 9, 10))
        by_hand.append(write_tile(tmp_path / f"{number}-clear.tif", clear, corner=corner, nodata=0))
        before.append(write_tile(tmp_path / f"{number}-before.tif", pixels, corner=corner, nodata=0))
    stats = mosaic(sources, tmp_path / "out.tif", merge_method=method, mask_scl_classes=(3, 8, 9, 10))
    (expected,), transform = merge(by_hand, method=method, nodata=0)
    (whole,), _ = merge(before, method="first", nodata=0)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.transform == transform
        np.testing.assert_array_equal(out.read(1), expected)
    lost = (whole > 0) & (expected == 0)
    assert 0.02 < lost.mean() < 0.5
    assert stats.masked_share == lost.mean()


def test_tiles_of_two_zones_are_masked_where_they_lie(tmp_path: Path) -> None:
    """Oracle: the same mosaic (whose pixels other tests hold against GDAL) of tiles that numpy masked beforehand."""
    for resampling in ("nearest", "bilinear"):
        sources, by_hand = [], []
        for number, (crs, corner) in enumerate([(ZONE_35, (199980, 4500000)), (ZONE_34, (703000, 4500000))]):
            pixels, scl = noise(number, (200, 200), high=3000), classes(number, (100, 100))
            path = write_tile(tmp_path / f"{number}.tif", pixels, crs=crs, corner=corner)
            scl_path = write_tile(tmp_path / f"{number}-scl.tif", scl, crs=crs, corner=corner, pixel=20)
            sources.append(Source(path, scl_path))
            clear = masked_by_hand(pixels, scl, (8, 9))
            by_hand.append(Source(write_tile(tmp_path / f"{number}-clear.tif", clear, crs=crs, corner=corner)))
        mosaic(sources, tmp_path / "out.tif", resampling=resampling, mask_scl_classes=(8, 9))
        mosaic(by_hand, tmp_path / "expected.tif", resampling=resampling)
        np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(tmp_path / "expected.tif"))


@pytest.mark.parametrize(
    "options",
    [
        {"corner": (600400, 4499800)},  # covers a part
        {"corner": (800000, 4499800)},  # lies elsewhere
        {"corner": (800003, 4499800)},
        {"crs": ZONE_35},
    ],
)
def test_an_scl_tile_that_does_not_cover_its_tile_is_as_good_as_none(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (200, 200)))
    scl = write_tile(tmp_path / "scl.tif", np.full((40, 30), 9, "uint8"), pixel=20, **options)
    with pytest.raises(PlanError, match=r"scl\.tif: does not cover .*a\.tif, so it cannot mask it"):
        mosaic([Source(path, scl)], tmp_path / "out.tif", mask_scl_classes=(9,))
    stats = mosaic([Source(path, scl)], tmp_path / "out.tif", mask_scl_classes=(9,), missing_scl="unmasked")
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(path))
    assert stats.masked_share == 0


def test_without_scl_it_fails_or_goes_unmasked_as_asked(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "scene" / "B04.tif", noise(1, (100, 100)))
    source = Source(path, tmp_path / "scene" / "SCL.tif", scene_id="scene")
    with pytest.raises(PlanError, match=r"SCL\.tif: no such file"):
        mosaic([source], tmp_path / "out.tif", mask_scl_classes=(9,))
    plans, _ = plan_mosaics(
        {"B04": [source]}, MosaicOptions(mask_scl_classes=(9,), missing_scl="unmasked", sizes=SMALL)
    )
    assert plans["B04"].notes[0].text.startswith("scene is not masked: no such file")
    write_mosaic(plans["B04"], tmp_path / "out.tif")
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(path))


def test_classes_are_never_masked(tmp_path: Path) -> None:
    scl = write_tile(tmp_path / "scl.tif", classes(1, (100, 100)), pixel=20)
    mosaic([Source(scl, scl)], tmp_path / "out.tif", "SCL", mask_scl_classes=(8, 9))
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(scl))


# --- radiometric offset ---------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), empty=st.sampled_from([0, 65535, 7]), offsets=st.permutations([0, 1000]))
@settings(max_examples=15, deadline=None)
def test_the_offset_is_removed_pixel_by_pixel(seed: int, empty: int, offsets: list[int]) -> None:
    """Oracle: one number at a time. Nothing valid becomes empty, nothing empty becomes valid."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiles = [
            np.random.default_rng(seed + n).choice([0, 1, 7, 999, 1000, 1001, 1007, 5000, 65535], (30, 30))
            for n in (0, 1)
        ]
        paths = [write_tile(folder / f"{n}.tif", t.astype("uint16"), nodata=empty) for n, t in enumerate(tiles)]
        sources = [Source(path, offset=offset) for path, offset in zip(paths, offsets, strict=True)]
        mosaic(sources, folder / "out.tif", harmonize=True)
        out = read(folder / "out.tif")
        for row in range(30):
            for col in range(30):
                values = [
                    (int(t[row, col]), offset) for t, offset in zip(tiles, offsets, strict=True) if t[row, col] != empty
                ]
                if not values:
                    assert out[row, col] == empty
                    continue
                value, offset = values[0]
                expected = max(value - offset, 0)
                if expected == empty:
                    expected += 1 if offset else 0
                assert out[row, col] == expected


def test_what_has_no_offset_keeps_its_numbers(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (64, 64)))
    for band in ("AOT", "WVP", "SCL"):
        mosaic([Source(path, offset=1000)], tmp_path / "out.tif", band, harmonize=True)
        np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(path))
    mosaic([Source(path, offset=1000)], tmp_path / "out.tif", "B8A")
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(path))


def test_unknown_and_impossible_offsets_are_refused_and_mixed_ones_noted(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (64, 64)))
    with pytest.raises(PlanError, match="its processing baseline is unknown") as caught:
        mosaic([Source(path, offset=None)], tmp_path / "out.tif", harmonize=True)
    assert caught.value.problems[0].kind == "unknown_baseline"
    small = write_tile(tmp_path / "b.tif", noise(1, (64, 64), high=200, dtype="uint8"))
    for tile in (small, write_tile(tmp_path / "c.tif", noise(1, (64, 64)).astype("float32"))):
        with pytest.raises(PlanError, match="the offset of 1000 applies to Sentinel-2's digital numbers"):
            mosaic([Source(tile, offset=1000)], tmp_path / "out.tif", harmonize=True)
    mixed = [Source(path, offset=1000), Source(path, offset=0)]
    plans, _ = plan_mosaics({"B04": mixed}, MosaicOptions())
    assert "are mixed; harmonize removes it" in plans["B04"].notes[0].text
    plans, _ = plan_mosaics({"B04": mixed}, MosaicOptions(harmonize=True))
    assert plans["B04"].notes == (Note("offset_removed", "the radiometric offset was removed from 1 of 2 tiles"),)


# --- areas ----------------------------------------------------------------------------------------------------

POLYGON = "SRID=32634;POLYGON((600400 4499900, 602700 4499500, 602100 4497300, 601003 4498207, 600400 4499900))"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("aoi_mask", [False, True])
def test_an_area_against_a_cut_of_the_whole(tmp_path: Path, method: str, aoi_mask: bool) -> None:
    """Oracle: rasterio.merge of everything, cut to the polygon's bounds; outside of it emptied with GDAL's rasterizer."""
    paths = []
    for number, corner in enumerate([(600000, 4500000), (601500, 4500700), (600800, 4499000)]):
        paths.append(
            write_tile(tmp_path / f"{number}.tif", noise(number, (210, 190), high=3000), corner=corner, nodata=0)
        )
    area = read_area(POLYGON)
    stats = mosaic(
        [Source(path) for path in paths], tmp_path / "out.tif",
        merge_method=method, target=Target(aoi=area), aoi_mask=aoi_mask,
    )  # fmt: skip
    (expected,), transform = merge(paths, bounds=(600400, 4497300, 602700, 4499900), method=method, nodata=0)
    inside = rasterize([area.geom], expected.shape, transform=transform).astype(bool)
    if aoi_mask:
        expected = np.where(inside, expected, 0)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.transform == transform
        np.testing.assert_array_equal(out.read(1), expected)
    assert stats.valid_share == ((expected > 0)[inside].mean() if aoi_mask else (expected > 0).mean())


@pytest.mark.parametrize("jpeg2000", [False, True])
@pytest.mark.parametrize("aoi_mask", [False, True])
def test_only_blocks_that_the_area_touches_are_decoded(tmp_path: Path, jpeg2000: bool, aoi_mask: bool) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (640, 640)), jpeg2000=jpeg2000)
    # A thin strip from corner to corner; its bounds are the whole tile.
    strip = "SRID=32634;POLYGON((600000 4500000, 606400 4493700, 606400 4493600, 600000 4499900, 600000 4500000))"
    area = read_area(strip)
    sizes = replace(SMALL, chunk=64)
    stats = mosaic([Source(path)], tmp_path / "out.tif", sizes=sizes, target=Target(aoi=area), aoi_mask=aoi_mask)
    touched = rasterize(
        [area.geom], (10, 10), transform=rasterio.Affine(640, 0, 600000, 0, -640, 4500000), all_touched=True
    )
    assert 10 <= touched.sum() < 30
    if aoi_mask:
        assert stats.blocks_decoded <= touched.sum()
    out, pixels = read(tmp_path / "out.tif"), read(path)
    inside = rasterize([area.geom], pixels.shape, transform=rasterio.Affine(10, 0, 600000, 0, -10, 4500000)).astype(
        bool
    )
    np.testing.assert_array_equal(out[inside], pixels[inside])
    if not aoi_mask:
        np.testing.assert_array_equal(out, pixels)


def test_a_fixed_grid_wider_than_the_tiles_is_empty_there(tmp_path: Path) -> None:
    pixels = noise(1, (100, 100))
    path = write_tile(tmp_path / "a.tif", pixels)
    far = write_tile(tmp_path / "b.tif", pixels, corner=(700000, 4400000))
    target = Target(ZONE_34, grid="fixed", bounds=(599500, 4498500, 601500, 4500500))
    plans, _ = plan_mosaics({"B04": [Source(path), Source(far)]}, MosaicOptions(target=target, sizes=SMALL))
    assert plans["B04"].notes == (Note("outside_grid", "1 of 2 tiles lie outside the grid"),)
    write_mosaic(plans["B04"], tmp_path / "out.tif")
    expected = np.zeros((200, 200), "uint16")
    expected[50:150, 50:150] = pixels
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), expected)
    with pytest.raises(PlanError, match="no tile lies in the grid; check the grid"):
        mosaic([Source(far)], tmp_path / "out.tif", target=target)


# --- resolution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int16"])
@pytest.mark.parametrize("factor", [2, 3, 10])
def test_whole_pixels_are_averaged_without_the_empty_ones(tmp_path: Path, dtype: str, factor: int) -> None:
    """Oracles: numpy's masked mean; and GDAL's warper, which rounds halves of floats its own way."""
    pixels = noise(1, (300, 240), high=3000, dtype=dtype)
    pixels[np.random.default_rng(2).random(pixels.shape) < 0.3] = 0
    pixels[:50, :50] = 0
    nodata = None if dtype != "float32" else 0
    path = write_tile(tmp_path / "a.tif", pixels, nodata=nodata)
    mosaic([Source(path)], tmp_path / "out.tif", target=Target(resolution=10 * factor))
    shape = (300 // factor, factor, 240 // factor, factor)
    mean = np.ma.masked_equal(pixels, 0).astype(float).reshape(shape).mean(axis=(1, 3))
    expected = mean.filled(0).astype(dtype) if dtype == "float32" else np.floor(mean + 0.5).filled(0).astype(dtype)
    with rasterio.open(tmp_path / "out.tif") as out:
        result, profile = out.read(1), out.profile
    result = np.nan_to_num(result)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    warped = np.zeros(result.shape, dtype)
    reproject(
        pixels, warped, src_transform=rasterio.open(path).transform, src_crs=ZONE_34, src_nodata=0, dst_nodata=0,
        dst_transform=profile["transform"], dst_crs=ZONE_34, resampling=Resampling.average,
    )  # fmt: skip
    assert np.abs(result - warped.astype(float)).max() <= (1 if dtype != "float32" else 0.01)


def test_a_mean_is_never_taken_for_empty(tmp_path: Path) -> None:
    for number, (dtype, tag, pair, expected) in enumerate(
        [
            ("uint8", 7, (6, 8), 8),
            ("int16", None, (-5, 5), 1),
            ("float32", 0.5, (0.0, 1.0), np.nextafter(np.float32(0.5), 1)),
        ]
    ):
        tile = write_tile(tmp_path / f"{number}.tif", np.tile(np.array(pair, dtype), (64, 32)), nodata=tag)
        stats = mosaic([Source(tile)], tmp_path / "out.tif", target=Target(resolution=20))
        assert np.unique(read(tmp_path / "out.tif")).tolist() == [expected]
        assert stats.valid_share == 1


def test_pixels_at_the_edge_of_a_tile_are_averaged_of_what_is_there(tmp_path: Path) -> None:
    pixels = noise(1, (101, 101))
    path = write_tile(tmp_path / "a.tif", pixels, corner=(600010, 4500010))
    target = Target(ZONE_34, grid="fixed", bounds=(600000, 4499000, 601060, 4500020), resolution=20)
    mosaic([Source(path)], tmp_path / "out.tif", target=target)
    canvas = np.zeros((102, 106), "uint16")
    canvas[1:, 1:102] = pixels
    mean = np.ma.masked_equal(canvas, 0).astype(float).reshape(51, 2, 53, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), np.floor(mean + 0.5).filled(0))


@pytest.mark.parametrize(("reduction", "expected"), [("average", 9), ("mode", 9), ("nearest", 4)])
def test_classes_are_reduced_to_the_most_frequent_or_the_nearest(tmp_path: Path, reduction: str, expected: int) -> None:
    patch = np.array([[9, 9, 5], [9, 4, 5], [9, 4, 6]], "uint8")
    path = write_tile(tmp_path / "a.tif", np.tile(patch, (30, 30)), pixel=20)
    mosaic([Source(path)], tmp_path / "out.tif", "SCL", target=Target(resolution=60), reduction=reduction)
    assert np.unique(read(tmp_path / "out.tif")).tolist() == [expected]


def test_a_band_on_the_grid_of_another_needs_no_resampling_later(tmp_path: Path) -> None:
    corner = (600000, 4500000)
    band, scl = noise(1, (200, 202)), classes(1, (105, 90))
    paths = {
        "SCL": [Source(write_tile(tmp_path / "scl.tif", scl, corner=corner, pixel=20))],
        "B04": [Source(write_tile(tmp_path / "b04.tif", band, corner=corner))],
    }
    plans, _ = plan_mosaics(paths, MosaicOptions(target=Target(match_band="B04"), sizes=SMALL))
    assert plans["SCL"].grid == plans["B04"].grid
    write_mosaic(plans["SCL"], tmp_path / "out.tif")
    expected = np.zeros((200, 202), "uint8")
    expected[:, :180] = np.kron(scl, np.ones((2, 2), "uint8"))[:200]
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), expected)
    coarse, _ = plan_mosaics(paths, MosaicOptions(target=Target(match_band="SCL"), sizes=SMALL))
    write_mosaic(coarse["B04"], tmp_path / "coarse.tif")
    mean = np.floor(band[:200, :180].reshape(100, 2, 90, 2).mean(axis=(1, 3)) + 0.5)
    np.testing.assert_array_equal(read(tmp_path / "coarse.tif")[:100, :90], mean)


def test_a_tile_of_another_zone_is_averaged_over_evenly_spread_samples(tmp_path: Path) -> None:
    """Oracle: GDAL's exact projection of every sample's centre. Samples near a pixel's edge may fall on either side."""
    crs, corner, k = ZONE_35, (199980, 4500000), 4
    pixels = noise(1, (300, 300), 100, 3000)
    pixels[:40, :200] = 0
    path = write_tile(tmp_path / "a.tif", pixels, crs=crs, corner=corner)
    mosaic([Source(path)], tmp_path / "out.tif", target=Target(ZONE_34, resolution=10 * k))
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(path) as tile:
        result = out.read(1)
        rows, cols = np.indices((result.shape[0] * k, result.shape[1] * k))
        x, y = out.transform * ((cols.ravel() + 0.5) / k, (rows.ravel() + 0.5) / k)
        sx, sy = transform(ZONE_34, crs, x, y)
        col, row = ~tile.transform * (np.array(sx), np.array(sy))
    near_edge = np.minimum(np.abs(col - np.round(col)), np.abs(row - np.round(row))) < 1 / 32
    row, col = np.floor(row).astype(int), np.floor(col).astype(int)
    inside = (row >= 0) & (row < 300) & (col >= 0) & (col < 300)
    samples = np.zeros(row.size, int)
    samples[inside] = pixels[row[inside], col[inside]]
    blocks = np.ma.masked_equal(samples, 0).astype(float).reshape(result.shape[0], k, -1, k)
    expected = np.floor(blocks.mean(axis=(1, 3)) + 0.5).filled(0)
    certain = ~near_edge.reshape(blocks.shape).any(axis=(1, 3))
    assert certain.mean() > 0.1
    np.testing.assert_array_equal(result[certain], expected[certain])
    assert (result != expected).mean() < 0.2


def test_on_real_reflectance_the_mean_of_samples_is_that_of_gdal(tmp_path: Path) -> None:
    with rasterio.open(DATA / "B08.tif") as source:
        pixels = source.read(1)
    path = write_tile(tmp_path / "a.tif", pixels, crs=ZONE_35, corner=(199980, 4500000))
    mosaic([Source(path)], tmp_path / "out.tif", target=Target(ZONE_34, resolution=20))
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(path) as tile:
        result, there = out.read(1), np.zeros(out.shape, "uint16")
        reproject(
            pixels, there, src_transform=tile.transform, src_crs=ZONE_35, src_nodata=0, dst_nodata=0,
            dst_transform=out.transform, dst_crs=ZONE_34, resampling=Resampling.average, tolerance=0.01,
        )  # fmt: skip
    both = (result > 0) & (there > 0)
    assert ((result > 0) != (there > 0)).mean() < 0.01
    difference = result[both].astype(float) - there[both]
    print(f"bias {difference.mean():.2f}, rms {difference.std():.1f}, std of the mean {there[both].std():.1f}")
    assert abs(difference.mean()) < 0.002 * there[both].mean()
    assert difference.std() < 0.15 * there[both].std()


# --- overviews ------------------------------------------------------------------------------------------------


def test_overviews_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (256, 256)))
    with rasterio.open(path, "r+") as tile:
        tile.build_overviews([2, 4], Resampling.rms)
    with rasterio.open(path, overview_level=1) as tile:
        overview = tile.read(1)
    target = Target(resolution=40)
    mosaic([Source(path)], tmp_path / "out.tif", target=target, overviews=True)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), overview)
    mosaic([Source(path)], tmp_path / "mean.tif", target=target)
    mean = read(path).reshape(64, 4, 64, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(read(tmp_path / "mean.tif"), np.floor(mean + 0.5))
    # Between two levels: the finer one, averaged on.
    mosaic([Source(path)], tmp_path / "six.tif", target=Target(resolution=60), overviews=True)
    with rasterio.open(path, overview_level=0) as tile:
        half = tile.read(1)[:126, :126].reshape(42, 3, 42, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(read(tmp_path / "six.tif")[:42, :42], np.floor(half + 0.5))


def test_classes_and_what_is_masked_never_start_from_overviews(tmp_path: Path) -> None:
    """An overview mixes 4 and 9 into what is neither, and clouds into the clear."""
    scl = np.kron(np.tile([4, 9], (128, 64)), np.ones((1, 1), int)).astype("uint8")
    path = write_tile(tmp_path / "scl.tif", scl, pixel=20, jpeg2000=True)
    band = write_tile(tmp_path / "b.tif", np.kron(np.where(scl == 9, 9000, 100), np.ones((2, 2))).astype("uint16"))
    with rasterio.open(band, "r+") as tile:
        tile.build_overviews([2, 4], Resampling.average)
    target = Target(resolution=40)
    for reduction in ("average", "nearest"):
        mosaic([Source(path)], tmp_path / "out.tif", "SCL", target=target, overviews=True, reduction=reduction)
        assert set(np.unique(read(tmp_path / "out.tif"))) <= {4, 9}
    mosaic([Source(band, path)], tmp_path / "out.tif", target=target, overviews=True, mask_scl_classes=(9,))
    assert np.unique(read(tmp_path / "out.tif")).tolist() == [100]


def test_levels_are_chosen_by_what_a_pixel_covers_on_the_ground(tmp_path: Path) -> None:
    """In Web Mercator at 40 degrees 40 m are 30 m on the ground: the level of 40 m is too coarse."""
    path = write_tile(tmp_path / "a.tif", noise(1, (256, 256)))
    with rasterio.open(path, "r+") as tile:
        tile.build_overviews([2, 4], Resampling.average)
    options = MosaicOptions(target=Target("EPSG:3857", resolution=40), overviews=True)
    (layer,) = plan_mosaic([path], "B04", options).layers
    assert layer.tile.geobox.resolution.x == 20
    options = MosaicOptions(target=Target(ZONE_35, resolution=40), overviews=True)
    (layer,) = plan_mosaic([path], "B04", options).layers
    assert layer.tile.geobox.resolution.x == 40
    # Finer on the ground than the tile: no reduction at all.
    plan = plan_mosaic([path], "B04", MosaicOptions(target=Target("EPSG:3857", resolution=12), resampling="cubic"))
    assert plan.layers[0].resampling is Resampling.cubic


@pytest.mark.parametrize("band", ["B04", "B08"])
def test_how_far_jpeg_2000_levels_are_from_the_mean(tmp_path: Path, band: str) -> None:
    """What README states: on real reflectance a level is off by a few per cent of the texture, and by no bias."""
    with rasterio.open(DATA / f"{band}.tif") as source:
        pixels = source.read(1)[:512, :512]
    path = write_tile(tmp_path / f"{band}.tif", pixels, jpeg2000=True, block=256)
    target = Target(resolution=20)
    mosaic([Source(path)], tmp_path / "level.tif", target=target, overviews=True)
    mosaic([Source(path)], tmp_path / "mean.tif", target=target)
    level, mean = (read(tmp_path / name).astype(float) for name in ("level.tif", "mean.tif"))
    difference = level - mean
    print(f"{band}: bias {difference.mean():.2f}, rms {difference.std():.1f}, std of the mean {mean.std():.1f}")
    assert 0 < difference.std() < 0.35 * mean.std()
    assert abs(difference.mean()) < 0.01 * mean.mean()


def test_the_same_options_for_one_band_alone(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (64, 64)))
    plan = plan_mosaic([path], "B04", MosaicOptions(target=Target(ZONE_35)))
    assert [tile.path for tile in plan.reprojected] == [path]


def test_windows_that_share_a_block_cannot_be_asked_for() -> None:
    """Two threads would write it; about one in 1450 random plans of that kind once crashed GDAL."""
    with pytest.raises(ValueError, match="window=100 is not a multiple of block=64"):
        Sizes(window=100, block=64)
    assert Sizes(window=128, block=64).window == 128
