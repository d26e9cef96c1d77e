"""NDVI of timestamps, through Dagster: numpy on the published B04 and B08; when it is due, when it stays, what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pystac
import pytest
import rasterio

from thess_agg_dagster.audit.event_log import latest_attempts
from thess_agg_dagster.defs.checks import details_of
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.time_serie import read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.period.freshness import identify_mosaics
from thess_agg_dagster.products.series import open_series
from thess_agg_dagster.storage.gdal import gdal_name, store_env
from thess_agg_dagster.timestamp.freshness import changed_inputs, is_due
from thess_agg_dagster_tests.conftest import FIRST, Begin, SmallLake, scene
from thess_agg_dagster_tests.products.test_provenance import xxh128
from thess_agg_dagster_tests.rasters import Array, noise, read
from thess_agg_dagster_tests.timestamp.test_keep import damage, published


def listed(lake: SmallLake) -> None:
    lake.list_rows((FIRST, lake.add_timestamp(FIRST)))
    lake.read_list()


def without(lake: SmallLake) -> None:
    listed(lake)
    assert lake.aggregate(FIRST).attempt.status == "success"


def floats(lake: SmallLake) -> None:
    listed(lake)
    assert lake.aggregate(FIRST, ndvi="float32").attempt.status == "success"


@pytest.fixture
def plain(begin_with: Begin) -> SmallLake:
    """A timestamp that was made without NDVI."""
    return begin_with(without)


@pytest.fixture
def derived(begin_with: Begin) -> SmallLake:
    """One with NDVI as floats."""
    return begin_with(floats)


def brute_force(lake: SmallLake, offset: int) -> np.ma.MaskedArray[Any, Any]:
    """NDVI of what was published."""
    with store_env():
        bands = [
            rasterio.open(gdal_name(lake.lake.mosaic(FIRST, band))).read(1, masked=True).astype(float)
            for band in ("B04", "B08")
        ]
    red, nir = (np.ma.masked_invalid(band) - offset for band in bands)
    with np.errstate(all="ignore"):
        return np.ma.masked_invalid((nir - red) / (nir + red))


def due(lake: SmallLake, **params: Any) -> bool:
    given = TimestampsAggregationParams(**params)
    row = read_time_serie(lake.lake.time_serie).acquisitions[FIRST]
    recorded = latest_attempts(lake.instance, AGGREGATED)[FIRST]
    found = is_due(row, recorded, lake.lake, given, lake.lake.fingerprints())
    # Whatever else is looked at: the sensor that marks what is stale agrees.
    assert bool(changed_inputs({FIRST: recorded}, lake.lake, given)) == found
    return found


@pytest.mark.parametrize(
    ("lake_kind", "params", "offset"),
    [
        ("bucket", {"ndvi": "int16", "harmonize": True, "mask_scl_classes": [3, 8, 9], "format": "cog"}, 0),
        ("folder", {"ndvi": "int16", "dtype": "float32"}, 1000),
        ("folder", {"ndvi": "float32", "nodata": -9999, "provenance": True, "seams": True}, 1000),
    ],
)
def test_it_is_that_of_the_published_bands(small_lake: SmallLake, params: dict[str, Any], offset: int) -> None:
    listed(small_lake)
    for band in ("B04", "B08"):  # with holes that do not coincide, and pixels that are less than nothing
        pixels = noise(ord(band[-1]), (120, 120), low=900)
        pixels[noise(ord(band[-1]) + 7, (120, 120), high=5) == 1] = 0
        small_lake.add_tile(scene(FIRST, "T34TFL"), band, pixels=pixels)
    found = small_lake.aggregate(FIRST, **params, stac=True).attempt
    assert found.status == "success", found.message
    expected = brute_force(small_lake, offset)
    assert 0.1 < np.ma.getmaskarray(expected).mean() < 0.9
    path = small_lake.lake.mosaic(FIRST, "NDVI")
    scaled = params["ndvi"] == "int16"
    with (
        store_env(),
        rasterio.open(gdal_name(path)) as file,
        rasterio.open(gdal_name(small_lake.lake.mosaic(FIRST, "B04"))) as red,
    ):
        pixels, tags = file.read(1, masked=True), file.tags()
        assert (file.crs, file.transform, file.shape) == (red.crs, red.transform, red.shape)
        assert (file.dtypes, file.scales) == ((params["ndvi"],), (0.0001 if scaled else 1.0,))
        assert file.descriptions == ("NDVI",)
    np.testing.assert_array_equal(np.ma.getmaskarray(pixels), np.ma.getmaskarray(expected))
    if scaled:
        expected = np.ma.masked_array(np.rint(np.clip(np.ma.filled(expected, 0), -3, 3) * 10000), mask=expected.mask)
    np.testing.assert_allclose(pixels.compressed(), expected.compressed(), rtol=1e-6)
    assert (tags["index"], tags["bands"], tags["offset_removed"]) == ("NDVI", "B08|B04", str(offset))
    assert (tags["timestamp"], tags["band"]) == (FIRST, "NDVI")
    # What is told of it, wherever bands are told of.
    record = {band.band: band for band in found.bands}["NDVI"]
    assert record.derived_from == ["B08", "B04"]
    assert record.valid_share == pytest.approx(1 - np.ma.getmaskarray(expected).mean(), abs=1e-6)
    assert [Path(file).parts[-2:] for file in record.input_files] == [
        (scene(FIRST, tile), f"{band}.tif") for band in ("B08", "B04") for tile in ("T35TKF", "T34TFL")
    ]
    assert tags["checksums"].split("|") == list(record.input_checksums)
    manifest = json.loads(small_lake.lake.manifest(FIRST).read_bytes())
    (output,) = [each for each in manifest["outputs"] if each["file"].endswith("NDVI.tif")]
    assert output["checksum"] == xxh128(path) == record.output_checksum
    assert manifest["parameters"]["ndvi"] == params["ndvi"]
    item = pystac.Item.from_dict(json.loads(small_lake.lake.published(FIRST).item.read_bytes()))
    asset = item.assets["NDVI"].extra_fields
    assert asset["raster:bands"][0].get("scale") == (0.0001 if scaled else None)
    assert asset["nodata"] == (-32768 if scaled else "nan")
    assert asset["file:size"] == path.stat().st_size
    assert {band.tiles for band in found.bands} == {2}
    assert not [
        check
        for check in small_lake.checks().values()
        if check.severity == dg.AssetCheckSeverity.ERROR and not check.passed
    ]
    if "provenance" in params:
        report = small_lake.tables(**params)["band_report"].set_index("band")
        assert report.loc["NDVI", "status"] == "success"
        assert report.loc["NDVI", "derived_from"] == "B08|B04"
    assert set(small_lake.lake.published(FIRST).bands) == {"B04", "B08", "SCL", "NDVI"}
    assert ("source_NDVI.tif" in small_lake.lake.published(FIRST).names) is False
    array = open_series(small_lake.root, "NDVI")
    np.testing.assert_array_equal(np.isnan(array.values[0]), np.ma.getmaskarray(expected))


def test_it_is_off_and_then_it_alone_is_made(plain: SmallLake) -> None:
    assert "NDVI.tif" not in published(plain)
    made = latest_attempts(plain.instance, AGGREGATED)[FIRST].attempt
    assert not due(plain)
    assert due(plain, ndvi="float32")
    before = published(plain)
    assert plain.aggregate(FIRST, ndvi="float32").attempt.status == "success"
    after = published(plain)
    assert set(after) == {*before, "NDVI.tif"}
    assert {name for name in before if before[name] == after[name]} == {"B04.tif", "B08.tif", "SCL.tif"}
    records = latest_attempts(plain.instance, AGGREGATED)[FIRST].attempt
    assert [band.seconds for band in records.bands[:3]] == [band.seconds for band in made.bands]  # not made anew
    assert not due(plain, ndvi="float32")
    # Neither B04 nor composites become other ones.
    assert identify_mosaics("2023-02", {FIRST: made}) == identify_mosaics("2023-02", {FIRST: records})
    # As other numbers it is another file.
    assert due(plain, ndvi="int16")
    plain.aggregate(FIRST, ndvi="int16")
    again = published(plain)
    assert again["B04.tif"] == before["B04.tif"]
    assert read(plain.lake.mosaic(FIRST, "NDVI")).dtype == "int16"
    (seen,) = plain.instance.fetch_materializations(AGGREGATED, limit=1).records
    assert seen.asset_materialization is not None
    assert seen.asset_materialization.metadata["changed_since_last"].value == "ndvi: float32 -> int16"
    # And if it is asked for although nothing is due, everything is made.
    plain.aggregate(FIRST, ndvi="int16")
    records = latest_attempts(plain.instance, AGGREGATED)[FIRST].attempt
    assert [band.seconds for band in records.bands[:3]] != [band.seconds for band in made.bands]


def test_what_it_is_made_of_is_verified_and_made_anew_if_it_is_not_what_was_published(plain: SmallLake) -> None:
    before = read(plain.lake.mosaic(FIRST, "B04"))
    damage(plain.lake.mosaic(FIRST, "B04"))
    damaged = published(plain)
    assert plain.aggregate(FIRST, ndvi="float32").attempt.status == "success"
    after = published(plain)
    assert after["B08.tif"] == damaged["B08.tif"]
    assert after["B04.tif"] != damaged["B04.tif"]
    np.testing.assert_array_equal(read(plain.lake.mosaic(FIRST, "B04")), before)
    np.testing.assert_allclose(
        np.ma.masked_invalid(read(plain.lake.mosaic(FIRST, "NDVI"))).compressed(),
        brute_force(plain, 1000).compressed(),
        rtol=1e-6,
    )


def test_it_stays_while_it_is_up_to_date_and_goes_by_word_only(derived: SmallLake) -> None:
    before = published(derived)
    assert not due(derived)  # which asks for no NDVI
    derived.add_tile(scene(FIRST, "T35TKF"), "SCL", east=True, pixels=noise(77, (60, 60), high=12).astype("uint8"))
    assert due(derived)
    found = derived.aggregate(FIRST).attempt
    assert found.status == "success", found.message
    after = published(derived)
    assert after["NDVI.tif"] == before["NDVI.tif"]
    assert after["SCL.tif"] != before["SCL.tif"]
    assert [band.band for band in found.bands] == ["B04", "B08", "SCL", "NDVI"]
    assert json.loads(derived.lake.manifest(FIRST).read_bytes())["parameters"]["ndvi"] == "float32"
    assert not due(derived, ndvi="float32")
    # Its own bands change: it is out of date.
    derived.add_tile(scene(FIRST, "T35TKF"), "B04", east=True, pixels=noise(77, (120, 120)))
    assert due(derived, ndvi="float32")
    found = derived.aggregate(FIRST).attempt
    assert found.status == "exception"
    assert f"NDVI in {derived.lake.timestamp_folder(FIRST)} would be removed" in found.message
    assert "set ndvi to float32, or set drop_bands" in found.message
    found = derived.aggregate(FIRST, bands=["B04"]).attempt
    assert "NDVI in" in found.message
    assert published(derived) == after
    assert derived.aggregate(FIRST, ndvi="float32").attempt.status == "success"
    assert published(derived)["NDVI.tif"] != after["NDVI.tif"]
    derived.add_tile(scene(FIRST, "T35TKF"), "B04", east=True, pixels=noise(78, (120, 120)))
    assert derived.aggregate(FIRST, drop_bands=True).attempt.status == "success"
    assert {name for name in published(derived) if name.endswith(".tif")} == {"B04.tif", "B08.tif", "SCL.tif"}


def test_one_that_is_gone_is_made_again(derived: SmallLake) -> None:
    derived.lake.mosaic(FIRST, "NDVI").unlink()
    row = read_time_serie(derived.lake.time_serie).acquisitions[FIRST]
    recorded, fingerprints = latest_attempts(derived.instance, AGGREGATED)[FIRST], derived.lake.fingerprints()
    for params, expected in (({"ndvi": "float32"}, True), ({}, False)):
        assert is_due(row, recorded, derived.lake, TimestampsAggregationParams(**params), fingerprints) == expected
    derived.aggregate(FIRST, ndvi="float32")
    assert derived.lake.mosaic(FIRST, "NDVI").exists()


def test_all_or_nothing(derived: SmallLake) -> None:
    before = published(derived)
    path = derived.add_tile(scene(FIRST, "T34TFL"), "B08", pixels=noise(77, (120, 120)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # its header is whole
    found = derived.aggregate(FIRST, ndvi="float32").attempt
    assert {band.band: band.status for band in found.bands} == {
        "B04": "skipped", "B08": "unreadable_input", "SCL": "skipped", "NDVI": "skipped",
    }  # fmt: skip
    path.unlink()
    found = derived.aggregate(FIRST, ndvi="float32").attempt
    assert {band.band: band.status for band in found.bands} == {
        "B04": "skipped", "B08": "missing_input", "SCL": "skipped", "NDVI": "skipped",
    }  # fmt: skip
    assert found.bands[-1].message == "not made, because of B08"
    assert published(derived) == before
    assert derived.left_behind() == []


def test_what_it_cannot_be_made_of(small_lake: SmallLake) -> None:
    """Scenes of which one carries an offset; bands of two pixel sizes; floats, which carry none."""
    new, old = scene(FIRST, "T34TFL"), scene(FIRST, "T35TKF").replace("N0510", "N0209")
    for band in ("B04", "B08"):
        small_lake.add_tile(new, band)
        small_lake.add_tile(old, band, east=True)
    small_lake.list_rows((FIRST, [new, old]))
    small_lake.read_list()
    asked: dict[str, Any] = {"ndvi": "float32", "bands": ["B04", "B08"]}
    found = small_lake.aggregate(FIRST, **asked).attempt
    assert found.status == "failed_invalid_inputs"
    assert found.message == "NDVI: NDVI needs to know one radiometric offset of all scenes; set harmonize"
    assert {band.band: band.status for band in found.bands}["NDVI"] == "unknown_baseline"
    assert "NDVI needs to know" in " ".join(details_of(small_lake.checks()["dtype_safe"].metadata))
    assert not small_lake.lake.timestamp_folder(FIRST).exists()
    assert small_lake.aggregate(FIRST, **asked, harmonize=True).attempt.status == "success"
    np.testing.assert_allclose(
        np.ma.masked_invalid(read(small_lake.lake.mosaic(FIRST, "NDVI"))).compressed(),
        brute_force(small_lake, 0).compressed(),
        rtol=1e-6,
    )
    # A scene that does not reach into the grid has no say.
    west = {"grid": "fixed", "target_crs": "EPSG:32634", "bounds": [690000, 4496000, 694000, 4500000]}
    found = small_lake.aggregate(FIRST, **asked, **west).attempt
    assert found.status == "success", found.message
    small_lake.add_tile(new, "B08", pixels=noise(1, (60, 60)), pixel=200)
    small_lake.list_rows((FIRST, [new]))
    found = small_lake.aggregate(FIRST, **asked).attempt
    assert found.message == "NDVI: NDVI needs B08 on the pixels of B04; set match_band"
    assert small_lake.aggregate(FIRST, **asked, match_band="B04").attempt.status == "success"
    for band in ("B04", "B08"):
        values: Array = (noise(ord(band[-1]), (120, 120)) / 10000).astype("float32")
        small_lake.add_tile(new, band, pixels=values)
    found = small_lake.aggregate(FIRST, **asked).attempt
    assert found.status == "success", found.message
    np.testing.assert_allclose(
        read(small_lake.lake.mosaic(FIRST, "NDVI")), brute_force(small_lake, 0).filled(np.nan), rtol=1e-5, atol=1e-6
    )


def test_a_band_of_that_name_stays_a_band(small_lake: SmallLake) -> None:
    ids = small_lake.add_timestamp(FIRST, ["B04", "B08", "NDVI"])
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    own = {"bands": ["B04", "B08", "NDVI"]}
    assert small_lake.aggregate(FIRST, **own).attempt.status == "success"
    before, pixels = published(small_lake), read(small_lake.lake.mosaic(FIRST, "NDVI"))
    assert not due(small_lake, **own)
    assert small_lake.aggregate(FIRST, bands=["B04"]).attempt.status == "success"
    assert published(small_lake)["NDVI.tif"] == before["NDVI.tif"]
    # Derived instead, and back.
    bands = {"bands": ["B04", "B08"]}
    assert due(small_lake, **bands, ndvi="int16")
    assert small_lake.aggregate(FIRST, **bands, ndvi="int16").attempt.status == "success"
    assert read(small_lake.lake.mosaic(FIRST, "NDVI")).dtype == "int16"
    assert due(small_lake, **own)
    assert small_lake.aggregate(FIRST, **own).attempt.status == "success"
    np.testing.assert_array_equal(read(small_lake.lake.mosaic(FIRST, "NDVI")), pixels)
