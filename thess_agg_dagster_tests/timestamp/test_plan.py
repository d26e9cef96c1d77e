"""What is planned for a timestamp, of tiles of a few pixels in a folder; and what a plan says of itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thess_agg_dagster.audit.outcome import Attempt
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.mosaic.origins import OriginFiles
from thess_agg_dagster.mosaic.tiles import Problem
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp.build import build_timestamp
from thess_agg_dagster.timestamp.freshness import identify_inputs
from thess_agg_dagster.timestamp.plan import Scene, TimestampPlan, plan_timestamp
from thess_agg_dagster.timestamp.refetch import Refetched
from thess_agg_dagster_tests.rasters import write_tile
from thess_agg_dagster_tests.servers import Archive, serving

KEY = "2023-02-02 09:21:09+02:00"
OLD, NEW = "S2A_N0300_A", "S2A_N0510_B"
AREA = "SRID=32634;POLYGON((600000 4499950, 600050 4499950, 600050 4500000, 600000 4500000, 600000 4499950))"


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    return DataLake(tmp_path / "lake")


def tile(lake: DataLake, scene: str, band: str, pixel: int = 10, dtype: str = "uint16", **options: Any) -> Path:
    size = 120 // pixel
    pixels = np.full((size, size), 4 if dtype == "uint8" else 1200, dtype)
    return write_tile(lake.tile(scene, band), pixels, pixel=pixel, block=16, **options)


def tiles(lake: DataLake, *scenes: str, dtype: str = "uint16") -> None:
    """B04 and B08 of 10 m, B02 and SCL of 20 m."""
    for scene in scenes:
        for band in ("B04", "B08"):
            tile(lake, scene, band, dtype=dtype)
        tile(lake, scene, "B02", 20, dtype)
        tile(lake, scene, "SCL", 20, "uint8")


def planned(
    lake: DataLake,
    *scenes: str,
    fetched: Mapping[File, Refetched | str] | None = None,
    made: Attempt | None = None,
    **given: Any,
) -> TimestampPlan:
    params = TimestampsAggregationParams(**{"bands": ["B04", "B08"]} | given)
    return plan_timestamp(Acquisition(KEY, scenes), lake, params, fetched or {}, made)


def text_of(problems: Mapping[str, Any]) -> dict[str, list[tuple[str, str, File | None]]]:
    return {band: [(each.kind, each.reason, each.path) for each in found] for band, found in problems.items()}


# --- what a plan says of itself -------------------------------------------------------------------------------


def test_a_plan_tells_what_it_is_of(lake: DataLake) -> None:
    tiles(lake, OLD, NEW)
    plan = planned(lake, OLD, NEW, bands=["B04", "SCL"])
    assert plan.problems == {}
    assert (plan.timestamp, plan.scene_ids, plan.asked) == (KEY, (OLD, NEW), ["B04", "SCL"])
    assert plan.scenes == [Scene(OLD, "03.00", 0), Scene(NEW, "05.10", 1000)]
    instant = datetime(2023, 2, 2, 7, 21, 9, tzinfo=UTC)
    assert plan.span == (instant, instant)
    assert plan.told == {"timestamp": KEY, "scenes": (OLD, NEW)}
    assert plan.summary() == "Merging 2 tiles into B04 (12 x 12), SCL (6 x 6)"
    assert plan.input_files() == [lake.tile(scene, band) for band in ("B04", "SCL") for scene in (OLD, NEW)]
    assert plan.place_of(lake.tile(NEW, "B04")) == NEW
    assert plan.composed is False
    assert (plan.replaces, plan.index, plan.kept, plan.refetched) == (None, None, {}, {})
    assert (plan.stac, plan.refetchable, plan.provenance, plan.seams) == (False, False, False, False)
    acquisition = Acquisition(KEY, (OLD, NEW))
    assert plan.inputs == identify_inputs(acquisition, lake, TimestampsAggregationParams(bands=["B04", "SCL"]))
    with pytest.raises(AttributeError):
        plan.timestamp = "2024"  # type: ignore[misc]


def test_a_plan_made_by_hand_says_no_more_than_it_was_given() -> None:
    plan = TimestampPlan(KEY, (), {}, {}, {})
    assert (plan.stac, plan.refetchable, plan.provenance, plan.seams) == (False, False, False, False)
    assert (plan.parameters, plan.differing) == ("{}", "{}")


def test_files_that_mask_are_read_once(lake: DataLake) -> None:
    tiles(lake, OLD)
    plan = planned(lake, OLD, bands=["B04", "B08", "SCL"], mask_scl_classes=[9])
    assert plan.input_files() == [lake.tile(OLD, band) for band in ("B04", "SCL", "B08")]


def test_parameters_reach_the_plan(lake: DataLake) -> None:
    tiles(lake, OLD)
    plan = planned(
        lake, OLD, merge_method="max", stac=True, provenance=True, seams=True, download_from=["https://archive.org"]
    )
    assert (plan.stac, plan.refetchable, plan.provenance, plan.seams) == (True, True, True, True)
    assert json.loads(plan.differing) == {"merge_method": "max"}
    told = json.loads(plan.parameters)
    assert (told["merge_method"], told["bands"], told["stac"]) == ("max", ["B04", "B08"], True)


@pytest.mark.parametrize(
    ("given", "done", "empty"),
    [
        ({}, [], ""),
        (
            {"mask_scl_classes": [8, 9]},
            ["SCL classes 8, 9 emptied before"],
            "everything is masked or outside the aoi",
        ),
        ({"harmonize": True}, ["radiometric offset of processing baseline 04.00 removed"], ""),
        ({"aoi": AREA}, [], "everything is masked or outside the aoi"),
    ],
)
def test_how_pixels_are_made_and_why_there_may_be_none(
    lake: DataLake, given: dict[str, Any], done: list[str], empty: str
) -> None:
    tiles(lake, OLD, NEW)
    plan = planned(lake, NEW, OLD, merge_method="min", **given)
    assert plan.lineage() == [f"merged (min) in this order: {NEW}, {OLD}", *done]
    assert plan.why_empty(plan.mosaics["B04"]) == empty


def test_origins_stand_beside_the_bands_and_counts_beside_the_finest(lake: DataLake) -> None:
    tiles(lake, NEW)
    folder = Path("/staging")
    given: dict[str, Any] = {"bands": ["B02", "B04", "B08", "SCL"], "ndvi": "float32"}
    plan = planned(lake, NEW, provenance=True, **given)
    assert {band: plan.beside(mosaic, folder) for band, mosaic in plan.mosaics.items()} == {
        "B02": OriginFiles(folder / "source_B02.tif"),
        "B04": OriginFiles(folder / "source.tif", folder / "observations.tif"),
        "B08": OriginFiles(folder / "source_B08.tif"),
        "SCL": OriginFiles(folder / "source_SCL.tif"),
        "NDVI": None,
    }
    plan = planned(lake, NEW, **given)
    assert {plan.beside(mosaic, folder) for mosaic in plan.mosaics.values()} == {None}


def test_nothing_listed_is_nothing_planned(lake: DataLake) -> None:
    plan = planned(lake)
    assert (plan.mosaics, plan.problems, plan.scenes) == ({}, {}, [])
    assert plan.nothing == "time_serie.csv lists no tiles for this timestamp; add them to tile_ids, or remove the row"


# --- problems -------------------------------------------------------------------------------------------------


def test_bands_with_problems_have_no_mosaic_and_the_others_do(lake: DataLake) -> None:
    tiles(lake, OLD, NEW)
    lake.tile(NEW, "B08").unlink()
    lake.tile(OLD, "B08").write_bytes(b"no tile")
    plan = planned(lake, OLD, NEW, bands=["B04", "B08", "SCL"])
    assert list(plan.mosaics) == ["B04", "SCL"]
    assert list(plan.problems) == ["B08"]
    assert {(each.kind, each.path) for each in plan.problems["B08"]} == {
        ("unreadable_input", lake.tile(OLD, "B08")),
        ("missing_input", lake.tile(NEW, "B08")),
    }


def sums(path: Path, digest: str | None = None) -> None:
    """Publish a tile's checksum beside it."""
    text = digest or hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{text}  {path.name}\n")


def test_a_tile_that_differs_from_its_checksum_is_not_used(lake: DataLake) -> None:
    tiles(lake, OLD, NEW)
    for scene in (OLD, NEW):
        sums(lake.tile(scene, "B04"))
        sums(lake.tile(scene, "B08"))
    assert planned(lake, OLD, NEW).problems == {}
    changed = lake.tile(NEW, "B08")
    (before, after) = (hashlib.sha256(text).hexdigest() for text in (b"others", changed.read_bytes()))
    sums(changed, before)
    plan = planned(lake, OLD, NEW)
    reason = f"has sha256:{after}, but sha256:{before} was published (in {changed}.sha256); download the tile again"
    assert plan.problems == {"B08": [Problem("checksum_mismatch", reason, changed)]}
    assert list(plan.mosaics) == ["B04"]


def test_an_scl_that_differs_from_its_checksum_masks_nothing(lake: DataLake) -> None:
    tiles(lake, OLD)
    scl = lake.tile(OLD, "SCL")
    sums(scl, "0" * 64)
    assert planned(lake, OLD).problems == {}
    for band in ("B02", "B08"):  # one sorts before SCL, as all do; what masks may be called otherwise
        found = planned(lake, OLD, bands=[band, "SCL"], mask_scl_classes=[9]).problems
        assert {name: [(each.kind, each.path) for each in each_] for name, each_ in found.items()} == {
            name: [("checksum_mismatch", scl)] for name in (band, "SCL")
        }
    lower = tile(lake, OLD, "scl", 20, "uint8")
    sums(lower, "0" * 64)
    tile(lake, OLD, "zenith")
    found = planned(lake, OLD, bands=["zenith", "scl"], mask_scl_classes=[9]).problems
    assert [(each.kind, each.path) for each in found["zenith"]] == [("checksum_mismatch", lower)]
    assert [(each.kind, each.path) for each in found["scl"]] == [("checksum_mismatch", lower)]


def test_checksums_that_cannot_be_compared(lake: DataLake) -> None:
    tiles(lake, OLD)
    path = lake.tile(OLD, "B04")
    sums(path, "no checksum")
    (problem,) = planned(lake, OLD, bands=["B04"]).problems["B04"]
    assert (problem.kind, problem.path) == ("checksum_mismatch", path)
    assert problem.reason.startswith(f"the checksum in {path}.sha256 cannot be parsed ('no checksum")
    # A tile that is missing, or no file, is told of by who opens it, once.
    sums(path)
    path.unlink()
    assert [each.kind for each in planned(lake, OLD, bands=["B04"]).problems["B04"]] == ["missing_input"]
    path.mkdir()
    assert len(planned(lake, OLD, bands=["B04"]).problems["B04"]) == 1
    path.rmdir()
    os.mkfifo(path)
    told = Problem("unreadable_input", "is a pipe or a device, not a regular file; remove it", path)
    assert planned(lake, OLD, bands=["B04"]).problems["B04"] == [told]
    path.with_name(f"{path.name}.sha256").unlink()
    assert planned(lake, OLD, bands=["B04"]).problems["B04"] == [told]


def test_links_out_of_the_lake_are_not_followed(lake: DataLake, tmp_path: Path) -> None:
    tiles(lake, OLD, NEW)
    stray = "is a symbolic link out of the lake, which is not followed; put the file itself there"
    for band in ("B08", "SCL"):
        path = lake.tile(NEW, band)
        path.rename(tmp_path / f"{band}.tif")
        path.symlink_to(tmp_path / f"{band}.tif")
    sums(lake.tile(NEW, "B08"), "0" * 64)  # nor compared
    plan = planned(lake, OLD, NEW)
    assert plan.problems == {"B08": [Problem("unreadable_input", stray, lake.tile(NEW, "B08"))]}
    assert list(plan.mosaics) == ["B04"]
    plan = planned(lake, OLD, NEW, mask_scl_classes=[9])
    assert text_of(plan.problems) == {
        "B04": [("unreadable_input", stray, lake.tile(NEW, "SCL"))],
        "B08": [("unreadable_input", stray, lake.tile(NEW, band)) for band in ("B08", "SCL")],
    }


def test_a_tile_that_stays_at_its_address_is_not_read_as_a_whole(lake: DataLake) -> None:
    """Its ETag tells of a change, so it is not compared with the checksum that its STAC item gives (a wrong one)."""
    tile(lake, OLD, "B04", driver="COG", tiled=None, blocksize=128)
    path = lake.tile(OLD, "B04")
    with serving(Archive(files={"/B04.tif": path.read_bytes()})) as archive:
        path.unlink()
        item = lake.scene_item(OLD)
        item.parent.mkdir()
        asset = {"href": f"{archive.url}/B04.tif", "file:checksum": "1220" + "0" * 64}
        item.write_text(json.dumps({"assets": {"B04": asset}}))
        plan = planned(replace(lake, remote=True), OLD, bands=["B04"], download_from=[archive.url])
    assert plan.problems == {}
    (layer,) = plan.mosaics["B04"].layers
    assert str(layer.tile.path) == asset["href"]


def test_what_came_of_fetching_a_tile_again_is_told(lake: DataLake) -> None:
    tiles(lake, OLD, NEW)
    missing = lake.tile(OLD, "B08")
    missing.unlink()
    before = planned(lake, OLD, NEW).problems["B08"]
    (plain,) = before
    again = Refetched("cut off", "https://archive.org/x", "2023-03-01", 1, "")
    assert planned(lake, OLD, NEW, fetched={missing: again}).problems["B08"] == before
    assert planned(lake, OLD, NEW, fetched={lake.tile(NEW, "B08"): "404"}).problems["B08"] == before
    (problem,) = planned(lake, OLD, NEW, fetched={missing: "404"}).problems["B08"]
    assert problem == replace(plain, reason=f"{plain.reason} (fetching it again failed: 404)")


def test_tiles_that_were_fetched_earlier_are_known(lake: DataLake) -> None:
    tiles(lake, OLD, NEW)
    records = {}
    for band in ("B08", "SCL"):
        path = lake.tile(NEW, band)
        records[path] = Refetched("cut off", "https://archive.org/x", "2023-03-01", path.stat().st_size, "")
        path.with_name(f"{path.name}.fetched.json").write_text(json.dumps(asdict(records[path])))
    assert planned(lake, OLD, NEW).refetched == {lake.tile(NEW, "B08"): records[lake.tile(NEW, "B08")]}
    assert planned(lake, OLD, NEW, mask_scl_classes=[9]).refetched == records


# --- NDVI -----------------------------------------------------------------------------------------------------


def test_ndvi_comes_last_and_reads_what_its_bands_read(lake: DataLake) -> None:
    tiles(lake, NEW)
    plan = planned(lake, NEW, bands=["B04", "SCL", "B08"], ndvi="int16")
    assert list(plan.mosaics) == ["B04", "SCL", "B08", "NDVI"]
    assert list(plan.merged) == ["B04", "SCL", "B08"]
    assert {band: plan.derived_from(band) for band in plan.mosaics} == {
        "B04": (), "SCL": (), "B08": (), "NDVI": ("B08", "B04"),
    }  # fmt: skip
    assert list(plan.mosaics["NDVI"].files()) == [lake.tile(NEW, "B08"), lake.tile(NEW, "B04")]
    assert plan.mosaics["NDVI"].grid == plan.mosaics["B04"].grid
    assert (plan.asked, set(plan.identities)) == (["B04", "SCL", "B08", "NDVI"], {"B04", "SCL", "B08", "NDVI"})
    assert planned(lake, NEW, bands=["B04", "B08"], ndvi="int16").index == plan.index
    # Not asked for.
    plan = planned(lake, NEW)
    assert (list(plan.mosaics), plan.index) == (["B04", "B08"], None)


def test_tiles_called_ndvi_are_merged_like_others(lake: DataLake) -> None:
    tile(lake, NEW, "NDVI", dtype="float32")
    plan = planned(lake, NEW, bands=["NDVI"])
    assert (list(plan.mosaics), list(plan.merged), plan.derived_from("NDVI")) == (["NDVI"], ["NDVI"], ())


@pytest.mark.parametrize("ndvi", ["int16", "float32"])
@pytest.mark.parametrize(
    ("scenes", "dtype", "given", "offset"),
    [
        ([OLD], "uint16", {}, 0),
        ([NEW], "uint16", {}, 1000),
        ([NEW, "S2B_N0500_C"], "uint16", {}, 1000),
        ([NEW], "uint16", {"harmonize": True}, 0),
        ([OLD, NEW], "uint16", {"harmonize": True}, 0),
        ([NEW], "float32", {}, 0),  # somebody has made reflectances of them
        ([OLD, NEW], "float32", {}, 0),
        (["S2_unknown"], "float32", {}, 0),
        ([OLD, NEW], "uint16", {}, None),
        (["S2_unknown"], "uint16", {}, None),
        ([OLD, "S2_unknown"], "uint16", {}, None),
    ],
)
def test_ndvi_is_made_of_reflectances_with_one_known_offset(
    lake: DataLake, ndvi: str, scenes: list[str], dtype: str, given: dict[str, Any], offset: float | None
) -> None:
    for scene in scenes:
        for band in ("B04", "B08"):
            tile(lake, scene, band, dtype=dtype)
    plan = planned(lake, *scenes, ndvi=ndvi, **given)
    assert {"B04", "B08"} <= set(plan.mosaics)
    if offset is None:
        what = "NDVI needs to know one radiometric offset of all scenes; set harmonize"
        assert plan.problems == {"NDVI": [Problem("unknown_baseline", what)]}
        assert plan.index is None
    else:
        assert plan.problems == {}
        assert plan.index is not None
        assert (plan.index.offset, plan.index.scaled) == (offset, ndvi == "int16")
        assert plan.mosaics["NDVI"].dtype == ndvi


def test_ndvi_needs_bands_on_the_same_pixels(lake: DataLake) -> None:
    tile(lake, NEW, "B04")
    for pixel in (20, 5):
        tile(lake, NEW, "B08", pixel)
        plan = planned(lake, NEW, ndvi="float32")
        what = "NDVI needs B08 on the pixels of B04; set match_band"
        assert plan.problems == {"NDVI": [Problem("grid_conflict", what)]}
        assert (list(plan.mosaics), plan.index) == (["B04", "B08"], None)
        plan = planned(lake, NEW, ndvi="float32", match_band="B04")
        assert (plan.problems, list(plan.mosaics)) == ({}, ["B04", "B08", "NDVI"])


def test_without_one_of_its_bands_there_is_no_ndvi(lake: DataLake) -> None:
    tile(lake, NEW, "B04")
    plan = planned(lake, NEW, ndvi="float32")
    assert (list(plan.mosaics), list(plan.problems), plan.index) == (["B04"], ["B08"], None)


# --- bands that stay ------------------------------------------------------------------------------------------


def publish(lake: DataLake, *scenes: str, **given: Any) -> Attempt:
    """Build a timestamp where its files are published."""
    folder = lake.timestamp_folder(KEY)
    folder.mkdir(parents=True)
    return build_timestamp(planned(lake, *scenes, **given), folder, folder, lake.root).attempt


def test_what_was_published_stays_and_is_planned(lake: DataLake) -> None:
    tiles(lake, NEW)
    made = publish(lake, NEW, ndvi="float32", stac=True)
    plan = planned(lake, NEW, made=made, bands=["B04"])
    assert (set(plan.kept), plan.asked) == ({"B08", "NDVI"}, ["B04"])
    assert (list(plan.mosaics), list(plan.problems)) == (["B04", "B08", "NDVI"], [])
    assert plan.index is not None
    assert plan.index.scaled is False
    assert plan.mosaics["NDVI"].dtype == "float32"
    assert plan.stac is True  # an item that is there is kept true
    assert json.loads(plan.parameters)["bands"] == ["B04", "B08"]
    assert plan.inputs == identify_inputs(Acquisition(KEY, (NEW,)), lake, TimestampsAggregationParams(bands=["B04"]))
    # Where pixels come from is told of all bands or of none.
    plan = planned(lake, NEW, made=made, bands=["B04"], provenance=True)
    assert (plan.kept, list(plan.mosaics)) == ({}, ["B04", "B08", "NDVI"])


def test_without_an_item_none_is_made(lake: DataLake) -> None:
    tiles(lake, NEW)
    made = publish(lake, NEW)
    assert planned(lake, NEW, made=made).stac is False
    assert planned(lake, NEW, made=made, stac=True).stac is True
