"""A timestamp built without Dagster: what its records say of the pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from rasterio.warp import transform

from thess_agg_dagster.audit.outcome import BandRecord
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.mosaic.choices import METHODS
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.timestamp.build import BuildError, build_timestamp
from thess_agg_dagster.timestamp.plan import plan_timestamp
from thess_agg_dagster_tests.rasters import noise, read, write_tile

KEY = "2023-05-01 09:20:31"


def build(root: Path, scenes: list[str], bands: list[str], **params: Any) -> dict[str, BandRecord]:
    """The records of a timestamp's bands, by band; its files stand in ``root / "out"``."""
    folder = root / "out"
    folder.mkdir(exist_ok=True)
    lake = DataLake.at(str(root))
    plan = plan_timestamp(Acquisition(KEY, tuple(scenes)), lake, TimestampsAggregationParams(bands=bands, **params))
    assert not plan.problems
    outcome = build_timestamp(plan, folder, lake.timestamp_folder(KEY), lake.root)
    assert outcome.attempt.status == "success"
    return {record.band: record for record in outcome.attempt.bands}


def two_scl_tiles(root: Path, band: str) -> list[str]:
    """Two that overlap, with clouds and without any pixel in places."""
    scenes = ["S2A_A", "S2A_B"]
    for number, scene in enumerate(scenes):
        classes = np.random.default_rng(number).choice([0, 4, 5, 8, 9, 10], (50, 50)).astype("uint8")
        path = DataLake.at(str(root)).tile(scene, band)
        write_tile(path, classes, corner=(600000 + 600 * number, 4500000), pixel=20)
    return scenes


@pytest.mark.parametrize("band", ["SCL", "SCL_20m"])
@pytest.mark.parametrize(
    "params",
    [
        *({"merge_method": method} for method in METHODS),
        {"dtype": "uint16"},
        {"dtype": "float32"},
        {"nodata": 300.0},
        {"nodata": -1.0},
        {"nodata": 255.0},
    ],
)
def test_the_cloud_share_is_that_of_the_mosaic_or_empty_with_a_reason(
    tmp_path: Path, band: str, params: dict[str, Any]
) -> None:
    """Oracle: the pixels of the file."""
    record = build(tmp_path, two_scl_tiles(tmp_path, band), [band], **params)[band]
    pixels = read(tmp_path / "out" / f"{band}.tif").astype(float)
    if params.get("merge_method") in ("sum", "count"):
        assert record.cloud_share is None
        assert f"no cloud share: merge_method={params['merge_method']}" in record.message
        return
    valid = ~np.isnan(pixels) & (pixels != params.get("nodata", 0))
    assert record.cloud_share == pytest.approx(np.isin(pixels[valid], [8, 9, 10]).mean(), abs=1e-6)
    assert "cloud share" not in record.message


def test_no_class_no_share_and_it_is_said(tmp_path: Path) -> None:
    write_tile(DataLake.at(str(tmp_path)).tile("S2A_A", "SCL"), np.zeros((50, 50), "uint8"), pixel=20)
    record = build(tmp_path, ["S2A_A"], ["SCL"])["SCL"]
    assert (record.cloud_share, record.message) == (None, "no cloud share: not one pixel has a class")


@pytest.mark.parametrize(
    ("corner", "pixel", "crs", "resampled"),
    [
        ((600400, 4500000), 10, "EPSG:32634", False),
        ((600405, 4500000), 10, "EPSG:32634", True),
        ((600400, 4500000), 20, "EPSG:32634", True),
        ((600400, 14500000), 10, "EPSG:32734", True),
    ],
)
def test_what_comes_from_another_pixel_grid_is_listed(
    tmp_path: Path, corner: tuple[float, float], pixel: float, crs: str, resampled: bool
) -> None:
    lake = DataLake.at(str(tmp_path))
    write_tile(lake.tile("S2A_A", "B04"), noise(1, (40, 40)))
    write_tile(lake.tile("S2A_B", "B04"), noise(2, (40, 40)), corner=corner, pixel=pixel, crs=crs)
    record = build(tmp_path, ["S2A_A", "S2A_B"], ["B04"])["B04"]
    assert record.reprojected_tiles == (["S2A_B"] if resampled else [])
    assert ("1 of 2 tiles resampled" in record.message) is (corner[0] == 600405)


def test_the_scl_that_masks_may_be_spelt_otherwise(tmp_path: Path) -> None:
    lake = DataLake.at(str(tmp_path))
    pixels, classes = noise(1, (40, 40)), np.random.default_rng(1).choice([4, 9], (20, 20)).astype("uint8")
    write_tile(lake.tile("S2A_A", "B04_10m"), pixels)
    write_tile(lake.tile("S2A_A", "SCL_20m"), classes, pixel=20)
    build(tmp_path, ["S2A_A"], ["B04_10m", "SCL_20m"], mask_scl_classes=[9])
    clear = np.where(np.kron(classes, np.ones((2, 2))) == 9, 0, pixels)
    np.testing.assert_array_equal(read(tmp_path / "out" / "B04_10m.tif"), clear)
    np.testing.assert_array_equal(read(tmp_path / "out" / "SCL_20m.tif"), classes)


def test_a_stac_item_across_180_degrees(tmp_path: Path) -> None:
    """RFC 7946: cut at the antimeridian, and bounds whose west is the larger."""
    (x,), (y,) = transform("EPSG:4326", "EPSG:32760", [180.0], [-17.0])
    path = DataLake.at(str(tmp_path)).tile("S2A_A", "B04")
    write_tile(path, noise(1, (40, 40)), crs="EPSG:32760", corner=(round(x) - 200, round(y) + 200))
    build(tmp_path, ["S2A_A"], ["B04"], stac=True)
    item = json.loads((tmp_path / "out" / "item.json").read_text())
    west, _, east, _ = item["bbox"]
    assert 179.99 < west < 180
    assert -180 < east < -179.99
    ground = shapely.geometry.shape(item["geometry"])
    assert ground.geom_type == "MultiPolygon"
    assert ground.is_valid
    assert (ground.bounds[0], ground.bounds[2]) == (-180, 180)


def test_what_goes_wrong_beside_the_mosaics_is_an_attempt_that_says_so(tmp_path: Path) -> None:
    """A real error: an acquisition time that no calendar has, so that no item can be made."""
    lake = DataLake.at(str(tmp_path))
    write_tile(lake.tile("S2A_A", "B04"), noise(1, (40, 40)))
    params = TimestampsAggregationParams(bands=["B04"], stac=True)
    plan = plan_timestamp(Acquisition("2023-02-31 09:20:31", ("S2A_A",)), lake, params)
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError) as caught:
        build_timestamp(plan, tmp_path / "out", tmp_path / "published", lake.root)
    attempt = caught.value.outcome.attempt
    assert attempt.status == "failed_merge"
    (record,) = attempt.bands
    assert record.status == "write_failed"
    assert "published/item.json: cannot be created (ValueError: " in record.message
    assert not caught.value.outcome.worth_a_retry
