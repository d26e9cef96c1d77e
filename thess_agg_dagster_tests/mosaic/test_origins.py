"""Which tile each pixel came from, and how many tiles had one: numpy by brute force, and tiles that carry their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from odc.geo.geom import polygon

from thess_agg_dagster.mosaic.choices import METHODS
from thess_agg_dagster.mosaic.engine import MosaicStats, write_mosaic
from thess_agg_dagster.mosaic.inspection import Source
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.origins import OriginFiles
from thess_agg_dagster.mosaic.plan import plan_mosaics
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster_tests.rasters import SMALL, ZONE_34, ZONE_35, Array, noise, read, write_tile


def mosaic(
    folder: Path, sources: list[Source], observations: bool = True, **options: Any
) -> tuple[dict[str, Array], MosaicStats]:
    """Mosaic, source and observations as read back."""
    plans, problems = plan_mosaics({"B04": sources}, MosaicOptions(sizes=SMALL, **options))
    assert not problems
    out = {name: folder / f"{name}.tif" for name in ("B04", "source", "observations")}
    files = OriginFiles(out["source"], out["observations"] if observations else None, lambda: {"legend": "1 2 3"})
    stats = write_mosaic(plans["B04"], out["B04"], beside=files)
    return {name: read(path) for name, path in out.items() if path.exists()}, stats


@pytest.fixture
def three(tmp_path: Path) -> list[tuple[int, int, Array]]:
    """Three tiles with holes, one of them in front of another, and ties between their values."""
    places = [(0, 0), (40, 60), (20, 10)]
    tiles = [(top, left, noise(n, (90, 100), low=0, high=4)) for n, (top, left) in enumerate(places)]
    tiles[1][2][10:40, 5:70] = 0
    return tiles


def sources(folder: Path, tiles: list[tuple[int, int, Array]]) -> list[Source]:
    return [
        Source(write_tile(folder / f"{n}.tif", pixels, corner=(600000 + 10 * left, 4500000 - 10 * top)))
        for n, (top, left, pixels) in enumerate(tiles)
    ]


def brute_force(tiles: list[tuple[int, int, Array]], method: str) -> tuple[Array, Array]:
    source, observations = np.zeros((130, 160), int), np.zeros((130, 160), int)
    for row, col in np.ndindex(source.shape):
        found = [
            (number, pixels[row - top, col - left])
            for number, (top, left, pixels) in enumerate(tiles, 1)
            if 0 <= row - top < 90 and 0 <= col - left < 100 and pixels[row - top, col - left]
        ]
        observations[row, col] = len(found)
        if not found:
            continue
        smallest, largest = (reduce(value for _, value in found) for reduce in (min, max))
        source[row, col] = {
            "first": found[0][0],
            "last": found[-1][0],
            "min": next(number for number, value in found if value == smallest),
            "max": next(number for number, value in found if value == largest),
        }.get(method, found[0][0] if len(found) == 1 else 255)
    return source, observations


@pytest.mark.parametrize("method", METHODS)
def test_against_brute_force(tmp_path: Path, three: list[tuple[int, int, Array]], method: str) -> None:
    found, stats = mosaic(tmp_path, sources(tmp_path, three), merge_method=method)
    source, observations = brute_force(three, method)
    np.testing.assert_array_equal(found["source"], source)
    np.testing.assert_array_equal(found["observations"], observations)
    assert stats.tile_shares is not None
    shares = {n: (source == n).sum() / (source > 0).sum() for n in (1, 2, 3, 255)}
    assert {n: share for n, share in stats.tile_shares.items() if share} == {n: s for n, s in shares.items() if s}
    assert sum(stats.tile_shares.values()) == pytest.approx(1)
    # What is beside it changes no pixel of the mosaic, and counting none of the source.
    assert stats.origins is not None
    np.testing.assert_array_equal(stats.origins, source)
    (tmp_path / "observations.tif").unlink()
    again, _ = mosaic(tmp_path, sources(tmp_path, three), observations=False, merge_method=method)
    assert set(again) == {"B04", "source"}
    np.testing.assert_array_equal(again["source"], source)
    np.testing.assert_array_equal(again["B04"], found["B04"])


@pytest.mark.parametrize("options", [{}, {"merge_method": "last"}, {"format": "cog"}, {"nodata": -1.0}])
def test_tiles_of_two_zones_that_carry_their_number(tmp_path: Path, options: dict[str, Any]) -> None:
    tiles = []
    for number, (crs, corner) in enumerate(
        [(ZONE_34, (690000, 4500000)), (ZONE_35, (199980, 4500000)), (ZONE_34, (692000, 4497000))], 1
    ):
        pixels = np.full((100, 100), number, "uint16")
        pixels[:30, 20:40] = 0
        tiles.append(Source(write_tile(tmp_path / f"{number}.tif", pixels, crs=crs, corner=corner, pixel=100)))
    found, _ = mosaic(tmp_path, tiles, **options)
    np.testing.assert_array_equal(found["source"], np.maximum(found["B04"], 0))
    counted, _ = mosaic(tmp_path, tiles, merge_method="count")
    np.testing.assert_array_equal(found["observations"], counted["B04"])
    with (
        rasterio.open(tmp_path / "B04.tif") as band,
        rasterio.open(tmp_path / "source.tif") as source,
        rasterio.open(tmp_path / "observations.tif") as observations,
    ):
        assert source.transform == observations.transform == band.transform
        assert source.crs == observations.crs == band.crs
        assert (source.dtypes, observations.dtypes) == (("uint8",), ("uint8",))
        assert (source.nodata, observations.nodata) == (0, None)
        assert source.tags()["legend"] == observations.tags()["legend"] == "1 2 3"


def test_masked_pixels_and_an_area(tmp_path: Path) -> None:
    tiles = []
    for number in (1, 2):
        classes = np.full((50, 50), 4, "uint8")
        classes[10 * number : 10 * number + 15] = 9
        scl = write_tile(tmp_path / f"SCL-{number}.tif", classes, pixel=20)
        tiles.append(Source(write_tile(tmp_path / f"{number}.tif", np.full((100, 100), number, "uint16")), scl))
    corners: list[tuple[float, float]] = [
        (600200, 4499100),
        (600800, 4499100),
        (600800, 4499900),
        (600200, 4499900),
        (600200, 4499100),
    ]
    area = polygon(corners, ZONE_34)
    found, stats = mosaic(tmp_path, tiles, mask_scl_classes=(9,), target=Target(aoi=area), aoi_mask=True)
    np.testing.assert_array_equal(found["source"], found["B04"])
    clear = {number: np.kron(read(tmp_path / f"SCL-{number}.tif") != 9, np.ones((2, 2), int)) for number in (1, 2)}
    np.testing.assert_array_equal(found["observations"], (clear[1] + clear[2])[10:90, 20:80])
    assert stats.tile_shares is not None
    assert stats.tile_shares == {n: (found["B04"] == n).sum() / stats.valid_pixels for n in (1, 2)}


def test_a_tile_off_the_grid_keeps_its_number_from_the_others(tmp_path: Path) -> None:
    corners = [(700000, 4500000), (600000, 4500000)]
    tiles = [Source(write_tile(tmp_path / f"{n}.tif", noise(n, (60, 60)), corner=at)) for n, at in enumerate(corners)]
    target = Target(target_crs=ZONE_34, grid="fixed", bounds=(600000, 4499400, 600600, 4500000))
    found, _ = mosaic(tmp_path, tiles, target=target)
    assert set(np.unique(found["source"])) == {2}


@pytest.mark.parametrize(("count", "dtype", "several"), [(254, "uint8", 255), (255, "uint16", 65535)])
def test_more_tiles_than_a_byte_can_number(tmp_path: Path, count: int, dtype: str, several: int) -> None:
    tile = write_tile(tmp_path / "empty.tif", np.zeros((4, 4), "uint16"), tiled=False)
    last = [
        write_tile(tmp_path / f"{n}.tif", np.array([[7] * 4, [7, n, 0, 0]] * 2, "uint16"), tiled=False) for n in (0, 1)
    ]
    tiles = [Source(path) for path in (*[tile] * (count - 2), *last)]
    found, _ = mosaic(tmp_path, tiles, merge_method="sum")
    assert found["source"].dtype == dtype
    np.testing.assert_array_equal(found["source"][:2], [[several] * 4, [several, count, 0, 0]])
    np.testing.assert_array_equal(found["observations"][:2], [[2] * 4, [2, 1, 0, 0]])
