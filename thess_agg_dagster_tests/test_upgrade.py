"""Lakes that the releases 0.1.0 and 0.2.0 left (``data/release_*``), opened by this one in another folder."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from thess_agg_dagster import mosaic
from thess_agg_dagster.audit.event_log import attempt_metadata, latest_attempts, latest_successes
from thess_agg_dagster.audit.outcome import SCHEMA, Attempt, BandRecord
from thess_agg_dagster.definitions import defs
from thess_agg_dagster.defs.environment import LAKE
from thess_agg_dagster.defs.sensors.tiles import late_tiles_sensor_of
from thess_agg_dagster.keys import AGGREGATED, REPORT, TIME_SERIE
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition, read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster.runs.instance import open_instance
from thess_agg_dagster.timestamp import freshness
from thess_agg_dagster.timestamp.freshness import changed_inputs, current_bands, identify_bands, is_due, is_identified
from thess_agg_dagster_tests.conftest import FIRST, SECOND, THIRD, SmallLake
from thess_agg_dagster_tests.processes import invoke
from thess_agg_dagster_tests.rasters import DATA, read

AOI = "POLYGON((23.25 40.55,23.45 40.55,23.45 40.65,23.25 40.65,23.25 40.55))"
GIVEN: dict[str, Any] = {
    "merge_method": "max", "resampling": "bilinear", "nodata": -9999, "aoi": AOI, "mask_scl_classes": [3, 8, 9, 10],
    "harmonize": True, "stac": True,
}  # fmt: skip
OPTIONS = (
    "--merge-method", "max", "--resampling", "bilinear", "--nodata", "-9999", "--aoi", AOI,
    "--mask-scl-classes", "3,8,9,10", "--harmonize", "--stac",
)  # fmt: skip


def unpack(folder: Path) -> None:
    with tarfile.open(DATA / "release_0_1_0" / "lakes.tar.xz") as archive:
        archive.extractall(folder, filter="data")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallLake]:
    """The lake that 0.1.0 made with default parameters, in another folder, with its own event log."""
    unpack(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", "")
    with open_instance(tmp_path / "defaults") as instance:
        yield SmallLake(tmp_path / "defaults", instance)


def due(lake: DataLake, instance: dg.DagsterInstance, **given: Any) -> list[str]:
    params, latest, fingerprints = (
        TimestampsAggregationParams(**given),
        latest_attempts(instance, AGGREGATED),
        lake.fingerprints(),
    )
    rows = read_time_serie(lake.time_serie).acquisitions
    return [key for key, row in rows.items() if is_due(row, latest.get(key), lake, params, fingerprints)]


def test_its_attempts_are_read(old: SmallLake) -> None:
    found = {key: each.attempt for key, each in latest_attempts(old.instance, AGGREGATED).items()}
    assert {key: each.status for key, each in found.items()} == {
        FIRST: "success", SECOND: "failed_missing_inputs", THIRD: "failed_invalid_inputs",
    }  # fmt: skip
    assert [band.band for band in found[FIRST].bands] == ["B04", "B08", "SCL"]
    assert found[FIRST].schema == 0
    assert found[SECOND].bands[2].missing_files
    assert {band.status for band in found[THIRD].bands} == {"skipped", "unknown_crs"}


def test_its_timestamps_are_not_due(old: SmallLake) -> None:
    assert due(old.lake, old.instance) == [SECOND, THIRD]  # those that failed
    # Fewer bands are no change; more are.
    assert due(old.lake, old.instance, bands=["SCL", "B04"]) == [SECOND, THIRD]
    assert FIRST in due(old.lake, old.instance, bands=["B04", "B05"])
    assert FIRST in due(old.lake, old.instance, resampling="cubic")
    # What those that failed were made of is known again, too: their tiles are no news for the sensor.
    params, rows = TimestampsAggregationParams(), read_time_serie(old.lake.time_serie).acquisitions
    for key, found in latest_attempts(old.instance, AGGREGATED).items():
        assert is_identified(found.attempt.inputs, rows[key], old.lake, params)
    resources = {"io_manager": LAKE.io_manager, "params": params}
    context = dg.build_sensor_context(instance=old.instance, resources=resources)
    tick = late_tiles_sensor_of(LAKE)(context)
    assert isinstance(tick, dg.SkipReason)


def test_neither_are_those_made_with_other_parameters(tmp_path: Path) -> None:
    unpack(tmp_path)
    lake = DataLake(tmp_path / "parameters")
    with open_instance(lake.root) as instance:
        assert due(lake, instance, **GIVEN) == []
        assert due(lake, instance, **GIVEN | {"stac": False}) == []
        assert due(lake, instance, **GIVEN | {"harmonize": False}) == [FIRST, SECOND]
        lake.published(SECOND).item.unlink()
        assert due(lake, instance, **GIVEN) == [SECOND]


def test_a_changed_tile_makes_one_of_them_due(old: SmallLake) -> None:
    params = TimestampsAggregationParams()
    assert changed_inputs(latest_successes(old.instance, AGGREGATED), old.lake, params) == {}
    scene_id = latest_successes(old.instance, AGGREGATED)[FIRST].attempt.scene_ids[0]
    old.add_tile(scene_id, "B08", east=True)
    assert due(old.lake, old.instance) == [FIRST, SECOND, THIRD]
    assert set(changed_inputs(latest_successes(old.instance, AGGREGATED), old.lake, params)) == {FIRST}


def test_nothing_is_stale_for_dagster(old: SmallLake) -> None:
    graph = defs.get_repository_def().asset_graph
    resolver = CachingStaleStatusResolver(old.instance, graph, LoadingContextForTest(old.instance))
    assert resolver.get_status(AGGREGATED, FIRST) == StaleStatus.FRESH


def test_the_command_skips_reports_and_verifies(tmp_path: Path) -> None:
    unpack(tmp_path)
    lake = DataLake(tmp_path / "parameters")
    before = {path: path.stat().st_mtime_ns for path in lake.aggregated.glob("2*/*")}
    result = invoke("--data-lake", str(lake.root), *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "2 timestamps, 2 unchanged and skipped" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in lake.aggregated.glob("2*/*")} == before
    table = pd.read_csv(lake.audit_table("band_report"), dtype=str, keep_default_na=False)
    assert list(table["status"]) == ["success"] * 6
    assert set(table["crs"]) == {"EPSG:32635"}
    # Tables and verification tell of this lake, not of where it stood when it was made.
    assert [Path(path) for path in table["output_path"]] == sorted(lake.aggregated.glob("2*/*.tif"))
    assert all(Path(path).exists() for cell in table["input_files"] for path in cell.split("|"))
    summary = pd.read_csv(lake.audit_table("summary"), dtype=str, keep_default_na=False)
    assert list(summary["output_folder"]) == [str(lake.timestamp_folder(key)) for key in (FIRST, SECOND)]

    verified = invoke("--data-lake", str(lake.root), "--verify")
    assert (verified.exit_code, "6 mosaics checked" in verified.stderr) == (0, True), verified.output
    lake.mosaic(FIRST, "B08").unlink()
    mosaic = lake.mosaic(SECOND, "B04")
    mosaic.write_bytes(mosaic.read_bytes()[:-1] + b"x")
    verified = invoke("--data-lake", str(lake.root), "--verify")
    assert verified.exit_code == 1
    assert f"{FIRST}: {lake.mosaic(FIRST, 'B08')}: cannot be found" in verified.stderr
    assert f"{SECOND}: {mosaic}: has xxh128:" in verified.stderr


def test_one_of_its_timestamps_is_made_again_beside_the_others(old: SmallLake) -> None:
    """The failed one, once its tile is there; the report tells of records of both releases."""
    scene_id = latest_attempts(old.instance, AGGREGATED)[SECOND].attempt.scene_ids[1]
    old.add_tile(scene_id, "SCL", pixels=read(old.lake.tile(scene_id, "B04"))[::2, ::2].astype("uint8"), pixel=1000)
    run_asset(old.instance, old.resources(), TIME_SERIE)
    made = old.aggregate(SECOND).attempt
    assert (made.status, made.schema) == ("success", SCHEMA)
    assert due(old.lake, old.instance) == [THIRD]
    status = old.tables()["status"]
    assert list(status["status"]) == ["success", "success", "failed_invalid_inputs"]


def test_its_bands_stay_where_others_are_made_again(old: SmallLake) -> None:
    before = {band: old.lake.mosaic(FIRST, band).read_bytes() for band in ("B08", "SCL")}
    old.add_tile(latest_successes(old.instance, AGGREGATED)[FIRST].attempt.scene_ids[0], "B05", east=True)
    shutil.copyfile(
        *(
            old.lake.tile(latest_successes(old.instance, AGGREGATED)[FIRST].attempt.scene_ids[1], b)
            for b in ("B04", "B05")
        )
    )
    found = old.aggregate(FIRST, bands=["B05", "B04"]).attempt
    assert (found.status, [band.band for band in found.bands]) == ("success", ["B05", "B04", "B08", "SCL"])
    assert {band: old.lake.mosaic(FIRST, band).read_bytes() for band in before} == before
    assert due(old.lake, old.instance, bands=["B04", "B05", "B08", "SCL"]) == [SECOND, THIRD]


def test_pixels_of_another_version_are_due(old: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness, "PIXELS_VERSION", 2)
    assert due(old.lake, old.instance) == [FIRST, SECOND, THIRD]
    assert freshness.code_version() == "2"


# What identified these tiles with these parameters when the pixels had the version 1. They hold as long as that version
# does: a change that breaks one makes every lake due. Either it must not, or PIXELS_VERSION is raised (and these with it).
IDENTITIES: list[tuple[dict[str, Any], str]] = [
    ({}, "30bb960fe65513a187b2f8fa23833c6b"),
    (
        {
            "bands": ["B04", "B99"],
            "stac": True,
            "threads": 7,
            "max_workers": 3,
            "download_from": ["a.org"],
            "provenance": True,
            "seams": True,
        },
        "30bb960fe65513a187b2f8fa23833c6b",
    ),
    ({"merge_method": "max"}, "432d385496b46f9811ccdedea2f3ca7a"),
    ({"resampling": "cubic"}, "68bf153ad047b6933b564137e2c87121"),
    ({"nodata": -9999}, "cac279897daf9f4bb460db1582db260a"),
    ({"dtype": "float32"}, "470c2863133f00ed9ff20772b63ae2ba"),
    ({"compress": "deflate"}, "00f352012cd9f4b12c5a98f66b53e174"),
    ({"target_crs": "EPSG:32634"}, "b76d80670b09260cc61c8886a4757e20"),
    ({"target_crs": "EPSG:32634", "grid": "fixed", "bounds": [0, 0, 60, 60.5]}, "4970b53abf32267a154abf79dd20f770"),
    ({"aoi": AOI}, "cd6b3b926b3f2a948c354938c4275690"),
    ({"aoi": AOI, "aoi_mask": True, "grid": "fixed"}, "0d13887116f3937e929903562ec91952"),
    ({"resolution": 20, "reduction": "med", "overviews": True}, "c52d2a1a5f212cfe42a9e3372b1543ff"),
    ({"match_band": "B08"}, "a53e4b8003f75539548dfc939e55f898"),
    ({"mask_scl_classes": [9, 3], "missing_scl": "unmasked"}, "783cf939496fbe40466a78d3659d07bf"),
    ({"harmonize": True}, "d664cff348c7d6e5c6903723526782a4"),
    ({"format": "cog"}, "3e6a77dc5abab1ee8945ecbfe9e61bfd"),
]


@pytest.mark.parametrize(("given", "expected"), IDENTITIES)
def test_identities_stay(tmp_path: Path, given: dict[str, Any], expected: str) -> None:
    assert mosaic.PIXELS_VERSION == 1
    lake = DataLake(tmp_path)
    acquisition = Acquisition(FIRST, ("S2A_A", "S2A_B"))
    params = TimestampsAggregationParams(**given)
    fingerprints = {".tif": "1666 1690000000000000000", ".json": "9103 1690000000000000000"}
    found = identify_bands(acquisition, lake, params, ["B04"], lambda path: fingerprints.get(Path(str(path)).suffix))
    assert found == {"B04": expected}


def test_all_that_decides_pixels_has_an_identity() -> None:
    assert {name for given, _ in IDENTITIES for name in given} >= set(
        json.loads(TimestampsAggregationParams().as_json())
    )


def test_records_of_other_releases_are_read(small_lake: SmallLake) -> None:
    """Unknown fields are passed over, missing ones have their default, an unknown status is reported as it is."""
    small_lake.list_rows((FIRST, ["A"]), (SECOND, ["B"]), (THIRD, ["C"]))
    small_lake.read_list()
    future = Attempt(FIRST, "success", "", [BandRecord("B04", "success", width=3, height=4, valid_share=1.0)])
    data = attempt_metadata(future)["attempt"].data
    data |= {"schema": 99, "planet": "Mars"}
    data["bands"][0] |= {"polarization": "VV"}
    past = {"timestamp": SECOND, "status": "success", "message": "", "bands": [{"band": "B04", "status": "success"}]}
    small_lake.instance.report_runless_asset_event(
        dg.AssetMaterialization(AGGREGATED, partition=FIRST, metadata={"attempt": dg.MetadataValue.json(data)})
    )
    small_lake.instance.report_runless_asset_event(
        dg.AssetMaterialization(AGGREGATED, partition=SECOND, metadata={"attempt": dg.MetadataValue.json(past)})
    )
    strange = {"timestamp": THIRD, "status": "failed_by_aliens", "bands": [{"band": "B04", "status": "abducted"}]}
    small_lake.instance.report_runless_asset_event(
        dg.AssetObservation(AGGREGATED, partition=THIRD, metadata={"attempt": dg.MetadataValue.json(strange)})
    )
    found = {key: each.attempt for key, each in latest_attempts(small_lake.instance, AGGREGATED).items()}
    assert json.dumps(asdict(found[FIRST])) == json.dumps(asdict(replace(future, schema=99)))
    assert found[SECOND].bands == [BandRecord("B04", "success")]
    assert (found[SECOND].schema, found[SECOND].inputs) == (0, "")
    rows = read_time_serie(small_lake.lake.time_serie).acquisitions
    params = TimestampsAggregationParams()
    assert current_bands(found[FIRST], rows[FIRST], small_lake.lake, params, lambda _: "1 1") == set()
    tables = small_lake.tables()
    assert list(tables["status"]["status"]) == ["success", "success", "failed_by_aliens"]
    assert list(tables["band_report"]["status"]) == ["success", "success", "abducted"]
    assert REPORT in small_lake.instance.all_asset_keys()


FIXED = (
    "--grid", "fixed", "--bounds", "690000,4488000,705200,4500000", "--target-crs", "EPSG:32634", "--composites", "month,quarter",
    "--min-observations", "1", "--ndvi", "float32", "--provenance", "--stac",
)  # fmt: skip


@pytest.fixture
def of_0_2_0(tmp_path: Path) -> DataLake:
    """The lake that 0.2.0 made, in another folder, with its own event log."""
    with tarfile.open(DATA / "release_0_2_0" / "lake.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return DataLake(tmp_path / "lake")


def test_what_0_2_0_made_is_skipped_reported_and_verified(of_0_2_0: DataLake) -> None:
    """Timestamps with their NDVI and origins, composites, and a timestamp that failed."""
    lake, root = of_0_2_0, ("--data-lake", str(of_0_2_0.root))
    before = {path: path.stat().st_mtime_ns for path in (lake.root / "data_raw").glob("*/2*/*")}
    assert len(before) == 38
    told = invoke(*root, *FIXED, "--dry-run").stdout
    assert "1 timestamps due" in told
    result = invoke(*root, *FIXED)
    assert result.exit_code == 1, result.output  # the one that lacks a tile
    assert "3 timestamps, 2 unchanged and skipped" in result.stdout
    assert "3 periods, 2 unchanged and skipped, 1 without a published timestamp" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in (lake.root / "data_raw").glob("*/2*/*")} == before
    bands = pd.read_csv(lake.audit_table("band_report"), dtype=str, keep_default_na=False)
    assert [*bands["band"]] == ["B04", "B08", "NDVI", "SCL"] * 3
    assert [bool(shares) for shares in bands["tile_shares"]] == [True, True, False, True] * 2 + [False] * 4
    composites = pd.read_csv(lake.audit_table("composites"), dtype=str, keep_default_na=False)
    assert dict(zip(composites["period"], composites["status"], strict=True)) == {
        "2023-04": "success", "2023-05": "not_run", "2023-Q2": "success",
    }  # fmt: skip
    verified = invoke(*root, "--verify")
    assert (verified.exit_code, "18 mosaics checked" in verified.stderr) == (0, True), verified.output


def test_what_0_2_0_made_can_be_read_back_without_its_event_log(of_0_2_0: DataLake) -> None:
    shutil.rmtree(of_0_2_0.root / ".dagster")
    found = invoke("rebuild", "--data-lake", str(of_0_2_0.root))
    assert found.exit_code == 0, found.output
    assert found.stdout.count("restored") == 4
    result = invoke("--data-lake", str(of_0_2_0.root), *FIXED)
    assert "3 timestamps, 2 unchanged and skipped" in result.stdout
    assert "3 periods, 2 unchanged and skipped" in result.stdout
