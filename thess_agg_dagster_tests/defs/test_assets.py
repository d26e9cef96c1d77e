"""The whole path through Dagster on a real SQLite instance: every status, every check, every table row."""

from __future__ import annotations

import asyncio
from typing import Any

import dagster as dg
import numpy as np
import pytest
import rasterio
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.asset_check_state import AssetCheckState

from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.defs.assets import pipeline_of
from thess_agg_dagster.defs.check_specs import aggregated_checks
from thess_agg_dagster.defs.checks import details_of
from thess_agg_dagster.defs.environment import LAKE
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.keys import AGGREGATED, HERE, REPORT, TIME_SERIE, timestamps
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster.storage.gdal import gdal_name, store_env
from thess_agg_dagster.storage.paths import lake_path
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SECOND, THIRD, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.rasters import ZONE_35, half_empty, noise, read


def statuses(found: RecordedAttempt) -> dict[str, str]:
    return {band.band: band.status for band in found.attempt.bands}


@pytest.fixture
def ready(small_lake: SmallLake) -> SmallLake:
    """A lake with one good timestamp, registered."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    small_lake.read_list()
    return small_lake


@in_folder_and_bucket
def test_three_timestamps_from_tiles_to_tables(small_lake: SmallLake) -> None:
    first = small_lake.add_timestamp(FIRST)
    second = small_lake.add_timestamp(SECOND, jpeg2000=True)
    gone = small_lake.lake.tile(second[1], "B08")
    gone.unlink()
    small_lake.list_rows((SECOND, second), (FIRST, first), (THIRD, []))
    small_lake.read_list()
    assert small_lake.instance.get_dynamic_partitions("timestamp") == [FIRST, SECOND, THIRD]

    assert small_lake.aggregate(FIRST).attempt.status == "success"
    assert small_lake.aggregate(SECOND).attempt.status == "failed_missing_inputs"
    tables = small_lake.tables()

    status = tables["status"]
    assert list(status.columns[:3]) == ["timestamp", "status", "message"]
    assert status[["timestamp", "status"]].to_numpy().tolist() == [
        [FIRST, "success"],
        [SECOND, "failed_missing_inputs"],
        [THIRD, "not_run"],
    ]
    assert f"B08 of {second[1]}: no such file" in status["message"][1]

    summary = tables["summary"].set_index("timestamp")
    assert list(tables["summary"].columns[:6]) == [
        "timestamp", "success", "failed_bands", "missing_files", "error_message", "output_folder",
    ]  # fmt: skip
    assert summary["success"].tolist() == ["True", "False", "False"]
    assert summary.loc[SECOND, "failed_bands"] == "B08"
    assert summary.loc[SECOND, "missing_files"] == str(gone)
    assert summary.loc[FIRST, "output_folder"] == str(small_lake.lake.published(FIRST).folder)
    assert summary.loc[SECOND, "output_folder"] == ""

    report = tables["band_report"].set_index(["timestamp", "band"])
    assert list(tables["band_report"].columns[:6]) == [
        "timestamp", "band", "status", "input_files", "output_path", "message",
    ]  # fmt: skip
    assert report["status"].to_dict() == {
        (FIRST, "B04"): "success", (FIRST, "B08"): "success", (FIRST, "SCL"): "success",
        (SECOND, "B04"): "skipped", (SECOND, "B08"): "missing_input", (SECOND, "SCL"): "skipped",
        (THIRD, "B04"): "skipped", (THIRD, "B08"): "skipped", (THIRD, "SCL"): "skipped",
    }  # fmt: skip
    for band in BANDS:
        row = report.loc[(FIRST, band)]
        inputs = [small_lake.lake.tile(scene_id, band) for scene_id in first]
        assert row["input_files"] == "|".join(map(str, inputs))
        assert row["output_path"] == str(small_lake.lake.mosaic(FIRST, band))
        assert row["reprojected_tiles"] == first[1]
        with store_env(), rasterio.open(gdal_name(lake_path(row["output_path"]))) as mosaic:
            pixels = mosaic.read(1)
            assert (row["width"], row["height"]) == (str(mosaic.width), str(mosaic.height))
            assert (row["dtype"], float(row["nodata"])) == (mosaic.dtypes[0], mosaic.nodata)
            assert row["crs"] == f"EPSG:{mosaic.crs.to_epsg()}" == ZONE_35
            assert float(row["valid_share"]) == pytest.approx((pixels > 0).mean(), abs=1e-6)
            assert int(row["bytes"]) == lake_path(row["output_path"]).stat().st_size
            # The first tile's pixels, bit for bit, where its corner says they are.
            tile = read(inputs[0])
            window = mosaic.window(*rasterio.open(gdal_name(inputs[0])).bounds).round_offsets()
            top, left = int(window.row_off), int(window.col_off)
            np.testing.assert_array_equal(pixels[top : top + tile.shape[0], left : left + tile.shape[1]], tile)

    # The missing tile arrives: the same tables tell the latest truth about all.
    small_lake.add_tile(second[1], "B08")
    assert small_lake.aggregate(SECOND).attempt.status == "success"
    tables = small_lake.tables()
    assert tables["status"]["status"].tolist() == ["success", "success", "not_run"]
    assert tables["summary"]["missing_files"].tolist() == ["", "", ""]


def test_all_problems_of_all_bands_are_found_in_one_attempt(small_lake: SmallLake) -> None:
    ids = small_lake.add_timestamp(FIRST)
    small_lake.lake.tile(ids[0], "B04").unlink()
    small_lake.lake.tile(ids[1], "B08").write_text("<html>login</html>")
    small_lake.lake.tile(ids[0], "B08").unlink()  # beside a damaged one, the missing one leads
    small_lake.add_tile(ids[0], "SCL", crs=None)
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    found = small_lake.aggregate(FIRST)
    assert statuses(found) == {"B04": "missing_input", "B08": "missing_input", "SCL": "unknown_crs"}
    assert found.attempt.status == "failed_missing_inputs"
    checks = small_lake.checks()
    assert not checks["inputs_complete"].passed
    assert checks["inputs_complete"].severity is dg.AssetCheckSeverity.ERROR
    assert not checks["crs_known"].passed
    assert checks["dtype_safe"].passed
    unmade = checks["mosaics_valid"]
    assert (unmade.passed, unmade.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert unmade.description == f"not made, because {found.attempt.message}"
    assert set(as_the_ui_counts(small_lake, FIRST).values()) == {"FAILED", "SUCCEEDED"}
    assert not small_lake.lake.timestamp_folder(FIRST).exists()
    assert isinstance(small_lake.error, dg.Failure)
    assert small_lake.error.description == found.attempt.message


def test_no_tiles_listed(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, []))
    small_lake.read_list()
    found = small_lake.aggregate(FIRST)
    assert found.attempt.status == "failed_no_tiles"
    tables = small_lake.tables()
    assert tables["band_report"]["status"].tolist() == ["skipped"] * 3
    assert not small_lake.checks()["inputs_complete"].passed


@pytest.mark.parametrize(
    ("options", "status", "check"),
    [
        ({"crs": None}, "unknown_crs", "crs_known"),
        ({"pixels": noise(1, (120, 120), dtype="int64")}, "dtype_conflict", "dtype_safe"),
        ({"nodata": -9999, "pixels": half_empty((120, 120), "int16")}, None, None),
        ({"pixels": np.stack([noise(1, (120, 120))] * 3)}, "unreadable_input", "inputs_complete"),
    ],
    ids=["no CRS", "64-bit", "other nodata", "three bands"],
)
def test_invalid_inputs(small_lake: SmallLake, options: dict[str, Any], status: str | None, check: str | None) -> None:
    ids = small_lake.add_timestamp(FIRST)
    small_lake.add_tile(ids[1], "B04", **options)
    small_lake.list_rows((FIRST, ids))
    small_lake.read_list()
    found = small_lake.aggregate(FIRST)
    if status is None:
        assert found.attempt.status == "success"  # uint16 and int16 meet in int32
        assert found.attempt.bands[0].dtype == "int32"
        result = small_lake.checks()["dtype_safe"]
        assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert "promoted" in str(result.description)
        return
    assert check is not None
    assert found.attempt.status == "failed_invalid_inputs"
    assert statuses(found) == {"B04": status, "B08": "skipped", "SCL": "skipped"}
    result = small_lake.checks()[check]
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.ERROR)


@in_folder_and_bucket
def test_pixels_cut_off_are_found_while_merging_and_the_old_mosaics_stay(ready: SmallLake) -> None:
    assert ready.aggregate(FIRST).attempt.status == "success"
    before = {band: ready.lake.mosaic(FIRST, band).read_bytes() for band in BANDS}
    path = ready.lake.tile(scene(FIRST, "T34TFL"), "B08")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = ready.aggregate(FIRST)
    assert statuses(found) == {"B04": "skipped", "B08": "unreadable_input", "SCL": "skipped"}
    assert found.attempt.status == "failed_invalid_inputs"
    assert str(path) in found.attempt.message
    assert {band: ready.lake.mosaic(FIRST, band).read_bytes() for band in BANDS} == before
    assert ready.left_behind() == []


@in_folder_and_bucket
def test_a_lake_that_cannot_be_written(
    ready: SmallLake, lake_kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lake_kind == "bucket":  # that may be read, not written
        request.getfixturevalue("s3_server").faults.append(("PUT", "data_raw/aggregated", 403, 100))
    else:
        ready.lake.aggregated.parent.mkdir(parents=True)
        ready.lake.aggregated.write_text("a file where a folder should be")
    found = ready.aggregate(FIRST)
    assert found.attempt.status == "failed_merge"
    assert set(statuses(found).values()) == {"write_failed"}
    assert "cannot be published" in found.attempt.message


def test_a_timestamp_that_left_the_list(ready: SmallLake) -> None:
    ready.list_rows()
    found = ready.aggregate(FIRST)
    assert found.attempt.status == "exception"
    assert "has no usable row" in found.attempt.message


@in_folder_and_bucket
def test_a_list_that_vanished(ready: SmallLake) -> None:
    ready.lake.time_serie.unlink()
    found = ready.aggregate(FIRST)
    assert found.attempt.status == "exception"
    assert "time_serie.csv: no such file" in found.attempt.message


def test_a_run_that_ends_before_it_can_report(ready: SmallLake) -> None:
    """A resource that cannot be made stops the run before the asset begins: no attempt, but the tables tell."""
    assert ready.aggregate(FIRST).attempt.status == "success"
    with pytest.raises(dg.DagsterResourceFunctionError):
        run_asset(ready.instance, ready.resources(grid="fixed"), AGGREGATED, FIRST)
    tables = ready.tables()
    assert tables["status"]["status"].tolist() == ["exception"]
    message = tables["status"]["message"][0]
    assert "the run ended before it could report" in message
    assert "grid=fixed needs bounds (left, bottom, right, top) or an aoi; look at it in the UI" in message
    assert message.endswith("the previous version stays published")
    # What was wrong before is not lost, either.
    ready.lake.tile(scene(FIRST, "T34TFL"), "B08").unlink()
    ready.aggregate(FIRST)
    with pytest.raises(dg.DagsterResourceFunctionError):
        run_asset(ready.instance, ready.resources(grid="fixed"), AGGREGATED, FIRST)
    message = ready.tables()["status"]["message"][0]
    assert f"previous attempt: failed_missing_inputs: B08 of {scene(FIRST, 'T34TFL')}: no such file" in message


def test_checks_of_a_good_timestamp(ready: SmallLake) -> None:
    ready.aggregate(FIRST)
    checks = ready.checks()
    assert {name: result.passed for name, result in checks.items()} == {
        "inputs_complete": True,
        "crs_known": True,
        "dtype_safe": True,
        "mosaics_valid": True,
    }
    assert "1 of 2 tiles reprojected to EPSG:32635" in str(checks["crs_known"].description)
    assert [line[:5] for line in details_of(checks["crs_known"].metadata)] == ["B04: ", "B08: ", "SCL: "]
    assert {result.partition for result in checks.values()} == {FIRST}


def as_the_ui_counts(lake: SmallLake, timestamp: str) -> dict[str, str]:
    """The state of a timestamp's checks on the asset's page, where one of an older materialization is "Missing"."""

    async def states() -> dict[str, str]:
        context = LoadingContextForTest(lake.instance)
        found = {}
        for spec in aggregated_checks(HERE):
            state = await AssetCheckState.gen(context, (spec.key, timestamps))
            assert state is not None
            held = [status for status, subset in state.subsets.items() if timestamp in subset.subset_value]
            found[spec.name] = "|".join(status.value for status in held) or "MISSING"
        return found

    with partition_loading_context(dynamic_partitions_store=lake.instance):
        return asyncio.run(states())


def test_all_checks_count_to_the_mosaics_they_are_of(ready: SmallLake) -> None:
    """At the first materialization and at the second, and for automation that waits for them."""
    waiting = dg.AutomationCondition.all_checks_match(dg.AutomationCondition.check_passed())
    condition = dg.AutomationCondition.any_deps_match(waiting) & ~dg.AutomationCondition.in_progress()

    @dg.asset(deps=[AGGREGATED], partitions_def=timestamps, automation_condition=condition)
    def ndvi() -> None: ...

    pipeline = pipeline_of(LAKE)
    downstream = dg.Definitions(assets=[ndvi, *(pipeline.assets or ())], resources=pipeline.resources)

    def asked_for() -> set[str | None]:
        found = dg.evaluate_automation_conditions(downstream, ready.instance, dg.AssetSelection.assets(ndvi))
        return {key for key in (FIRST, SECOND) if key in found.get_requested_partitions(ndvi.key)}

    ready.list_rows((FIRST, ready.add_timestamp(FIRST)), (SECOND, []))
    ready.read_list()
    assert asked_for() == set()
    for _ in range(2):
        ready.aggregate(FIRST)
        ready.aggregate(SECOND)
        assert set(as_the_ui_counts(ready, FIRST).values()) == {"SUCCEEDED"}
        assert asked_for() == {FIRST}


def test_checks_of_a_timestamp_that_fails_while_merging_or_before_it_is_planned(ready: SmallLake) -> None:
    """No check reads "execution failed": each says why there is nothing to look at."""
    assert ready.aggregate(FIRST).attempt.status == "success"
    path = ready.lake.tile(scene(FIRST, "T34TFL"), "B08")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    ready.aggregate(FIRST)
    passed = dict.fromkeys(("inputs_complete", "crs_known", "dtype_safe"), "SUCCEEDED")
    assert as_the_ui_counts(ready, FIRST) == passed | {"mosaics_valid": "FAILED"}
    result = ready.checks()["mosaics_valid"]
    assert result.severity is dg.AssetCheckSeverity.ERROR
    assert str(path) in str(result.description)
    ready.list_rows()
    ready.aggregate(FIRST)
    assert as_the_ui_counts(ready, FIRST) == dict.fromkeys(("mosaics_valid", *passed), "FAILED")
    severities = {name: result.severity for name, result in ready.checks().items()}
    assert [name for name, severity in severities.items() if severity is dg.AssetCheckSeverity.ERROR] == [
        "inputs_complete"
    ]


def test_empty_mosaics_do_not_pass(ready: SmallLake) -> None:
    for tile in ("T35TKF", "T34TFL"):
        ready.add_tile(scene(FIRST, tile), "B04", east=tile == "T35TKF", pixels=np.zeros((120, 120), "uint16"))
    assert ready.aggregate(FIRST).attempt.status == "success"
    result = ready.checks()["mosaics_valid"]
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "holds no valid pixel" in str(result.description)


def test_bands_on_different_ground_are_a_warning(ready: SmallLake) -> None:
    ready.add_tile(scene(FIRST, "T34TFL"), "B08", corner=(690000, 4520000))
    assert ready.aggregate(FIRST).attempt.status == "success"
    result = ready.checks()["mosaics_valid"]
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "do not cover the same ground" in str(result.description)


def test_checks_of_the_list(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, ["a"]), ("nonsense", ["b"]))
    small_lake.read_list()
    checks = small_lake.checks(TIME_SERIE)
    assert checks["schema"].passed
    assert (checks["rows"].passed, checks["rows"].severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "line 3" in str(checks["rows"].description)


def test_an_empty_list_gives_empty_tables_and_a_warning(small_lake: SmallLake) -> None:
    small_lake.list_rows()
    small_lake.read_list()
    rows = small_lake.checks(TIME_SERIE)["rows"]
    assert (rows.passed, rows.severity) == (False, dg.AssetCheckSeverity.WARN)
    tables = small_lake.tables()
    assert all(len(table) == 0 and len(table.columns) >= 6 for table in tables.values())


@in_folder_and_bucket
def test_a_list_that_is_missing(small_lake: SmallLake) -> None:
    with pytest.raises(dg.Failure, match="no such file"):
        small_lake.read_list()
    schema = small_lake.checks(TIME_SERIE)["schema"]
    assert (schema.passed, schema.severity) == (False, dg.AssetCheckSeverity.ERROR)


def test_the_report_check_reads_the_tables_back(ready: SmallLake) -> None:
    ready.tables()
    assert ready.checks(REPORT)["complete"].passed


def test_parameters_reach_the_pixels(ready: SmallLake) -> None:
    found = ready.aggregate(FIRST, bands=["B04"], merge_method="max", resampling="bilinear", dtype="float32")
    assert statuses(found) == {"B04": "success"}
    with store_env(), rasterio.open(gdal_name(ready.lake.mosaic(FIRST, "B04"))) as mosaic:
        assert mosaic.dtypes == ("float32",)
        assert np.isnan(mosaic.nodata)
        assert mosaic.tags()["merge_method"] == "max"
        assert mosaic.tags()["resampling"] == "bilinear"
        assert mosaic.tags()["scenes"].split("|") == [scene(FIRST, "T35TKF"), scene(FIRST, "T34TFL")]
    tables = ready.tables()
    assert tables["band_report"][["band", "dtype", "nodata"]].to_numpy().tolist() == [["B04", "float32", "nan"]]


def test_each_materialization_says_with_which_parameters_and_what_changed(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)), (SECOND, small_lake.add_timestamp(SECOND)))
    small_lake.read_list()

    def said() -> tuple[object, ...]:
        (made,) = small_lake.instance.fetch_materializations(AGGREGATED, limit=1).records
        metadata = made.asset_materialization.metadata  # type: ignore[union-attr]
        return tuple(
            metadata[name].value if name in metadata else None for name in ("parameters", "changed_since_last")
        )

    small_lake.aggregate(SECOND, merge_method="max", bands=["B04"])
    small_lake.aggregate(FIRST, bands=["B04"])
    assert said() == ("all defaults", None)
    small_lake.tables(bands=["B04"])
    check = small_lake.checks(REPORT)["same_parameters"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    small_lake.add_tile(scene(FIRST, "T34TFL"), "B04", pixels=noise(77, (120, 120)))
    small_lake.aggregate(FIRST, bands=["B04"], merge_method="max")
    tile = small_lake.lake.tile(scene(FIRST, "T34TFL"), "B04")
    assert said() == ("merge_method=max", f"merge_method: default -> max; the content of {tile} has changed")
    small_lake.tables(bands=["B04"])
    assert small_lake.checks(REPORT)["same_parameters"].passed


@in_folder_and_bucket
def test_a_downstream_asset_gets_the_mosaics_of_its_timestamp(ready: SmallLake) -> None:
    ready.aggregate(FIRST)
    received = []

    @dg.asset(ins={"mosaics": dg.AssetIn(AGGREGATED)}, partitions_def=dg.DynamicPartitionsDefinition(name="timestamp"))
    def ndvi(mosaics):  # type: ignore[no-untyped-def]
        with mosaics.open("B04") as red:
            received.append((mosaics.timestamp, sorted(mosaics.paths), red.read(1).mean()))

    result = dg.materialize(
        [ndvi, dg.AssetSpec(AGGREGATED, partitions_def=dg.DynamicPartitionsDefinition(name="timestamp"))],
        selection=[ndvi],
        partition_key=FIRST,
        instance=ready.instance,
        resources={"io_manager": DataLakeIOManager(data_lake=str(ready.root))},
    )
    assert received == [(FIRST, list(BANDS), read(ready.lake.mosaic(FIRST, "B04")).mean())]
    assert result.success


@in_folder_and_bucket
def test_a_mosaic_that_was_never_made_is_not_found(small_lake: SmallLake) -> None:
    with pytest.raises(FileNotFoundError, match="materialize data_raw/aggregated"):
        DataLakeIOManager(data_lake=str(small_lake.root)).mosaics(FIRST)
