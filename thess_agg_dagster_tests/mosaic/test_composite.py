"""Composites against numpy pixel by pixel, known geometry, and odc-stac with xarray on real pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from thess_agg_dagster.mosaic import composite, reducers
from thess_agg_dagster.mosaic.blocks import TileReader
from thess_agg_dagster.mosaic.composite import CompositeError, CompositeOptions, open_mosaics, write_composites
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.sizes import Sizes
from thess_agg_dagster_tests.rasters import DATA, Array, read, write_tile

TIMES, SHAPE = 5, (70, 90)


def some(seed: int, dtype: str = "uint16", high: int = 6) -> Array:
    """A stack with many ties, and pixels of no, one, two, all observations; 0 is empty."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, high, (TIMES, *SHAPE)) * (rng.random((TIMES, *SHAPE)) < rng.random(SHAPE))).astype(dtype)


def write(folder: Path, band: str, stack: Array, **options: Any) -> composite.Series:
    given: dict[str, Any] = {"nodata": 0, "block": 32} | options
    return open_mosaics(
        band, [write_tile(folder / f"{t}" / f"{band}.tif", each, **given) for t, each in enumerate(stack)]
    )


def make(folder: Path, stacks: dict[str, Array], **options: Any) -> dict[str, Array]:
    series = [write(folder, band, stack) for band, stack in stacks.items()]
    stats = write_composites(series, folder, CompositeOptions(**options), "count")
    found = {name: read(folder / f"{name}.tif") for name in (*stacks, "count")}
    for band in stacks:
        assert stats[band].valid_share == (found[band] != 0).mean()
        np.testing.assert_array_equal(stats[band].preview, found[band])
    return found


def pixel_by_pixel(stacks: dict[str, Array], reduce: Callable[[Array], Any], least: int) -> dict[str, Array]:
    """``reduce`` gets the valid observations of a pixel, shape (times, bands), and gives one value per band."""
    together = np.stack(list(stacks.values()), axis=-1)
    out, count = np.zeros((*SHAPE, len(stacks)), together.dtype), np.zeros(SHAPE, int)
    for row, col in np.ndindex(SHAPE):
        seen = together[:, row, col]
        seen = seen[(seen != 0).all(axis=1)]
        count[row, col] = len(seen)
        if len(seen) >= max(1, least):
            out[row, col] = reduce(seen)
    return {band: out[..., n] for n, band in enumerate(stacks)} | {"count": count}


@pytest.mark.parametrize("least", [0, 2, 4])
@pytest.mark.parametrize(
    ("method", "band", "reduce"),
    [
        ("median", "B04", lambda seen: np.rint(np.median(seen, axis=0))),
        ("mean", "B04", lambda seen: np.rint(seen.mean(axis=0))),
        ("median", "SCL", lambda seen: np.bincount(seen[:, 0]).argmax()),
    ],
)
def test_one_band(tmp_path: Path, method: str, band: str, reduce: Callable[[Array], Any], least: int) -> None:
    stacks = {band: some(1, "uint8" if band == "SCL" else "uint16")}
    found = make(tmp_path, stacks, method=method, min_observations=least)
    for name, expected in pixel_by_pixel(stacks, reduce, least).items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def greenest(seen: Array) -> Array:
    red, nir = seen.astype(float).T
    best: Array = seen[np.argmax((nir - red) / (nir + red))]
    return best


def test_the_greenest_day(tmp_path: Path) -> None:
    stacks = {"B04": some(2), "B08": some(3)}
    found = make(tmp_path, stacks, method="max_ndvi")
    for name, expected in pixel_by_pixel(stacks, greenest, 2).items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_the_greenest_day_of_several_baselines(tmp_path: Path) -> None:
    """Three times carry an offset, so their NDVI looks smaller than it is."""
    offsets = np.array([0, 1000, 1000, 0, 1000])
    true = {"B04": some(2, high=3000), "B08": some(3, high=6000)}
    stacks = {
        band: np.where(stack == 0, 0, stack + offsets[:, None, None]).astype("uint16") for band, stack in true.items()
    }
    series = [replace(write(tmp_path, band, stack), offsets=tuple(offsets)) for band, stack in stacks.items()]
    write_composites(series, tmp_path, CompositeOptions(method="max_ndvi"))
    found = {band: read(tmp_path / f"{band}.tif") for band in stacks}
    wrong = 0
    for row, col in np.ndindex(SHAPE):
        red, nir, carried = (stack[:, row, col].astype(float) for stack in (true["B04"], true["B08"], stacks["B04"]))
        seen = np.flatnonzero((red != 0) & (nir != 0))
        if len(seen) < 2:
            assert found["B04"][row, col] == 0
            continue
        red, nir = red[seen], nir[seen]
        best = seen[np.argmax((nir - red) / (nir + red))]
        assert found["B04"][row, col] == carried[best]
        raw, near = carried[seen], stacks["B08"][seen, row, col].astype(float)
        wrong += seen[np.argmax((near - raw) / (near + raw))] != best
    assert wrong > 200  # of 6300, had nobody looked at the offsets


@pytest.mark.parametrize("method", ["medoid", "geomedian"])
def test_no_point_is_nearer_to_all_observations(tmp_path: Path, method: str) -> None:
    stacks = {band: some(seed, high=3000) for seed, band in enumerate(("B02", "B03", "B04"))}
    found = make(tmp_path, stacks, method=method)
    counts = pixel_by_pixel(stacks, lambda seen: seen[0], 2)["count"]
    np.testing.assert_array_equal(found["count"], counts)
    together = np.stack(list(stacks.values()), axis=-1).astype(float)
    steps = np.array([[x, y, z] for x in (-3, 0, 3) for y in (-3, 0, 3) for z in (-3, 0, 3)])
    for row, col in np.ndindex(20, 30):
        seen = together[:, row, col]
        seen = seen[(seen != 0).all(axis=1)]
        point = np.array([found[band][row, col] for band in stacks], float)
        if len(seen) < 2:
            assert (point == 0).all()
            continue

        def far(points: Array, seen: Array = seen) -> Array:
            return np.asarray(np.linalg.norm(points[:, None] - seen[None], axis=2).sum(axis=1))

        if method == "medoid":
            assert far(point[None])[0] == pytest.approx(far(seen).min())
            assert (seen == point).all(axis=1).any()
        else:
            # Integers are off by up to half; a step of three in any direction leads away from the minimum.
            assert far(point[None])[0] <= min(far(seen).min() + 3, far(point + steps).min() + 1.5)


def corners(*points: tuple[float, float]) -> tuple[dict[str, Array], Array]:
    stack = np.array(points, float)[:, :, None]
    return {"x": stack[:, 0], "y": stack[:, 1]}, np.zeros((len(points), 1), bool)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 0), (600, 0), (600, 400), (0, 400)], (300, 200)),  # where the diagonals meet
        ([(0, 0), (500, 0), (700, 900), (0, 800)], (277.228, 356.436)),  # the same, askew
        ([(0, 0), (300, 10), (600, 0)], (300, 10)),  # an angle of more than 120 degrees: its own corner
        ([(0, 0), (200, 0), (100, 100 * math.sqrt(3))], (100, 100 / math.sqrt(3))),  # Fermat's point
        ([(5, 5), (5, 5), (5, 5), (90, 7)], (5, 5)),  # met by most
        ([(1, 1), (2, 2), (30, 30)], (2, 2)),  # in line: the middle
    ],
)
def test_geometric_medians_that_are_known(points: list[tuple[float, float]], expected: tuple[float, float]) -> None:
    bands, empty = corners(*points)
    found = reducers.geomedian(bands, empty)
    assert (found["x"][0], found["y"][0]) == pytest.approx(expected, abs=0.2)


@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from(["uint8", "int16", "float32"]))
@settings(max_examples=40, deadline=None)
def test_sorting(count: int, seed: int, dtype: str) -> None:
    stack = np.random.default_rng(seed).integers(-100 if dtype != "uint8" else 0, 100, (count, 7)).astype(dtype)
    np.testing.assert_array_equal(reducers.sorted_in_time(stack), np.sort(stack, axis=0))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("nodata", [-1.0, math.nan])
def test_other_dtypes_and_empty_values(tmp_path: Path, dtype: str, nodata: float) -> None:
    if dtype == "int16" and math.isnan(nodata):
        nodata = 32767.0
    values = some(4, high=30000).astype(float)
    stack = np.where(values == 0, nodata, values).astype(dtype)
    series = write(tmp_path, "B11", stack, nodata=nodata)
    write_composites([series], tmp_path, CompositeOptions(min_observations=1))
    valid = np.ma.masked_equal(values, 0)
    middle = np.ma.median(valid.astype(dtype).astype(float), axis=0)  # type: ignore[no-untyped-call]
    expected = (np.rint(middle) if dtype == "int16" else middle.astype(dtype)).filled(nodata)
    np.testing.assert_array_equal(read(tmp_path / "B11.tif"), expected)
    with rasterio.open(tmp_path / "B11.tif") as file:
        assert file.dtypes == (dtype,)
        np.testing.assert_equal(file.nodata, nodata)


def test_more_times_than_memory_holds(tmp_path: Path) -> None:
    """What does not fit waits in a file, and few files are open at a time."""
    stacks = {"B04": some(5), "B08": some(6)}
    expected = make(tmp_path / "all", stacks)
    few = Sizes(rows=7, stack_bytes=1000, open_files=3)
    found = make(tmp_path / "few", stacks, output=MosaicOptions(sizes=few))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_each_block_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[str, tuple[int, int]]] = []
    original = TileReader.decode

    def decode(self: TileReader, chunk: tuple[int, int]) -> Array:
        decoded.append((str(self.tile.path), chunk))
        return original(self, chunk)

    monkeypatch.setattr(TileReader, "decode", decode)
    stack = np.ones((3, 1100, 600), "uint16")
    series = write(tmp_path, "B04", stack, block=512)
    write_composites([series], tmp_path, CompositeOptions(output=MosaicOptions(threads=3)))
    assert len(decoded) == len(set(decoded)) == 3 * 3 * 2


@pytest.mark.parametrize(
    ("other", "what"),
    [({"corner": (600010, 4500000)}, "grid"), ({"nodata": 7}, "nodata"), ({"block": 64}, "blocks")],
)
def test_mosaics_that_do_not_stack_are_named(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    pixels = some(1)[0]
    paths = [
        write_tile(tmp_path / f"{n}.tif", pixels, **({"nodata": 0, "block": 32} | options))
        for n, options in enumerate(({}, other))
    ]
    with pytest.raises(
        CompositeError, match=f"1.tif: {what} differs from that of .*0.tif; aggregate both with grid=fixed"
    ):
        open_mosaics("B04", paths)


def test_what_a_method_needs(tmp_path: Path) -> None:
    series = [write(tmp_path, "B04", some(1))]
    with pytest.raises(CompositeError, match="max_ndvi needs B04 and B08"):
        write_composites(series, tmp_path, CompositeOptions(method="max_ndvi"))
    with pytest.raises(CompositeError, match="'mode' is not a method of composites"):
        write_composites(series, tmp_path, CompositeOptions(method="mode"))


def test_real_pixels_against_odc_stac_and_xarray(tmp_path: Path) -> None:
    """Six mosaics of a real scene: as it lies, turned and mirrored, with clouds cut out."""
    with rasterio.open(DATA / "B04.tif") as file:
        scene = file.read(1)[:600, :600]
    stack = np.stack([scene, scene[::-1], scene[:, ::-1], scene.T, scene.T[::-1], scene.T[:, ::-1]])
    for number, each in enumerate(stack):
        each[100 * number : 100 * number + 90, 50:500] = 0
    series = write(tmp_path, "B04", stack, block=512)
    write_composites([series], tmp_path, CompositeOptions(min_observations=1))
    items = []
    for number, tile in enumerate(series.tiles):
        outline = tile.geobox.geographic_extent
        item = pystac.Item(
            str(number), outline.json, list(outline.boundingbox.bbox), datetime(2023, 4, 1 + number, tzinfo=UTC), {}
        )
        item.add_asset(
            "B04", pystac.Asset(str(tile.path), media_type="image/tiff; application=geotiff", roles=["data"])
        )
        items.append(item)
    cube = odc.stac.load(items, bands=["B04"], geobox=series.grid, dtype="uint16", nodata=0)["B04"]
    np.testing.assert_array_equal(cube.values, stack)
    expected = cube.where(cube > 0).median("time").round()
    np.testing.assert_array_equal(read(tmp_path / "B04.tif"), expected.fillna(0))
