"""Which scene each pixel came from, as a timestamp leaves it: files, legend, tables, catalog and picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from PIL import Image
from pydantic import ValidationError

from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.products.quicklook import quicklook
from thess_agg_dagster.storage.gdal import gdal_name, store_env
from thess_agg_dagster.storage.paths import is_remote
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SmallLake, in_folder_and_bucket
from thess_agg_dagster_tests.products.test_provenance import etag, xxh128
from thess_agg_dagster_tests.rasters import read


@pytest.fixture
def numbered(small_lake: SmallLake) -> tuple[SmallLake, list[str]]:
    """A timestamp of two overlapping scenes, whose B04 and B08 hold 1 and 2, but for their edges."""
    ids = small_lake.add_timestamp(FIRST)
    for number, scene_id in enumerate(ids, 1):
        for band, edge in (("B04", 10), ("B08", 20), ("SCL", 0)):
            pixels = np.full((120, 120), number, "uint16") if band != "SCL" else np.full((60, 60), number, "uint8")
            pixels[:, :edge] = 0
            small_lake.add_tile(scene_id, band, pixels=pixels, corner=(696000 if number == 1 else 690000, 4500000))
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    return small_lake, ids


@in_folder_and_bucket
def test_every_pixel_names_its_checksummed_tile(numbered: tuple[SmallLake, list[str]]) -> None:
    lake, ids = numbered
    assert lake.aggregate(FIRST, provenance=True, stac=True).attempt.status == "success"
    folder = lake.lake.published(FIRST).folder
    names = {"B04": "source", "B08": "source_B08", "SCL": "source_SCL"}
    assert {path.stem for path in folder.glob("*.tif")} == {*BANDS, *names.values(), "observations"}
    manifest = json.loads(lake.lake.manifest(FIRST).read_text())
    item = pystac.Item.from_dict(json.loads(lake.lake.published(FIRST).item.read_text()))
    report = lake.tables()["band_report"].set_index("band")
    for band, name in names.items():
        source = read(folder / f"{name}.tif")
        np.testing.assert_array_equal(source, read(folder / f"{band}.tif"))
        checksum = etag if is_remote(lake.root) else xxh128
        legend = [
            {
                "index": number,
                "scene": scene_id,
                "checksum": checksum(lake.lake.tile(scene_id, band)),
                "baseline": "05.10",
            }
            for number, scene_id in enumerate(ids, 1)
        ]
        with store_env(), rasterio.open(gdal_name(folder / f"{name}.tif")) as file:
            assert json.loads(file.tags()["legend"]) == legend
            assert file.tags()["band"] == band
        assert manifest["legend"][band] == legend
        classes = item.assets[name].extra_fields["classification:classes"]
        assert [(each["value"], each["name"]) for each in classes] == [(0, "empty"), (1, ids[0]), (2, ids[1])]
        assert all(told["checksum"] in each["description"] for told, each in zip(legend, classes[1:], strict=True))
        shares = [(source == number).sum() / (source > 0).sum() for number in (1, 2)]
        expected = "|".join(f"{scene_id}={share:.6f}" for scene_id, share in zip(ids, shares, strict=True))
        assert report.loc[band, "tile_shares"] == expected
    assert {Path(each["file"]).name: each["checksum"] for each in manifest["outputs"]} == {
        path.name: xxh128(path) for path in folder.glob("*.tif")
    }
    lake.aggregate(FIRST, merge_method="count", bands=["B04"], drop_bands=True)
    counted = read(lake.lake.mosaic(FIRST, "B04"))
    lake.aggregate(FIRST, provenance=True, bands=["B04"], match_band="B04", drop_bands=True)
    np.testing.assert_array_equal(read(lake.lake.published(FIRST).folder / "observations.tif"), counted)


def test_a_downstream_asset_gets_bands_alone(numbered: tuple[SmallLake, list[str]]) -> None:
    from thess_agg_dagster.defs.io_manager import DataLakeIOManager

    lake, _ = numbered
    lake.aggregate(FIRST, provenance=True)
    assert set(DataLakeIOManager(data_lake=str(lake.root)).mosaics(FIRST).paths) == set(BANDS)


def test_seams_are_drawn_where_two_scenes_meet(numbered: tuple[SmallLake, list[str]]) -> None:
    lake, _ = numbered
    pixels = np.ma.array(np.full((4, 6), 7, "uint16"))
    origins = np.array([[0, 1, 1, 2, 2, 2]] * 4, "uint8")
    plain, seamed = (np.asarray(quicklook({"B04": pixels}, seams)) for seams in ({}, {"B04": origins}))
    assert {int(col) for col in np.nonzero((plain != seamed).any(axis=(0, 2)))[0]} == {3}
    lake.aggregate(FIRST, provenance=True)
    before = np.asarray(Image.open(lake.lake.published(FIRST).quicklook)).astype(int)
    lake.aggregate(FIRST, provenance=True, seams=True)
    after = np.asarray(Image.open(lake.lake.published(FIRST).quicklook)).astype(int)
    assert 0 < (np.abs(after - before).max(axis=2) > 60).mean() < 0.2


def test_what_cannot_be() -> None:
    with pytest.raises(ValidationError, match="seams need provenance"):
        TimestampsAggregationParams(seams=True)
    with pytest.raises(ValidationError, match="'source_B04' is the name of a file that is written next to the bands"):
        TimestampsAggregationParams(bands=["source_B04"])
