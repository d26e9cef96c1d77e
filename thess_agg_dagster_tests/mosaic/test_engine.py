"""Mosaics against oracles: numpy by brute force, rasterio.merge, and a plain warp onto the same grid."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.merge import merge
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject, transform

from thess_agg_dagster.mosaic.choices import COMPRESSIONS, METHODS, RESAMPLINGS
from thess_agg_dagster.mosaic.engine import MosaicStats, WriteError, write_mosaic
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import plan_mosaic
from thess_agg_dagster.mosaic.tiles import PlanError, TileError
from thess_agg_dagster.sample import TILE_SIZE, TILES
from thess_agg_dagster_tests.rasters import DATA, SMALL, ZONE_34, ZONE_35, Array, half_empty, noise, read, write_tile


def mosaic(paths: Sequence[Path], out: Path, band: str = "B04", **options: Any) -> MosaicStats:
    return write_mosaic(plan_mosaic(paths, band, MosaicOptions(**options)), out)


# --- numpy by brute force -------------------------------------------------------------------------------------


def brute_force(tiles: list[tuple[int, int, Array]], shape: tuple[int, int], method: str, nodata: float) -> Array:
    """Pixel by pixel: the valid values at each place, in order, reduced by the method."""
    out = np.full(shape, nodata, float)
    for row in range(shape[0]):
        for col in range(shape[1]):
            values = [
                float(pixels[row - top, col - left])
                for top, left, pixels in tiles
                if 0 <= row - top < pixels.shape[0]
                and 0 <= col - left < pixels.shape[1]
                and pixels[row - top, col - left] != 0
            ]
            if values:
                reduce = {"first": lambda v: v[0], "last": lambda v: v[-1], "count": len}
                out[row, col] = (reduce | {"min": min, "max": max, "sum": sum})[method](values)
    return out


@given(
    method=st.sampled_from(METHODS),
    places=st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(1, 20), st.integers(1, 20)),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 1000),
    nodata=st.sampled_from([math.nan, 65535.0, -1.0]),
    dtype=st.sampled_from(["uint8", "uint16", "int16"]),
)
@settings(max_examples=60, deadline=None)
def test_merge_methods_against_brute_force(
    method: str, places: list[tuple[int, int, int, int]], seed: int, nodata: float, dtype: str
) -> None:
    high = {"uint8": 255, "uint16": 65534, "int16": 32767}[dtype]
    top0, left0 = places[0][:2]
    with tempfile.TemporaryDirectory() as folder:
        tiles, paths = [], []
        for number, (top, left, rows, cols) in enumerate(places):
            rng = np.random.default_rng(seed + number)
            pixels = (rng.integers(1, high, (rows, cols)) * rng.integers(0, 2, (rows, cols))).astype(dtype)
            tiles.append((top, left, pixels))
            corner = (600000 + 10 * (left - left0), 4500000 - 10 * (top - top0))
            paths.append(write_tile(Path(folder) / f"{number}.tif", pixels, corner=corner, tiled=False))
        out = Path(folder) / "out.tif"
        stats = mosaic(paths, out, merge_method=method, nodata=nodata, threads=2)
        top, left = min(t for t, *_ in tiles), min(t[1] for t in tiles)
        shape = (max(t + p.shape[0] for t, _, p in tiles) - top, max(c + p.shape[1] for _, c, p in tiles) - left)
        empty = 0 if math.isnan(nodata) else nodata
        expected = brute_force([(t - top, c - left, p) for t, c, p in tiles], shape, method, empty)
        np.testing.assert_array_equal(read(out).astype(float), expected)
        valid = brute_force([(t - top, c - left, p) for t, c, p in tiles], shape, "count", 0) > 0
        assert stats.valid_pixels == valid.sum()
        assert stats.valid_share == valid.mean()


# --- rasterio.merge -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jpeg2000", [False, True])
def test_tiles_of_one_grid_against_rasterio_merge(tmp_path: Path, method: str, jpeg2000: bool) -> None:
    paths, tagged = [], []
    for number, corner in enumerate([(600000, 4500000), (601500, 4500700), (600800, 4499000)]):
        pixels = noise(number, (210, 190), high=3000)
        pixels[: 40 + 10 * number, :70] = 0
        paths.append(write_tile(tmp_path / f"{number}.tif", pixels, corner=corner, jpeg2000=jpeg2000))
        # rasterio.merge needs to be told what we know: that 0 is empty.
        tagged.append(write_tile(tmp_path / f"{number}-tagged.tif", pixels, corner=corner, nodata=0))
    mosaic(paths, tmp_path / "out.tif", merge_method=method, sizes=SMALL)
    expected, expected_transform = merge(tagged, method=method, nodata=0)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.transform == expected_transform
        np.testing.assert_array_equal(out.read(1), expected[0])


@pytest.mark.parametrize("method", METHODS)
def test_float_tiles_with_nan_and_a_tag(tmp_path: Path, method: str) -> None:
    paths, valid = [], []
    for number in range(2):
        pixels = noise(number, (150, 150), high=100).astype("float32") / 7
        pixels[number * 20 : number * 20 + 30, :50] = -9999
        pixels[:, 100 + number * 10 : 120] = np.nan
        paths.append(write_tile(tmp_path / f"{number}.tif", pixels, nodata=-9999))
        valid.append(np.where((pixels == -9999) | np.isnan(pixels), np.nan, pixels))
    mosaic(paths, tmp_path / "out.tif", merge_method=method, sizes=SMALL)
    a, b = valid
    expected = {
        "first": np.where(np.isnan(a), b, a),
        "last": np.where(np.isnan(b), a, b),
        "min": np.fmin(a, b),
        "max": np.fmax(a, b),
        "sum": np.where(np.isnan(a), b, np.where(np.isnan(b), a, a + b)),
        "count": np.where(np.isnan(a) & np.isnan(b), np.nan, (~np.isnan(a)).astype("float32") + ~np.isnan(b)),
    }[method]
    out = read(tmp_path / "out.tif")
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, expected.astype("float32"))


# --- two zones ------------------------------------------------------------------------------------------------


def real_geometry(tile: str, pixel: int = 100) -> tuple[str, tuple[float, float], int]:
    epsg, left, top = TILES[tile]
    return f"EPSG:{epsg}", (left, top), TILE_SIZE // pixel


def two_zone_tiles(tmp_path: Path, pixel: int = 100, jpeg2000: bool = False) -> list[Path]:
    paths = []
    for number, name in enumerate(["T35TKF", "T34TFL", "T34TFK"]):
        crs, corner, size = real_geometry(name, pixel)
        pixels = noise(number, (size, size))
        pixels[:, : size // 5] = 0
        paths.append(
            write_tile(
                tmp_path / f"{name}.tif", pixels, crs=crs, corner=corner, pixel=pixel, jpeg2000=jpeg2000, block=128
            )
        )
    return paths


@pytest.mark.parametrize("jpeg2000", [False, True])
def test_nearest_across_zones_takes_the_pixel_each_centre_falls_in(tmp_path: Path, jpeg2000: bool) -> None:
    """Oracle: GDAL's exact projection of every target pixel's centre. A lookup may differ by 1/32 of a source pixel."""
    paths = two_zone_tiles(tmp_path, 200, jpeg2000)
    mosaic(paths, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        result, grid = out.read(1), out.transform
    rows, cols = np.indices(result.shape)
    x, y = grid * (cols.ravel() + 0.5, rows.ravel() + 0.5)
    expected = np.zeros(result.size, "uint16")
    uncertain = np.zeros(result.size, bool)
    for path in paths:
        with rasterio.open(path) as tile:
            pixels = tile.read(1)
            sx, sy = transform(ZONE_35, tile.crs, x, y)
            col, row = ~tile.transform * (np.array(sx), np.array(sy))
        if path is not paths[0]:
            near_edge = np.minimum(np.abs(col - np.round(col)), np.abs(row - np.round(row)))
            uncertain |= near_edge < 1 / 32
        row, col = np.floor(row).astype(int), np.floor(col).astype(int)
        inside = (row >= 0) & (row < pixels.shape[0]) & (col >= 0) & (col < pixels.shape[1])
        values = np.zeros_like(expected)
        values[inside] = pixels[row[inside], col[inside]]
        expected = np.where(expected == 0, values, expected)
    certain = ~uncertain
    assert certain.mean() > 0.75
    np.testing.assert_array_equal(result.ravel()[certain], expected[certain])
    assert (result.ravel() != expected).mean() < 0.01
    assert (result > 0).mean() > 0.5


def test_the_first_tile_arrives_bit_for_bit(tmp_path: Path) -> None:
    paths = two_zone_tiles(tmp_path)
    mosaic(paths, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(paths[0]) as first:
        window = out.window(*first.bounds).round_offsets().round_lengths()
        there, here = out.read(1, window=window), first.read(1)
    valid = here > 0
    np.testing.assert_array_equal(there[valid], here[valid])


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_every_resampling_against_one_warp_of_the_whole_tile(tmp_path: Path, resampling: str) -> None:
    """Windows join without seams: the same as GDAL warping each whole tile onto the grid at once."""
    crs_a, corner_a, _ = real_geometry("T35TKF")
    _, corner_b, _ = real_geometry("T34TFL")
    a = write_tile(tmp_path / "a.tif", noise(1, (150, 150), 1, 200), crs=crs_a, corner=corner_a, pixel=100)
    pixels = noise(2, (180, 180), 100, 200)
    pixels[100:, 150:] = 0
    b = write_tile(tmp_path / "b.tif", pixels, crs=ZONE_34, corner=(corner_b[0] + 98000, corner_b[1] - 5000), pixel=100)
    mosaic([a, b], tmp_path / "out.tif", resampling=resampling, sizes=SMALL)
    with rasterio.open(tmp_path / "out.tif") as out:
        result, profile = out.read(1), out.profile
    with (
        rasterio.open(b) as tile,
        WarpedVRT(
            tile, src_nodata=0, nodata=0, resampling=Resampling[resampling], tolerance=0.01, XSCALE=1, YSCALE=1,
            **{key: profile[key] for key in ("crs", "transform", "width", "height")},
        ) as vrt,
    ):  # fmt: skip
        warped = vrt.read(1)
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(a) as first:
        window = out.window(*first.bounds).round_offsets().round_lengths()
        top, left = int(window.row_off), int(window.col_off)
        warped[top : top + 150, left : left + 150] = first.read(1)
    assert (warped > 0).mean() > 0.3
    different = result != warped
    assert ((result > 0) != (warped > 0)).mean() < 0.005
    if resampling in ("nearest", "mode", "min", "max", "med", "q1", "q3"):
        assert different.mean() < 0.02
    else:  # smooth kernels: rounding may fall the other way, no more
        both = (result > 0) & (warped > 0)
        assert np.abs(result[both].astype(int) - warped[both]).max() <= 3
        assert different.mean() < 0.05


@pytest.mark.parametrize("resampling", ["nearest", "average"])
def test_a_finer_tile_is_brought_to_the_first_tiles_pixels(tmp_path: Path, resampling: str) -> None:
    coarse = write_tile(tmp_path / "a.tif", noise(1, (80, 80), 1, 200), pixel=20)
    fine_pixels = np.kron(noise(2, (100, 100), 1, 200), np.ones((2, 2), "uint16"))
    fine = write_tile(tmp_path / "b.tif", fine_pixels, corner=(601000, 4499000), pixel=10)
    mosaic([coarse, fine], tmp_path / "out.tif", resampling=resampling, sizes=SMALL)
    expected = np.zeros((150, 150), "uint16")
    expected[50:, 50:] = fine_pixels[::2, ::2]
    expected[:80, :80] = read(coarse)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), expected)


def test_a_tile_off_the_grid_by_a_part_of_a_pixel_is_looked_up(tmp_path: Path) -> None:
    a = write_tile(tmp_path / "a.tif", noise(1, (70, 70)))
    pixels = noise(2, (70, 70))
    b = write_tile(tmp_path / "b.tif", pixels, corner=(600703, 4500000))
    mosaic([a, b], tmp_path / "out.tif", sizes=SMALL)
    out = read(tmp_path / "out.tif")
    assert out.shape == (70, 141)
    np.testing.assert_array_equal(
        out[:, 70:140], pixels
    )  # centres at 705, 715, ... fall in the pixels from 703, 713, ...
    assert (out[:, 140] == 0).all()


# --- the real scene -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jpeg2000", [False, True])
@pytest.mark.parametrize("band", ["B04", "B08"])
def test_real_pixels_cut_into_tiles_merge_back(tmp_path: Path, band: str, jpeg2000: bool) -> None:
    with rasterio.open(DATA / f"{band}.tif") as source:
        scene, grid, crs = source.read(1), source.transform, source.crs
    paths = []
    for top, left in [(0, 0), (0, 330), (290, 0), (290, 330)]:
        pixels = scene[top : top + 350, left : left + 390]
        corner = grid * (left, top)
        path = tmp_path / f"{top}-{left}" / f"{band}.tif"
        paths.append(write_tile(path, pixels, crs=str(crs), corner=corner, jpeg2000=jpeg2000, block=128))
    mosaic(paths, tmp_path / "out.tif", band, sizes=SMALL)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.transform == grid
        assert out.crs == crs
        np.testing.assert_array_equal(out.read(1), scene)


def test_a_real_tile_warped_to_the_next_zone_comes_back_within_half_a_pixel(tmp_path: Path) -> None:
    with rasterio.open(DATA / "B08.tif") as source:
        scene, grid = source.read(1), source.transform
    west = write_tile(tmp_path / "west.tif", scene[:, :400], crs="EPSG:32618", corner=(grid.c, grid.f))
    # The eastern part, as the archive would deliver it in zone 19: a plain nearest warp, by GDAL.
    east_grid = Affine(10, 0, grid.c + 3500, 0, -10, grid.f)
    east_scene = scene[:, 350:]
    xs, ys = transform("EPSG:32618", "EPSG:32619", [east_grid.c, grid.c + 7200] * 2, [grid.f] * 2 + [grid.f - 6400] * 2)
    corner = (10 * math.floor(min(xs) / 10), 10 * math.ceil(max(ys) / 10))
    size = (math.ceil((corner[1] - min(ys)) / 10) + 1, math.ceil((max(xs) - corner[0]) / 10) + 1)
    warped = np.zeros(size, "uint16")
    zone_19 = Affine(10, 0, corner[0], 0, -10, corner[1])
    reproject(
        east_scene, warped, src_transform=east_grid, src_crs="EPSG:32618", dst_transform=zone_19, dst_crs="EPSG:32619",
        src_nodata=0, dst_nodata=0, resampling=Resampling.nearest, tolerance=0,
    )  # fmt: skip
    east = write_tile(tmp_path / "east.tif", warped, crs="EPSG:32619", corner=corner)
    mosaic([west, east], tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        result, offset = out.read(1), ~out.transform * (grid.c, grid.f)
    left, top = (round(v) for v in offset)
    there = result[top : top + 640, left : left + 720]
    np.testing.assert_array_equal(there[:, :400], scene[:, :400])
    # Twice nearest (there and back) moves a value by at most half a pixel's diagonal, twice: every warped pixel is one
    # of the 3 x 3 around it, and most are the pixel itself.
    inner = (slice(5, 635), slice(405, 715))
    neighbours = np.stack([np.roll(scene, (dr, dc), (0, 1))[inner] for dr in (-1, 0, 1) for dc in (-1, 0, 1)])
    assert (there[inner] == neighbours).any(axis=0).mean() > 0.999
    best = [(there[inner] == n).mean() for n in neighbours]
    assert np.argmax(best) == 4
    assert best[4] > 0.6


# --- what is written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_the_file_is_tiled_compressed_and_labelled(tmp_path: Path, compress: str) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (700, 600)))
    plan = plan_mosaic([path], "B04", MosaicOptions(compress=compress))
    stats = write_mosaic(plan, tmp_path / "out.tif", lambda: {"scenes": "S2A"})
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.block_shapes == [(512, 512)]
        assert out.profile.get("compress", "none") == compress
        assert out.nodata == 0
        assert out.descriptions == ("B04",)
        assert out.tags()["scenes"] == "S2A"
        np.testing.assert_array_equal(out.read(1), read(path))
    assert stats.bytes == (tmp_path / "out.tif").stat().st_size


def test_empty_blocks_take_no_room(tmp_path: Path) -> None:
    a = write_tile(tmp_path / "a.tif", noise(1, (256, 256)))
    b = write_tile(tmp_path / "b.tif", noise(2, (256, 256)), corner=(600000 + 10 * 1300, 4500000 - 10 * 1300))
    stats = mosaic([a, b], tmp_path / "out.tif", compress="none")
    assert stats.bytes < 5.2 * 512 * 512 * 2  # 1 block of 16 for a, 4 for b
    out = read(tmp_path / "out.tif")
    assert (out > 0).sum() == 2 * 256 * 256
    np.testing.assert_array_equal(out[1300:, 1300:], read(b))


def test_nodata_that_is_a_valid_value_elsewhere_is_counted(tmp_path: Path) -> None:
    a = write_tile(tmp_path / "a.tif", noise(1, (20, 20)), nodata=0)
    pixels = noise(2, (20, 20))
    pixels[:2] = 0
    b = write_tile(tmp_path / "b.tif", pixels, corner=(600200, 4500000), nodata=65535)
    plan = plan_mosaic([a, b], "B04", MosaicOptions())
    assert any("different nodata values" in note.text for note in plan.notes)
    assert write_mosaic(plan, tmp_path / "out.tif").overwritten_pixels == 40


# --- what goes wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jpeg2000", [False, True])
def test_truncated_pixels_are_found_and_named(tmp_path: Path, jpeg2000: bool) -> None:
    path = write_tile(tmp_path / "S2A" / "B04.tif", noise(1, (400, 400)), jpeg2000=jpeg2000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises((TileError, PlanError), match="S2A/B04.tif.*download the tile again"):
        mosaic([path], tmp_path / "out.tif")


def test_a_folder_that_is_not_there_is_a_write_error(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "a.tif", noise(1, (20, 20)))
    with pytest.raises(WriteError, match="cannot be written"):
        mosaic([path], tmp_path / "nowhere" / "out.tif")


def test_all_problems_are_found_at_once(tmp_path: Path) -> None:
    good = write_tile(tmp_path / "good.tif", noise(1, (20, 20)))
    blind = write_tile(tmp_path / "blind.tif", noise(1, (20, 20)), crs=None)
    tagged = write_tile(tmp_path / "tagged.tif", noise(1, (20, 20)).astype("float32"), nodata=1)
    with pytest.raises(PlanError) as caught:
        plan_mosaic([tmp_path / "gone.tif", good, blind, tagged], "B04", MosaicOptions(dtype="uint8"))
    assert [problem.kind for problem in caught.value.problems] == ["missing_input", "unknown_crs"]


def test_dtypes_that_cannot_be_joined_are_a_conflict(tmp_path: Path) -> None:
    a = write_tile(tmp_path / "a.tif", noise(1, (20, 20)))
    with pytest.raises(PlanError) as caught:
        plan_mosaic([a], "B04", MosaicOptions(dtype="uint8"))
    assert caught.value.problems[0].kind == "dtype_conflict"
    assert "uint8" in str(caught.value)


def test_a_tile_a_continent_away_is_refused_with_both_positions(tmp_path: Path) -> None:
    here = write_tile(tmp_path / "here.tif", noise(1, (100, 100)))
    there = write_tile(tmp_path / "there.tif", noise(2, (100, 100)), corner=(600000, 1500000))
    with pytest.raises(PlanError, match=r"here.tif at 40\.\d+, 22\.\d+ .*there.tif at 13\.\d+"):
        plan_mosaic([here, there], "B04", MosaicOptions())


@pytest.mark.parametrize("compress", ["zstd", "none"])
def test_a_file_that_could_not_be_written_whole_is_an_error(tmp_path: Path, compress: str) -> None:
    """Real file-size limits, from the first byte to the last: what fails while GDAL closes the file is told, too."""
    path = write_tile(tmp_path / "a.tif", noise(1, (1500, 1500)), block=256)
    options = MosaicOptions(compress=compress, threads=1)
    whole = write_mosaic(plan_mosaic([path], "B04", options), tmp_path / "whole.tif").bytes
    script = (
        "import sys, resource, signal; from pathlib import Path\n"
        "from thess_agg_dagster.mosaic.engine import WriteError, write_mosaic\n"
        "from thess_agg_dagster.mosaic.options import MosaicOptions\n"
        "from thess_agg_dagster.mosaic.plan import plan_mosaic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "plan = plan_mosaic([Path(sys.argv[1])], 'B04', MosaicOptions(compress=sys.argv[3], threads=1))\n"
        "for limit in sys.argv[4:]:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "    try: write_mosaic(plan, Path(sys.argv[2])); print('written')\n"
        "    except WriteError as error: print(error)\n"
    )
    limits = [1, 1000, 100_000, whole // 2, whole - 300_000, whole - 5000, whole - 500, whole - 1, whole]
    result = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path / "out.tif"), compress, *map(str, limits)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = result.stdout.splitlines()
    assert answers[-1] == "written"
    assert len(answers) == len(limits)
    assert all("cannot be written" in answer and "needs up to" in answer for answer in answers[:-1]), answers


@pytest.mark.parametrize(("nodata", "share"), [(math.nan, 1.0), (7, 1.0)])
def test_a_block_that_holds_nothing_but_valid_nodata_is_no_fault(tmp_path: Path, nodata: float, share: float) -> None:
    """-3 + 3 is a valid 0, and 7 a valid 7; both read as empty, which is counted, and nothing else is harmed."""
    a = write_tile(tmp_path / "a.tif", np.full((600, 600), -3, "int16"))
    b = write_tile(tmp_path / "b.tif", np.full((600, 600), 3 if math.isnan(nodata) else 10, "int16"))
    stats = mosaic([a, b], tmp_path / "out.tif", merge_method="sum", nodata=nodata)
    assert stats.overwritten_pixels == 600 * 600
    assert stats.valid_share == share
    assert (read(tmp_path / "out.tif") == (0 if math.isnan(nodata) else 7)).all()


# --- odd geometry ---------------------------------------------------------------------------------------------


def test_tiles_of_one_pixel(tmp_path: Path) -> None:
    paths = [
        write_tile(
            tmp_path / f"{n}.tif", np.full((1, 1), n + 1, "uint16"), corner=(600000 + 10 * n, 4500000), tiled=False
        )
        for n in range(3)
    ]
    mosaic(paths, tmp_path / "out.tif")
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), [[1, 2, 3]])


def test_tiles_that_only_touch_leave_no_gap(tmp_path: Path) -> None:
    pixels = [noise(n, (30, 30)) for n in range(2)]
    paths = [write_tile(tmp_path / f"{n}.tif", p, corner=(600000 + 300 * n, 4500000)) for n, p in enumerate(pixels)]
    mosaic(paths, tmp_path / "out.tif")
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), np.hstack(pixels))


def nearest_by_hand(paths: Sequence[Path], out: Path) -> tuple[Array, Array]:
    """The mosaic at ``out``, and what GDAL's exact projection of every pixel centre says it should be."""
    with rasterio.open(out) as file:
        result, grid, crs = file.read(1), file.transform, file.crs
    rows, cols = np.indices(result.shape)
    x, y = grid * (cols.ravel() + 0.5, rows.ravel() + 0.5)
    expected = np.zeros(result.size, result.dtype)
    for path in paths:
        with rasterio.open(path) as tile:
            pixels = tile.read(1)
            sx, sy = transform(crs, tile.crs, x, y)
            col, row = ~tile.transform * (np.array(sx), np.array(sy))
        row, col = np.floor(row).astype(int), np.floor(col).astype(int)
        inside = (row >= 0) & (row < pixels.shape[0]) & (col >= 0) & (col < pixels.shape[1])
        values = np.zeros_like(expected)
        values[inside] = pixels[row[inside], col[inside]]
        expected = np.where(expected == 0, values, expected)
    return result, expected.reshape(result.shape)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # Across the antimeridian: zone 60 and zone 1, near Fiji; then in the far north, where zones converge.
        (("EPSG:32760", (780000, 8100000)), ("EPSG:32701", (190000, 8100000))),
        (("EPSG:32633", (560000, 9300000)), ("EPSG:32635", (400000, 9300000))),
        # Polar stereographic beside UTM.
        (("EPSG:32633", (500000, 9328000)), ("EPSG:32661", (2190000, 1340000))),
    ],
    ids=["antimeridian", "84 degrees north", "polar stereographic"],
)
def test_zones_that_meet_at_the_ends_of_the_map(
    tmp_path: Path, first: tuple[str, tuple[float, float]], second: tuple[str, tuple[float, float]]
) -> None:
    paths = [
        write_tile(tmp_path / f"{n}.tif", noise(n, (300, 300)), crs=crs, corner=corner, pixel=200)
        for n, (crs, corner) in enumerate((first, second))
    ]
    mosaic(paths, tmp_path / "out.tif")
    result, expected = nearest_by_hand(paths, tmp_path / "out.tif")
    assert result.shape < (3000, 3000)
    assert (result != expected).mean() < 0.01
    assert ((result > 0) != (expected > 0)).mean() < 0.001


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_preview_and_histogram_against_the_file(tmp_path: Path, dtype: str) -> None:
    paths = [
        write_tile(tmp_path / "a.tif", noise(1, (901, 700), 0, 12, dtype)),
        write_tile(
            tmp_path / "b.tif", half_empty((500, 1100), dtype) % np.dtype(dtype).type(12), corner=(606000, 4496000)
        ),
    ]
    stats = mosaic(paths, tmp_path / "out.tif", "SCL", sizes=SMALL)
    pixels = read(tmp_path / "out.tif")
    assert pixels.shape == (901, 1700)
    np.testing.assert_array_equal(stats.preview, pixels[::3, ::3])  # the first step that leaves at most 800
    assert stats.histogram is not None
    np.testing.assert_array_equal(stats.histogram[1:], np.bincount(pixels.ravel(), minlength=256)[1:])
    assert stats.histogram[0] == 0  # 0 is empty here
    assert mosaic(paths, tmp_path / "out.tif").histogram is None  # of no band but one of classes
