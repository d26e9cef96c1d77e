"""Mosaics that are ready for a time series: from the options to a cube, through real runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import pystac.validation
import pytest
import rasterio
import shapely
import xarray as xr
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from rio_cogeo.cogeo import cog_validate

from thess_agg_dagster.keys import REPORT
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.products.series import open_series
from thess_agg_dagster.sample import MISSING_SCENE, make_sample_lake, write_scene
from thess_agg_dagster.storage.gdal import gdal_name, store_env
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SECOND, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.processes import invoke
from thess_agg_dagster_tests.rasters import DATA, noise, read

# Across the border of the small lake's two tiles.
AOI = "SRID=32634;POLYGON((694000 4499000, 703000 4498000, 702000 4491000, 695000 4490000, 694000 4499000))"
FIXED = {"grid": "fixed", "target_crs": "EPSG:32634", "aoi": AOI}


@pytest.fixture
def two(small_lake: SmallLake) -> SmallLake:
    """Two timestamps: the first starts in zone 35, the second in zone 34."""
    ids = small_lake.add_timestamp(SECOND)
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, ids[::-1]))
    small_lake.read_list()
    return small_lake


# --- one grid -------------------------------------------------------------------------------------------------


@in_folder_and_bucket
def test_timestamps_that_start_in_different_zones_stack(two: SmallLake) -> None:
    for timestamp in (FIRST, SECOND):
        assert two.aggregate(timestamp, **FIXED).attempt.status == "success"
    tables = two.tables()
    report = tables["band_report"]
    assert set(report["grid"]) == {"fixed"}
    # Multiples of 600 m, which 60, 100 and 200 m pixels share.
    assert set(report["bounds"]) == {"693600|4489800|703200|4499400"}
    sizes = report.groupby("band")[["crs", "resolution", "bounds", "width", "height"]].nunique()
    assert (sizes == 1).all(axis=None)
    by_band = report.drop_duplicates("band").set_index("band")
    assert int(str(by_band.loc["B04", "width"])) == 2 * int(str(by_band.loc["SCL", "width"]))
    assert two.checks(REPORT)["one_grid"].passed
    cube = open_series(two.root, "B04", masked=False)
    assert cube.shape[0] == 2
    for timestamp, layer in zip((FIRST, SECOND), cube, strict=True):
        np.testing.assert_array_equal(layer, read(two.lake.mosaic(timestamp, "B04")))


def test_a_timestamp_on_another_grid_is_named(two: SmallLake) -> None:
    two.aggregate(FIRST, **FIXED)
    two.aggregate(SECOND, **FIXED | {"aoi": AOI.replace("4490000", "4489000")})
    two.tables()
    check = two.checks(REPORT)["one_grid"]
    assert not check.passed
    assert "run it again with the same parameters" in str(check.description)
    with pytest.raises(ValueError, match=r"B04 has 2 different grids .* aggregate them with grid=fixed"):
        open_series(two.root, "B04")


def test_what_is_left_of_an_older_grid_is_named(two: SmallLake) -> None:
    two.aggregate(FIRST, **FIXED)
    two.aggregate(SECOND)
    two.tables()
    check = two.checks(REPORT)["one_grid"]
    assert (check.passed, check.description) == (
        False, f"{SECOND} has the grid of its tiles, not the fixed one; run it again with grid=fixed",
    )  # fmt: skip
    two.list_rows((FIRST, two.add_timestamp(FIRST)))  # what is not listed any more is nobody's concern
    two.tables()
    assert two.checks(REPORT)["one_grid"].passed


def test_the_tiles_own_grids_are_no_fault(two: SmallLake) -> None:
    for timestamp in (FIRST, SECOND):
        two.aggregate(timestamp)
    report = two.tables()["band_report"]
    assert set(report["grid"]) == {"tiles"}
    assert set(report["crs"]) == {"EPSG:32634", "EPSG:32635"}
    assert two.checks(REPORT)["one_grid"].passed


def test_the_majority_decides(two: SmallLake) -> None:
    ids = two.add_timestamp(FIRST)
    third = scene(FIRST, "T34TFK")
    for band in BANDS:
        two.add_tile(third, band)
    two.list_rows((FIRST, [*ids, third]))
    assert {band.crs for band in two.aggregate(FIRST, target_crs="majority").attempt.bands} == {"EPSG:32634"}


def test_an_aoi_beside_the_tiles_fails_and_says_so(two: SmallLake) -> None:
    found = two.aggregate(FIRST, aoi="POLYGON((2 40, 3 40, 3 41, 2 40))").attempt
    assert found.status == "failed_invalid_inputs"
    assert {band.status for band in found.bands} == {"outside_grid"}
    assert "no tile lies in the aoi" in found.message
    gone = two.aggregate(FIRST, aoi="/gone.geojson").attempt
    assert gone.status == "exception"
    assert "aoi '/gone.geojson': cannot be found" in gone.message


# --- masks and offsets ----------------------------------------------------------------------------------------


def test_the_share_that_was_masked_stands_in_the_tables(two: SmallLake) -> None:
    """Oracle: of the only tile, the share of pixels whose SCL is one of the classes."""
    only = scene(FIRST, "T34TFL")
    two.list_rows((FIRST, [only]))
    two.aggregate(FIRST, mask_scl_classes=[3, 8, 9, 10])
    hidden = np.kron(np.isin(read(two.lake.tile(only, "SCL")), (3, 8, 9, 10)), np.ones((2, 2), bool))
    tables = two.tables()
    rows = tables["band_report"].set_index(["timestamp", "band"])
    for band in ("B04", "B08"):
        assert float(str(rows.loc[(FIRST, band), "masked_share"])) == round(hidden.mean(), 6)
        expected = np.where(hidden, 0, read(two.lake.tile(only, band)))
        np.testing.assert_array_equal(read(two.lake.mosaic(FIRST, band)), expected)
    assert rows.loc[(FIRST, "SCL"), "masked_share"] == ""
    assert float(str(tables["summary"].set_index("timestamp").loc[FIRST, "masked_share"])) == round(hidden.mean(), 6)


def test_a_scene_without_scl_fails_or_goes_unmasked(two: SmallLake) -> None:
    two.lake.tile(scene(FIRST, "T34TFL"), "SCL").unlink()
    options: dict[str, Any] = {"bands": ["B04"], "mask_scl_classes": [9]}
    found = two.aggregate(FIRST, **options).attempt
    assert found.status == "failed_missing_inputs"
    assert found.bands[0].missing_files == [str(two.lake.tile(scene(FIRST, "T34TFL"), "SCL"))]
    found = two.aggregate(FIRST, **options, missing_scl="unmasked").attempt
    assert found.status == "success"
    assert f"{scene(FIRST, 'T34TFL')} is not masked: no such file" in found.message
    assert not two.checks()["dtype_safe"].passed


def test_a_series_across_january_2022_does_not_jump(small_lake: SmallLake) -> None:
    """The same ground, before and after baseline 04.00, and once through an archive that removed the offset itself."""
    old, new = scene(FIRST, "T34TFL").replace("N0510", "N0301"), scene(SECOND, "T34TFL")
    pixels = noise(1, (120, 120), high=9000)
    for scene_id, offset in ((old, 0), (new, 1000)):
        small_lake.add_tile(scene_id, "B04", pixels=pixels + np.uint16(offset))
        small_lake.add_tile(scene_id, "SCL")
    small_lake.list_rows((FIRST, [old]), (SECOND, [new]))
    small_lake.read_list()
    options: dict[str, Any] = {"bands": ["B04", "SCL"], "harmonize": True}
    for timestamp in (FIRST, SECOND):
        assert small_lake.aggregate(timestamp, **options).attempt.status == "success"
        np.testing.assert_array_equal(read(small_lake.lake.mosaic(timestamp, "B04")), pixels)
    report = small_lake.tables()["band_report"].query("band == 'B04'")
    assert list(report["baselines"]) == ["03.01", "05.10"]
    assert list(report["harmonized"]) == ["False", "True"]
    item = small_lake.lake.scene_item(new)
    item.parent.mkdir()
    item.write_text(json.dumps({"properties": {"earthsearch:boa_offset_applied": True}}))
    small_lake.aggregate(SECOND, **options)
    np.testing.assert_array_equal(read(small_lake.lake.mosaic(SECOND, "B04")), pixels + 1000)


def test_mixed_baselines_are_a_warning(small_lake: SmallLake) -> None:
    ids = [scene(FIRST, "T35TKF"), scene(FIRST, "T34TFL").replace("N0510", "N0301")]
    for scene_id in ids:
        small_lake.add_tile(scene_id, "B04", east=scene_id == ids[0])
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    assert small_lake.aggregate(FIRST, bands=["B04"]).attempt.status == "success"
    check = small_lake.checks()["dtype_safe"]
    assert (check.passed, check.severity.value) == (False, "WARN")
    assert "with and without the offset of 1000" in str(check.description)
    assert small_lake.aggregate(FIRST, bands=["B04"], harmonize=True).attempt.status == "success"
    assert small_lake.checks()["dtype_safe"].passed


def test_a_scene_id_without_a_baseline_cannot_be_harmonized(small_lake: SmallLake) -> None:
    small_lake.add_tile("farm", "B04")
    small_lake.list_rows((FIRST, ["farm"]))
    small_lake.read_list()
    found = small_lake.aggregate(FIRST, bands=["B04"], harmonize=True).attempt
    assert (found.status, found.bands[0].status) == ("failed_invalid_inputs", "unknown_baseline")
    assert "its processing baseline is unknown" in found.message


# --- catalog --------------------------------------------------------------------------------------------------


@pytest.fixture
def offline_schemas() -> Iterator[None]:
    """STAC's own JSON schemas: the core's come with pystac, those of the extensions are in the test data."""
    validator = JsonSchemaSTACValidator()
    for path in (DATA / "stac_schemas").glob("*.json"):
        schema = json.loads(path.read_text())
        validator.schema_cache[schema["$id"].rstrip("#")] = schema
    before = pystac.validation.RegisteredValidator.get_validator()
    pystac.validation.set_validator(validator)
    yield
    pystac.validation.set_validator(before)


@pytest.mark.usefixtures("offline_schemas")
def test_the_catalog_is_valid_and_tells_the_truth(two: SmallLake) -> None:
    for timestamp in (FIRST, SECOND):
        two.aggregate(timestamp, **FIXED, stac=True, harmonize=True, mask_scl_classes=[8, 9], format="cog")
    two.tables()
    collection = pystac.Collection.from_file(str(two.lake.collection))
    assert collection.validate_all() == 2
    for timestamp, item in zip((FIRST, SECOND), collection.get_items(), strict=True):
        folder = two.lake.timestamp_folder(timestamp)
        assert item.datetime is not None
        assert item.datetime.isoformat() == timestamp.replace(" ", "T")
        assert set(item.assets) == {*BANDS, "thumbnail"}
        assert scene(timestamp, "T34TFL") in item.properties["processing:lineage"]
        for name, asset in item.assets.items():
            path = Path(str(asset.get_absolute_href()))
            assert path.parent == folder
            assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()
            assert asset.extra_fields["file:size"] == path.stat().st_size
            if name == "thumbnail":
                continue
            with rasterio.open(path) as mosaic:
                assert item.properties["proj:code"] == str(mosaic.crs)
                assert asset.extra_fields["proj:shape"] == list(mosaic.shape)
                assert asset.extra_fields["proj:transform"] == list(mosaic.transform)[:6]
                assert (asset.extra_fields["data_type"], asset.extra_fields["nodata"]) == (
                    mosaic.dtypes[0],
                    mosaic.nodata,
                )
                scaling = asset.extra_fields["raster:bands"][0]
                assert (scaling.get("scale"), scaling.get("offset")) == (
                    (None, None) if name == "SCL" else (0.0001, 0.0)
                )
                # The footprint: the corners of the grid, by GDAL's own projection.
                box = {
                    "type": "Polygon",
                    "coordinates": [[(x, y) for x in mosaic.bounds[::2] for y in mosaic.bounds[1::2]]],
                }
                corners = np.array(transform_geom(mosaic.crs, "EPSG:4326", box)["coordinates"][0])
                assert item.bbox is not None
                np.testing.assert_allclose(item.bbox[:2], corners.min(axis=0), atol=1e-4)
                np.testing.assert_allclose(item.bbox[2:], corners.max(axis=0), atol=1e-4)


def test_the_offset_that_stays_is_told(two: SmallLake) -> None:
    two.aggregate(FIRST, stac=True)
    item = pystac.Item.from_file(str(two.lake.published(FIRST).item))
    assert item.assets["B04"].extra_fields["raster:bands"][0]["offset"] == -0.1


@in_folder_and_bucket
def test_without_stac_there_is_no_catalog_but_one_that_stands_stays_true(two: SmallLake) -> None:
    for stac, compress, there in ((False, "zstd", False), (True, "zstd", True), (False, "deflate", True)):
        two.aggregate(FIRST, stac=stac, compress=compress)
        two.tables()
        assert two.lake.published(FIRST).item.exists() == there
        assert two.lake.collection.exists() == there
    item = json.loads(two.lake.published(FIRST).item.read_bytes())
    assert item["assets"]["B04"]["file:size"] == len(two.lake.mosaic(FIRST, "B04").read_bytes())
    two.lake.published(FIRST).item.unlink()
    two.tables()
    assert not two.lake.collection.exists()


@pytest.mark.usefixtures("offline_schemas")
@pytest.mark.parametrize(
    ("crs", "resolution", "code"), [("ESRI:54009", 100, "ESRI:54009"), ("EPSG:4326", 0.001, "EPSG:4326")]
)
def test_a_catalog_in_other_crss(two: SmallLake, crs: str, resolution: float, code: str) -> None:
    two.aggregate(FIRST, stac=True, target_crs=crs, resolution=resolution)
    two.tables()
    collection = pystac.Collection.from_file(str(two.lake.collection))
    assert collection.validate_all() == 1
    (item,) = collection.get_items()
    assert item.properties["proj:code"] == code
    assert item.assets["B04"].extra_fields.get("gsd") == (100 if crs == "ESRI:54009" else None)


def test_a_date_that_is_all_cloud_is_a_warning(two: SmallLake) -> None:
    for tile in ("T35TKF", "T34TFL"):
        two.add_tile(scene(FIRST, tile), "SCL", east=tile == "T35TKF", pixels=np.full((60, 60), 9, "uint8"))
    found = two.aggregate(FIRST, mask_scl_classes=[9]).attempt
    assert (found.status, found.valid_share) == ("success", 0)
    assert found.masked_share == pytest.approx(found.bands[2].valid_share, abs=0.01)
    check = two.checks()["mosaics_valid"]
    assert (check.passed, check.severity.value) == (False, "WARN")
    assert "everything is masked" in str(check.description)


# --- a series -------------------------------------------------------------------------------------------------


@in_folder_and_bucket
def test_a_series_is_lazy_masked_and_in_order(two: SmallLake) -> None:
    for timestamp in (SECOND, FIRST):
        two.aggregate(timestamp, **FIXED, mask_scl_classes=[8, 9])
    series = open_series(two.root, "B04", chunk=32)
    assert isinstance(series, xr.DataArray)
    assert series.dims == ("time", "y", "x")
    assert [str(time)[:23] for time in series["time"].values] == [
        FIRST[:23].replace(" ", "T"),
        SECOND[:23].replace(" ", "T"),
    ]
    assert max(series.chunksizes["x"]) == 32
    assert series.rio.crs == "EPSG:32634"
    with store_env(), rasterio.open(gdal_name(two.lake.mosaic(SECOND, "B04"))) as mosaic:
        expected = mosaic.read(1, masked=True).astype("float32").filled(np.nan)
        x, y = mosaic.xy(3, 5)
    np.testing.assert_array_equal(series[1], expected)
    assert (float(series["x"][5]), float(series["y"][3])) == (x, y)
    assert np.isnan(expected).any()


def test_folders_of_another_origin_and_instants_twice(two: SmallLake) -> None:
    two.aggregate(FIRST, **FIXED)
    folder = two.lake.timestamp_folder(FIRST)
    shutil.copytree(folder, folder.with_name("old backup"))
    assert open_series(two.root, "B04").sizes["time"] == 1
    shutil.copytree(folder, folder.with_name(folder.name.removesuffix("+00_00")))
    with pytest.raises(ValueError, match="are of the same instant; remove one of them"):
        open_series(two.root, "B04")


def test_a_pipe_is_no_mosaic(two: SmallLake) -> None:
    two.aggregate(FIRST)
    folder = two.lake.published(FIRST).folder
    os.mkfifo(folder / "B99.tif")
    (folder / "B08.tif").unlink()
    os.mkfifo(folder / "B08.tif")
    assert two.lake.published(FIRST).bands == ["B04", "SCL"]
    for band in ("B99", "B08"):
        with pytest.raises(FileNotFoundError, match=f"no mosaics of {band}"):
            open_series(two.root, band)


def test_a_band_that_is_not_there(two: SmallLake) -> None:
    with pytest.raises(FileNotFoundError, match="no mosaics of B12"):
        open_series(two.root, "B12")


# --- all of it ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline_schemas")
def test_what_the_guide_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last sections of docs/SERIES.md, line by line, on a smaller sample that is whole; then the pixels behind it."""
    guide = (Path(__file__).parents[2] / "docs" / "SERIES.md").read_text()
    section = guide[guide.index("## From mosaics to NDVI") :]  # and of the index
    command, *snippets = re.findall(r"```(?:sh|python)\n(.*?)```", section, re.DOTALL)
    root = tmp_path / "sample-lake"
    make_sample_lake(root, pixel=300)
    write_scene(DataLake(root), MISSING_SCENE, 300)
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command.replace("\\\n", " "))
    assert arguments[:3] == ["python", "-m", "thess_agg_dagster"]
    assert invoke(*arguments[3:]).exit_code == 0
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert (tmp_path / "ndvi.png").stat().st_size > 10_000

    collection = pystac.Collection.from_file("sample-lake/data_raw/aggregated/collection.json")
    assert collection.validate_all() == 6
    cube, ndvi = names["cube"], names["ndvi"]
    assert cube.sizes["time"] == 6
    folders = sorted(path.parent for path in DataLake(root).aggregated.glob("[!.]*/item.json"))
    for number, folder in enumerate(folders):
        for band in ("B04", "B08"):
            assert cog_validate(folder / f"{band}.tif", strict=True) == (True, [], [])
            np.testing.assert_array_equal(cube[band][number], read(folder / f"{band}.tif"))
    red, nir = (np.where(cube[band] > 0, cube[band], np.nan).astype(float) for band in ("B04", "B08"))
    np.testing.assert_allclose(ndvi, (nir - red) / (nir + red), rtol=1e-4, atol=1e-4)
    means = np.nanmean(ndvi, axis=(1, 2))
    assert means.max() > means.min() + 0.1  # summer is greener than winter

    assert list(names["items"]["id"]) == [folder.name for folder in folders]
    assert list(names["clear"]["id"]) == [
        folder.name
        for folder in folders
        if json.loads((folder / "item.json").read_text())["properties"]["eo:cloud_cover"] < 50
    ]
    latest = np.zeros_like(names["red"].data)
    for number, folder in enumerate(folders):
        if "2023-06" <= folder.name < "2023-09":
            latest = np.where(cube["B04"][number] > 0, cube["B04"][number], latest)
    assert latest.any()
    np.testing.assert_array_equal(names["red"].filled(0), latest)


@pytest.mark.usefixtures("offline_schemas")
def test_what_the_guide_of_composites_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/COMPOSITES.md on a smaller sample that is whole, and the pixels behind it."""
    guide = (Path(__file__).parents[2] / "docs" / "COMPOSITES.md").read_text()
    command, snippet, _ = re.findall(r"```(?:sh|python)\n(.*?)```", guide, re.DOTALL)
    root = tmp_path / "sample-lake"
    make_sample_lake(root, pixel=300)
    write_scene(DataLake(root), MISSING_SCENE, 300)
    monkeypatch.chdir(tmp_path)
    found = invoke(*shlex.split(command.replace("\\\n", " "))[3:])
    assert found.exit_code == 0, found.output
    collection = pystac.Collection.from_file("sample-lake/data_raw/composites/collection.json")
    assert collection.validate_all() == 11  # six months, five quarters
    shelf = DataLake(root).composites
    assert len(gpd.read_parquet(shelf.series_parquet)) == 11
    for period in ("2023-04", "2023-Q2"):
        tile_index = shelf.aggregated / f"series_B08@{'quarter' if 'Q' in period else 'month'}.gti.gpkg"
        with rasterio.open(tile_index, FILTER=f"id = '{period}'") as raster:
            np.testing.assert_array_equal(raster.read(1), read(shelf.mosaic(period, "B08")))
    names: dict[str, Any] = {}
    exec(snippet, names)
    ndvi = names["ndvi"]
    assert [str(time)[:10] for time in ndvi["time"].values] == [
        "2023-01-01", "2023-04-01", "2023-07-01", "2024-04-01", "2024-10-01",
    ]  # fmt: skip
    assert len(open_series(root, "B04", composites="month")) == 6
    spring = DataLake(root).composites.published("2023-Q2").folder
    series = open_series(root, "B08").sel(time=slice("2023-04-01", "2023-06-30"))
    assert len(series) == 2
    expected = series.median("time").round().fillna(0)
    np.testing.assert_array_equal(read(spring / "B08.tif"), expected)
    red, nir = (read(spring / f"{band}.tif").astype(float) for band in ("B04", "B08"))
    with np.errstate(all="ignore"):
        index = np.where((red == 0) | (nir == 0), np.nan, (nir - red) / (nir + red))
    np.testing.assert_allclose(ndvi.sel(time="2023-04-01").squeeze(), index, rtol=1e-5)


def test_nothing_outside_the_area(two: SmallLake) -> None:
    two.aggregate(FIRST, **FIXED)
    everything = read(two.lake.mosaic(FIRST, "B04"))
    found = two.aggregate(FIRST, **FIXED, aoi_mask=True).attempt
    with rasterio.open(two.lake.mosaic(FIRST, "B04")) as mosaic:
        polygon = shapely.from_wkt(AOI.split(";")[1])
        inside = rasterize([polygon], mosaic.shape, transform=mosaic.transform).astype(bool)
        np.testing.assert_array_equal(mosaic.read(1), np.where(inside, everything, 0))
    assert found.bands[0].valid_share == round((everything[inside] > 0).mean(), 6)
