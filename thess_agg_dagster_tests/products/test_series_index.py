"""The indices of a series, opened by others: geopandas, pyarrow and GDAL; compared with the items and mosaics on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.windows import from_bounds
from stac_geoparquet.arrow import stac_table_to_items

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.storage.gdal import gdal_name, store_env
from thess_agg_dagster.storage.paths import is_remote
from thess_agg_dagster_tests.conftest import FIRST, SECOND, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.defs.test_composites import ASKED, compose, publish_all
from thess_agg_dagster_tests.products.test_series import FIXED
from thess_agg_dagster_tests.rasters import noise, read, read_index


@pytest.fixture
def two(small_lake: SmallLake) -> SmallLake:
    """Two timestamps: the first starts in zone 35, the second in zone 34. Their pixels differ, and overlap in part."""
    ids = small_lake.add_timestamp(SECOND)
    west = noise(5, (120, 120))
    west[30:70] = 0  # through which the first timestamp is seen
    small_lake.add_tile(ids[1], "B04", pixels=west)
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, ids[::-1]))
    small_lake.read_list()
    return small_lake


def index_of(lake: DataLake, name: str) -> str:
    return gdal_name(lake.aggregated / f"series_{name}.gti.gpkg")


def names(lake: DataLake) -> set[str]:
    return {path.name.removeprefix("series_").removesuffix(".gti.gpkg") for path in lake.tile_indices()}


def opened(lake: DataLake, name: str, **options: str) -> tuple[NDArray[Any], Any]:
    """The pixels that GDAL reads from an index, as from any raster, and its profile. In a bucket, in a process of its own: rasterio
    asks some things without letting other threads run, also those of the bucket's server in this process."""
    if not is_remote(lake.root):
        return read_index(index_of(lake, name), options)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(read_index, index_of(lake, name), options).result(60)


def layered(lake: DataLake, timestamps: Iterable[str], band: str, profile: Any) -> NDArray[Any]:
    """Oracle: the mosaics put on top of each other in order of time, empty pixels transparent."""
    expected = np.full((profile["height"], profile["width"]), profile["nodata"], profile["dtype"])
    for timestamp in timestamps:
        with store_env(), rasterio.open(gdal_name(lake.mosaic(timestamp, band))) as mosaic:
            assert (mosaic.crs, mosaic.dtypes[0]) == (profile["crs"], profile["dtype"])
            assert mosaic.nodata == profile["nodata"] or np.isnan([mosaic.nodata, profile["nodata"]]).all()
            pixels = mosaic.read(1, masked=True)
            rows, columns = from_bounds(*mosaic.bounds, profile["transform"]).round_offsets().round_lengths().toslices()
        expected[rows, columns] = np.where(pixels.mask, expected[rows, columns], pixels.data)
    return expected


@in_folder_and_bucket
def test_the_table_has_what_the_items_say(two: SmallLake, tmp_path: Path) -> None:
    for number, tile in enumerate(("T34TFL", "T35TKF")):  # of numbers with a nodata that JSON has none for
        two.add_tile(scene(SECOND, tile), "B04", east=bool(number), pixels=noise(number, (120, 120)).astype("float32"))
    for timestamp in (SECOND, FIRST):
        found = two.aggregate(timestamp, stac=True).attempt
        assert found.status == "success", found.message
    two.tables()
    copy = tmp_path / "series.parquet"
    copy.write_bytes((two.lake.aggregated / "series.parquet").read_bytes())
    frame = gpd.read_parquet(copy)
    assert list(frame["id"]) == [two.lake.timestamp_folder(key).name for key in (FIRST, SECOND)]
    assert frame.crs == "EPSG:4326"
    on_disk = [json.loads(two.lake.published(key).item.read_bytes()) for key in (FIRST, SECOND)]
    for (_, row), item in zip(frame.iterrows(), on_disk, strict=True):
        assert row["geometry"].equals(shapely.geometry.shape(item["geometry"]))
        assert row["datetime"] == pd.Timestamp(item["properties"]["datetime"])
        assert row["proj:code"] == item["properties"]["proj:code"]
    collection = json.loads(two.lake.collection.read_bytes())
    assert json.loads(pq.read_metadata(copy).metadata[b"stac-geoparquet"])["collections"] == {
        collection["id"]: collection
    }
    # All the way back: nothing is lost but where addresses begin.
    for again, item in zip(stac_table_to_items(pq.read_table(copy)), on_disk, strict=True):
        folder = two.lake.aggregated / item["id"]
        for name, asset in again["assets"].items():
            path = two.lake.aggregated / asset["href"].removeprefix("./")
            assert path.stat().st_size == asset["file:size"]
            assert str(path).startswith(str(folder))
            asset["href"] = item["assets"][name]["href"]
        links = {link["rel"]: link["href"] for link in again["links"]}
        assert json.loads((two.lake.aggregated / links["self"].removeprefix("./")).read_bytes()) == item
        assert {links[relation] for relation in ("root", "parent", "collection")} == {"./collection.json"}
        assert without_nothing(again["assets"]) == item["assets"]
        for name in ("id", "bbox", "collection", "stac_extensions", "stac_version", "type"):
            assert again[name] == item[name]
        assert times_parsed(again["properties"]) == times_parsed(item["properties"])


def without_nothing(thing: Any) -> Any:
    """A column is there for all rows, and of one type: what one item does not say is nothing in its row, and NaN is a
    number."""
    if isinstance(thing, dict):
        return {name: without_nothing(value) for name, value in thing.items() if value is not None}
    if isinstance(thing, list):
        return [without_nothing(each) for each in thing]
    return "nan" if isinstance(thing, float) and np.isnan(thing) else thing


def times_parsed(properties: dict[str, Any]) -> dict[str, Any]:
    return properties | {"datetime": datetime.fromisoformat(properties["datetime"])}


@in_folder_and_bucket
def test_gdal_opens_a_band_of_all_timestamps_and_filters_by_time(two: SmallLake) -> None:
    for timestamp in (SECOND, FIRST):
        assert two.aggregate(timestamp, **FIXED, stac=True, format="cog").attempt.status == "success"
    two.tables()
    assert names(two.lake) == {"B04", "B08", "SCL"}
    for band in ("B04", "B08", "SCL"):
        pixels, profile = opened(two.lake, band)
        newest, oldest = (read(two.lake.mosaic(key, band)) for key in (SECOND, FIRST))
        np.testing.assert_array_equal(pixels, np.where(newest == profile["nodata"], oldest, newest))
        with store_env(), rasterio.open(gdal_name(two.lake.mosaic(FIRST, band))) as mosaic:
            assert {name: profile[name] for name in ("crs", "transform", "width", "height", "dtype", "nodata")} == {
                name: mosaic.profile[name] for name in ("crs", "transform", "width", "height", "dtype", "nodata")
            }
    newest, oldest = (read(two.lake.mosaic(key, "B04")) for key in (SECOND, FIRST))
    assert (newest != oldest)[newest > 0].mean() > 0.5
    assert ((newest == 0) & (oldest > 0)).any()
    for condition, expected in (
        (f"datetime < '{SECOND[:10]}'", oldest),
        (f"datetime >= '{SECOND[:10]}'", newest),
        (f"id = '{two.lake.timestamp_folder(FIRST).name}'", oldest),
        ("datetime < '2000-01-01'", np.zeros_like(oldest)),
    ):
        np.testing.assert_array_equal(opened(two.lake, "B04", FILTER=condition)[0], expected)


def test_an_index_has_the_times_and_where_the_mosaics_are(two: SmallLake) -> None:
    for timestamp in (SECOND, FIRST):
        two.aggregate(timestamp, **FIXED, stac=True, harmonize=True)
    two.tables()
    frame = pyogrio.read_dataframe(index_of(two.lake, "B04"))
    assert frame["datetime"].tolist() == [pd.Timestamp(key).floor("ms") for key in (FIRST, SECOND)]
    assert frame["id"].tolist() == [two.lake.timestamp_folder(key).name for key in (FIRST, SECOND)]
    assert [two.lake.aggregated / name for name in frame["location"]] == [
        two.lake.mosaic(key, "B04") for key in (FIRST, SECOND)
    ]
    with rasterio.open(index_of(two.lake, "B04")) as raster:
        assert (raster.scales, raster.offsets) == ((0.0001,), (0.0,))


def test_an_index_moves_with_the_lake(two: SmallLake, tmp_path: Path) -> None:
    for timestamp in (SECOND, FIRST):
        two.aggregate(timestamp, **FIXED, stac=True)
    two.tables()
    before, _ = opened(two.lake, "B04")
    two.root.rename(tmp_path / "moved")
    moved, _ = opened(DataLake(tmp_path / "moved"), "B04")
    assert moved.any()
    np.testing.assert_array_equal(moved, before)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {}, {"EPSG_32635": FIRST, "EPSG_32634": SECOND}),
        (FIXED, FIXED | {"resolution": 200}, {"res_100_100": FIRST, "res_200_200": SECOND}),
        (FIXED, FIXED | {"nodata": 65535}, {"nodata_0": FIRST, "nodata_65535": SECOND}),
        (FIXED, FIXED | {"harmonize": True}, {"scale_0.0001_-0.1": FIRST, "scale_0.0001_0": SECOND}),
        (
            {"target_crs": "ESRI:54009", "resolution": 100},
            {"target_crs": "EPSG:4326", "resolution": 0.001},
            {"ESRI_54009": FIRST, "EPSG_4326": SECOND},
        ),
    ],
)
def test_what_gdal_would_not_keep_apart_has_an_index_each(
    two: SmallLake, first: dict[str, Any], second: dict[str, Any], expected: dict[str, str]
) -> None:
    for timestamp, options in ((FIRST, first), (SECOND, second)):
        found = two.aggregate(timestamp, **options, bands=["B04"], stac=True).attempt
        assert found.status == "success", found.message
    two.tables()
    assert names(two.lake) == {f"B04@{peculiar}" for peculiar in expected}
    for peculiar, timestamp in expected.items():
        pixels, profile = opened(two.lake, f"B04@{peculiar}")
        np.testing.assert_array_equal(pixels, read(two.lake.mosaic(timestamp, "B04")))
        with rasterio.open(two.lake.mosaic(timestamp, "B04")) as mosaic:
            assert (mosaic.crs, mosaic.nodata) == (profile["crs"], profile["nodata"])
            np.testing.assert_allclose(mosaic.transform, profile["transform"], rtol=1e-12)
    # Once they are alike, there is one index again, and no other is left.
    two.aggregate(FIRST, **second, bands=["B04"], stac=True)
    two.tables()
    left = names(two.lake)
    assert left == ({"B04"} if second else {"B04@EPSG_32635", "B04@EPSG_32634"})


def test_mosaics_of_different_extents_lie_where_they_are(two: SmallLake) -> None:
    """Grids of the tiles, in one zone: the union, not stretched."""
    two.list_rows((FIRST, [scene(FIRST, "T34TFL")]), (SECOND, [scene(SECOND, "T34TFL"), scene(SECOND, "T35TKF")]))
    for timestamp in (FIRST, SECOND):
        two.aggregate(timestamp, bands=["B04"], stac=True)
    two.tables()
    pixels, profile = opened(two.lake, "B04")
    assert read(two.lake.mosaic(FIRST, "B04")).shape != read(two.lake.mosaic(SECOND, "B04")).shape
    np.testing.assert_array_equal(pixels, layered(two.lake, (FIRST, SECOND), "B04", profile))


@in_folder_and_bucket
def test_without_stac_there_are_no_indices_but_those_that_stand_stay_true(two: SmallLake) -> None:
    for stac, there in ((False, False), (True, True), (False, True)):
        two.aggregate(FIRST, stac=stac)
        two.tables()
        assert bool(two.lake.tile_indices()) == there
        assert two.lake.series_parquet.exists() == there
    np.testing.assert_array_equal(opened(two.lake, "B04")[0], read(two.lake.mosaic(FIRST, "B04")))
    somebodys = two.lake.aggregated / "mine.gti.gpkg"
    somebodys.write_bytes(b"")
    good = two.lake.published(FIRST).item.read_bytes()
    two.lake.published(FIRST).item.write_text("{")  # which nobody can read
    two.tables()
    assert two.lake.tile_indices()
    two.lake.published(FIRST).item.write_bytes(good)
    two.lake.published(FIRST).item.unlink()
    two.tables()
    assert two.lake.tile_indices() == []
    assert not two.lake.series_parquet.exists()
    assert somebodys.exists()


@in_folder_and_bucket
def test_composites_have_indices_of_their_own(small_lake: SmallLake, tmp_path: Path) -> None:
    publish_all(small_lake)
    for period in ("2023-04", "2023-05"):
        assert compose(small_lake, period, stac=True).attempt.status == "success"
    small_lake.tables(**ASKED)
    shelf = small_lake.lake.composites
    assert names(shelf) == {"B04", "B08", "SCL", "count"}
    assert names(small_lake.lake) == set()  # timestamps were published without items
    for band in ("B04", "SCL"):
        pixels, profile = opened(shelf, band)
        np.testing.assert_array_equal(pixels, layered(shelf, ["2023-04", "2023-05"], band, profile))
    pixels, profile = opened(shelf, "B04", FILTER="datetime < '2023-05-01'")
    np.testing.assert_array_equal(pixels, layered(shelf, ["2023-04"], "B04", profile))
    copy = tmp_path / "series.parquet"
    copy.write_bytes(shelf.series_parquet.read_bytes())
    assert list(gpd.read_parquet(copy)["id"]) == ["2023-04", "2023-05"]
