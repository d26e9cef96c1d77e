"""A lake plugs in as another pipeline left it: tiles and tables where they are, by ``THESS_TILES`` and ``THESS_TABLES``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from thess_agg_dagster.audit.event_log import latest_successes
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.products.readback import read_back
from thess_agg_dagster.storage.paths import lake_path
from thess_agg_dagster.timestamp.freshness import is_due
from thess_agg_dagster_tests.conftest import FIRST, SmallLake, scene
from thess_agg_dagster_tests.processes import invoke, statuses
from thess_agg_dagster_tests.rasters import noise, read
from thess_agg_dagster_tests.servers import S3Server, make_bucket

SCENE = scene(FIRST, "T34TFL")


def is_made(small_lake: SmallLake) -> bool:
    """Whether what is published is what would be made now."""
    lake, params = small_lake.lake, TimestampsAggregationParams(bands=["B04"])
    (acquisition,) = read_time_serie(lake.time_serie).acquisitions.values()
    return not is_due(
        acquisition, latest_successes(small_lake.instance, AGGREGATED)[FIRST], lake, params, lake.fingerprints()
    )


def test_todays_layout_works_without_links(small_lake: SmallLake) -> None:
    """As a user has it, by the environment: tiles in ``raw/s2``, tables in ``outputs/tables``."""
    small_lake.tiles = "raw/s2/{scene_id}/{band}.tif"
    pixels = read(small_lake.add_tile(SCENE, "B04"))
    small_lake.list_rows((FIRST, [SCENE]))
    tables = small_lake.root / "outputs" / "tables"
    tables.parent.mkdir()
    small_lake.lake.tables_folder.rename(tables)
    environment = {"THESS_TABLES": str(tables), "THESS_TILES": small_lake.tiles}
    home = str(small_lake.instance.root_directory)
    result = invoke("--data-lake", str(small_lake.root), "--bands", "B04", DAGSTER_HOME=home, **environment)
    assert result.exit_code == 0, result.output
    lake = DataLake.at(str(small_lake.root), str(tables), small_lake.tiles)
    np.testing.assert_array_equal(read(lake.mosaic(FIRST, "B04")), pixels)
    assert statuses(lake) == {FIRST: "success"}
    assert sorted(path.name for path in small_lake.root.iterdir()) == ["data_raw", "outputs", "raw"]
    # What is recorded is told of where the lake was moved, too.
    (made,) = latest_successes(small_lake.instance, AGGREGATED).values()
    assert made.attempt.bands[0].input_files == [str(lake.tile(SCENE, "B04"))]
    manifest = json.loads(lake.manifest(FIRST).read_text())
    assert manifest["inputs"]["B04"][0]["file"] == f"raw/s2/{SCENE}/B04.tif"
    there = DataLake.at("/there", tiles=small_lake.tiles)
    found = read_back(manifest, there, TimestampsAggregationParams())
    assert found.bands[0].input_files == [f"/there/raw/s2/{SCENE}/B04.tif"]


def test_tiles_in_a_bucket_and_mosaics_in_a_folder(small_lake: SmallLake, s3_server: S3Server) -> None:
    make_bucket(s3_server, "tiles")
    small_lake.tiles = "s3://tiles/s2/{scene_id}/{band}.tif"
    small_lake.list_rows((FIRST, [SCENE]))
    small_lake.read_list()
    for seed in (1, 2):
        pixels = noise(seed, (120, 120))
        tile = small_lake.add_tile(SCENE, "B04", pixels=pixels)
        assert seed == 1 or not is_made(small_lake)
        assert small_lake.aggregate(FIRST, bands=["B04"]).attempt.status == "success"
        np.testing.assert_array_equal(read(small_lake.lake.mosaic(FIRST, "B04")), pixels)
        assert is_made(small_lake)
    manifest = json.loads(small_lake.lake.manifest(FIRST).read_text())
    assert manifest["inputs"]["B04"][0]["file"] == str(tile) == f"s3://tiles/s2/{SCENE}/B04.tif"
    assert manifest["inputs"]["B04"][0]["checksum"].startswith("etag:")
    assert read_back(manifest, small_lake.lake, TimestampsAggregationParams()).bands[0].input_files == [str(tile)]
    tile.unlink()
    found = small_lake.aggregate(FIRST, bands=["B04"]).attempt
    assert (found.status, found.bands[0].missing_files) == ("failed_missing_inputs", [str(tile)])


def test_tiles_in_a_folder_and_mosaics_in_a_bucket(small_lake: SmallLake, s3_server: S3Server) -> None:
    make_bucket(s3_server, "mosaics")
    mixed = SmallLake(
        lake_path("s3://mosaics/lake"), small_lake.instance, f"{small_lake.root}/{{scene_id}}/{{band}}.tif"
    )
    pixels = read(mixed.add_tile(SCENE, "B04"))
    mixed.list_rows((FIRST, [SCENE]))
    mixed.read_list()
    assert mixed.aggregate(FIRST, bands=["B04"]).attempt.status == "success"
    np.testing.assert_array_equal(read(mixed.lake.mosaic(FIRST, "B04")), pixels)
    assert is_made(mixed)
    mixed.add_tile(SCENE, "B04", pixels=noise(3, (120, 120)))
    assert not is_made(mixed)


@pytest.mark.parametrize("arguments", [("--tiles", "raw/s2"), ("rebuild", "--tiles", "raw/s2")])
def test_a_template_that_is_none_is_refused(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "tiles='raw/s2' is not a template of tile paths" in " ".join(result.stderr.split())
