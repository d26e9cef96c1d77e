"""What mosaics are made of: checksums of what was read and written, verified before and after, and told everywhere."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xxhash

import thess_agg_dagster
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.gdal import gdal_name, store_env
from thess_agg_dagster.storage.paths import is_remote
from thess_agg_dagster.timestamp.freshness import identify_bands
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SECOND, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.processes import invoke
from thess_agg_dagster_tests.rasters import noise, read


def etag(path: Path) -> str:
    return f"etag:{hashlib.md5(path.read_bytes()).hexdigest()}"


def xxh128(path: Path) -> str:
    return f"xxh128:{xxhash.xxh3_128_hexdigest(path.read_bytes())}"


@pytest.fixture
def two(small_lake: SmallLake) -> SmallLake:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, small_lake.add_timestamp(SECOND)))
    small_lake.read_list()
    return small_lake


@in_folder_and_bucket
def test_every_file_read_and_written_is_told(two: SmallLake) -> None:
    two.aggregate(FIRST, mask_scl_classes=[8, 9], format="cog")
    report = two.tables()["band_report"].set_index(["timestamp", "band"])
    manifest = json.loads(two.lake.manifest(FIRST).read_text())
    scenes = [scene(FIRST, tile) for tile in ("T35TKF", "T34TFL")]
    assert manifest["software"]["thess-agg-dagster"] == thess_agg_dagster.__version__
    assert manifest["parameters"]["mask_scl_classes"] == [8, 9]
    # What is in a bucket is not read twice for its checksum: the store has one.
    checksum = etag if is_remote(two.root) else xxh128
    for band in BANDS:
        tiles = [two.lake.tile(scene_id, band) for scene_id in scenes]
        assert report.loc[(FIRST, band), "input_checksums"] == "|".join(map(checksum, tiles))
        assert report.loc[(FIRST, band), "output_checksum"] == xxh128(two.lake.mosaic(FIRST, band))
        with store_env(), rasterio.open(gdal_name(two.lake.mosaic(FIRST, band))) as mosaic:
            tags = mosaic.tags()
        assert tags["scenes"] == "|".join(scenes)
        assert tags["checksums"] == "|".join(map(checksum, tiles))
        assert json.loads(tags["parameters"]) == manifest["parameters"]
        # Masked bands are made of SCL, too.
        names = [band, "SCL"] if band != "SCL" else [band]
        expected = {f"cache/s2/{scene_id}/{name}.tif" for scene_id in scenes for name in names}
        assert {each["file"] for each in manifest["inputs"][band]} == expected
        for each in manifest["inputs"][band]:
            path = two.root / each["file"]
            assert (each["bytes"], each["checksum"]) == (path.stat().st_size, checksum(path))
    folder = two.lake.published(FIRST).folder
    assert {Path(each["file"]).name: each["checksum"] for each in manifest["outputs"]} == {
        path.name: xxh128(path) for path in folder.glob("*.tif")
    }


@in_folder_and_bucket
def test_a_tile_that_is_not_what_was_published_is_not_used(two: SmallLake) -> None:
    tile = two.lake.tile(scene(FIRST, "T34TFL"), "B08")
    sibling = tile.with_name("B08.tif.sha256")
    sibling.write_text(f"{hashlib.sha256(tile.read_bytes()).hexdigest()}  B08.tif\n")
    assert two.aggregate(FIRST).attempt.status == "success"
    two.add_tile(scene(FIRST, "T34TFL"), "B08", pixels=np.flipud(read(tile)))  # a whole raster, but not that one
    found = two.aggregate(FIRST).attempt
    assert found.status == "failed_invalid_inputs"
    assert {band.band: band.status for band in found.bands} == {
        "B04": "skipped", "B08": "checksum_mismatch", "SCL": "skipped",
    }  # fmt: skip
    assert (
        f"but sha256:{sibling.read_text().split()[0]} was published (in {sibling}); download the tile again"
        in found.message
    )
    assert not two.checks()["inputs_complete"].passed
    assert set(two.tables()["band_report"].query("band == 'B08'")["status"]) == {"checksum_mismatch", "skipped"}


def test_a_checksum_that_comes_later_is_a_change(two: SmallLake) -> None:
    acquisition, params = Acquisition(FIRST, (scene(FIRST, "T34TFL"),)), TimestampsAggregationParams()
    before = identify_bands(acquisition, two.lake, params, ["B04", "B08", "SCL"])
    sibling = two.lake.tile(scene(FIRST, "T34TFL"), "B08").with_name("B08.tif.sha256")
    sibling.write_text("?")
    after = identify_bands(acquisition, two.lake, params, ["B04", "B08", "SCL"])
    assert [band for band in before if before[band] != after[band]] == ["B08"]
    two.lake.assets_manifest.write_text(f"scene_id,checksum_scl\n{scene(FIRST, 'T34TFL')},{'0' * 32}\n")
    last = identify_bands(acquisition, two.lake, params, ["B04", "B08", "SCL"])
    assert [band for band in before if after[band] != last[band]] == ["SCL"]
    found = two.aggregate(FIRST, bands=["B04", "B08"]).attempt
    assert {band.band: band.status for band in found.bands} == {"B04": "skipped", "B08": "checksum_mismatch"}
    assert f"the checksum in {sibling} cannot be parsed ('?'); correct it" in found.message


def test_a_scl_tile_that_masks_is_verified_as_well(two: SmallLake) -> None:
    tile = two.lake.tile(scene(FIRST, "T34TFL"), "SCL")
    tile.with_name("SCL.tif.md5").write_text("0" * 32)
    assert two.aggregate(FIRST, bands=["B04"]).attempt.status == "success"
    found = two.aggregate(FIRST, bands=["B04"], mask_scl_classes=[9]).attempt
    assert (found.status, found.bands[0].status) == ("failed_invalid_inputs", "checksum_mismatch")


def test_every_problem_of_a_band_is_told_at_once(two: SmallLake) -> None:
    wrong, missing = (two.lake.tile(scene(FIRST, tile), "B04") for tile in ("T35TKF", "T34TFL"))
    wrong.with_name("B04.tif.md5").write_text("0" * 32)
    missing.unlink()
    message = two.aggregate(FIRST).attempt.message
    assert "download the tile again" in message
    assert "no such file" in message


@in_folder_and_bucket
def test_a_bit_that_flips_is_found_by_name(two: SmallLake) -> None:
    arguments = ("--data-lake", str(two.root))
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments, "--verify")
    assert (result.exit_code, result.output.strip()) == (0, "6 mosaics checked")
    rotten = two.lake.mosaic(SECOND, "B08")
    data = bytearray(rotten.read_bytes())
    data[len(data) // 2] ^= 1
    rotten.write_bytes(data)
    result = invoke(*arguments, "--verify")
    assert result.exit_code == 1
    assert f"changed {SECOND}: {rotten}: has xxh128:" in result.output
    assert "its bytes have changed; run the timestamp again, with --force" in result.output
    assert invoke(*arguments, "--timestamps", SECOND, "--force").exit_code == 0
    assert invoke(*arguments, "--verify").exit_code == 0


@in_folder_and_bucket
def test_what_tells_of_pixels_is_verified_with_them(two: SmallLake) -> None:
    arguments = ("--data-lake", str(two.root), "--provenance", "--bands", "B04,SCL")
    assert invoke(*arguments).exit_code == 0
    assert invoke("--data-lake", str(two.root), "--verify").exit_code == 0
    folder = two.lake.published(SECOND).folder
    rotten, lost = folder / "source.tif", folder / "observations.tif"
    data = bytearray(rotten.read_bytes())
    data[len(data) // 2] ^= 1
    rotten.write_bytes(data)
    lost.unlink()
    result = invoke("--data-lake", str(two.root), "--verify")
    assert result.exit_code == 1
    # (What the byte stood for depends on the file: a pixel, or a part of its header.)
    assert f"changed {SECOND}: {rotten}: " in result.output
    assert f"changed {SECOND}: {lost}: cannot be found" in result.output
    assert result.output.count("changed ") == 2


def test_a_data_version_changes_with_inputs_and_parameters(two: SmallLake) -> None:
    versions = []
    for options in ({}, {}, {"merge_method": "max"}):
        two.aggregate(FIRST, **options)
        versions.append(data_version(two))
    two.add_tile(scene(FIRST, "T34TFL"), "B08", pixels=noise(77, (120, 120)))
    two.aggregate(FIRST)
    versions.append(data_version(two))
    assert versions[0] == versions[1]
    assert len({*versions}) == 3


def data_version(lake: SmallLake) -> str:
    from thess_agg_dagster.keys import AGGREGATED

    (record,) = lake.instance.fetch_materializations(AGGREGATED, limit=1).records
    assert record.asset_materialization is not None
    tags = record.asset_materialization.tags
    assert tags is not None
    return tags["dagster/data_version"]


def test_all_json_is_strict_and_rings_go_counter_clockwise(two: SmallLake) -> None:
    """``NaN`` is no JSON; the default ``nodata`` and empty float mosaics have it."""

    def strict(text: str | bytes) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    found = two.aggregate(FIRST, stac=True, dtype="float32").attempt
    assert found.status == "success"
    two.tables()
    written = {path.name: strict(path.read_bytes()) for path in two.root.rglob("*.json")}
    assert set(written) == {"manifest.json", "item.json", "collection.json"}
    assert written["manifest.json"]["parameters"]["nodata"] == "nan"
    with rasterio.open(two.lake.mosaic(FIRST, "B04")) as mosaic:
        assert strict(mosaic.tags()["parameters"])["nodata"] == "nan"
    strict(json.dumps(asdict(found)))
    geometry = written["item.json"]["geometry"]
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for outer, *_ in polygons:
        x, y = np.array(outer).T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0
