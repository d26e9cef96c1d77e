"""What the audit says of a plan: rows of bands and the attempt, from plans made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import Resampling

from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import Layer, MosaicPlan
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster.mosaic.tiles import Problem, Tile
from thess_agg_dagster.timestamp.plan import Scene, TimestampPlan
from thess_agg_dagster.timestamp.records import band_record, failed_attempt, successful_attempt, unplanned_attempt
from thess_agg_dagster.timestamp.refetch import Refetched

GRID = GeoBox((20, 30), Affine(10, 0, 600000, 0, -10, 4500000), "EPSG:32634")
ELSEWHERE = GeoBox((20, 30), Affine(10, 0, 200000, 0, -10, 4500000), "EPSG:32635")


def tile(scene: str, band: str, geobox: GeoBox = GRID) -> Tile:
    assert geobox.crs is not None
    path, crs = Path(f"/lake/{scene}/{band}.tif"), CRS.from_epsg(geobox.crs.epsg)
    return Tile(path, geobox, crs, "uint16", None, "GTiff", (20, 30), scene_id=scene)


def mosaic(band: str, offset: int = 0, nodata: float = 0, fixed: bool = False, scl: Tile | None = None) -> MosaicPlan:
    layers = tuple(
        Layer(tile(scene, band, geobox), 0, offset, scl, Resampling.nearest, number)
        for number, (scene, geobox) in enumerate([("S2_A", GRID), ("S2_B", ELSEWHERE)], 1)
    )
    options = MosaicOptions(target=Target("EPSG:32634", grid="fixed" if fixed else "tiles"))
    return MosaicPlan(band, layers, GRID, "uint16", nodata, options)


def plan(
    mosaics: Sequence[MosaicPlan] = (), problems: Mapping[str, Sequence[Problem]] | None = None, *, listed: bool = True
) -> TimestampPlan:
    return TimestampPlan(
        "2023-02-02",
        ("S2_A", "S2_B") if listed else (),
        {each.band: each for each in mosaics},
        problems or {},
        {"B04": "of B04", "B08": "of B08"},
        [
            Scene("S2_A", "05.10", 1000),
            Scene("S2_B", None, None),
            Scene("S2_C", "05.10", 1000),
            Scene("S2_D", "02.14", 0),
        ],
        asked=("B04", "B08"),
        differing='{"dtype": "float32"}',
    )


def said(attempt: Attempt) -> dict[str, tuple[str, str]]:
    return {band.band: (band.status, band.message) for band in attempt.bands}


def test_a_row_of_a_band() -> None:
    assert band_record(plan(), mosaic("B04"), "success", "a remark") == BandRecord(
        band="B04",
        status="success",
        message="a remark",
        input_files=["/lake/S2_A/B04.tif", "/lake/S2_B/B04.tif"],
        crs="EPSG:32634",
        dtype="uint16",
        nodata=0,
        width=30,
        height=20,
        tiles=2,
        reprojected_tiles=["S2_B"],
        grid="tiles",
        resolution=10,
        bounds=[600000, 4499800, 600300, 4500000],
        baselines=["05.10", "02.14"],
        harmonized=False,
        refetched=[],
        inputs="of B04",
    )


def test_a_row_tells_what_was_done_to_the_pixels() -> None:
    found = band_record(plan(), mosaic("B04", offset=1000, nodata=math.nan, fixed=True), "success", "")
    assert (found.harmonized, found.nodata, found.grid) == (True, "nan", "fixed")


def test_a_row_tells_of_files_that_were_fetched_again_once() -> None:
    scl = tile("S2_A", "SCL")
    again = {
        path: Refetched("cut off", "https://archive", "2023-03-01", 1, "")
        for path in (scl.path, Path("/lake/S2_B/B04.tif"), Path("/lake/S2_B/B08.tif"))
    }
    found = band_record(replace(plan(), refetched=again), mosaic("B04", scl=scl), "success", "")
    text = "cut off; from https://archive at 2023-03-01"
    assert found.refetched == [f"S2_A/SCL {text}", f"S2_B/B04 {text}"]


def test_without_tiles() -> None:
    found = unplanned_attempt(plan(listed=False))
    assert (found.status, found.bands) == ("failed_no_tiles", ())
    assert "time_serie.csv lists no tiles" in found.message


MISSING = Problem("missing_input", "is not there", Path("/lake/S2_A/B08.tif"))
BROKEN = Problem("unreadable_input", "is cut off", Path("/lake/S2_B/B08.tif"))
CHANGED = Problem("checksum_mismatch", "differs", Path("/lake/S2_A/B08.tif"))
ODD = Problem("unknown_baseline", "is not known", Path("/lake/S2_B/B08.tif"))
NOWHERE = Problem("outside_grid", "no tile lies in the aoi")


def test_a_band_that_cannot_be_planned_and_one_that_could() -> None:
    found = unplanned_attempt(plan([mosaic("B04")], {"B08": [BROKEN, MISSING]}))
    assert (found.timestamp, found.status) == ("2023-02-02", "failed_missing_inputs")
    assert found.message == "B08 of S2_B: is cut off; B08 of S2_A: is not there"
    made, missing = found.bands
    assert (made.band, made.status, made.message) == ("B04", "skipped", "not merged, because of B08")
    assert made.input_files == ["/lake/S2_A/B04.tif", "/lake/S2_B/B04.tif"]
    assert missing == BandRecord(
        band="B08",
        status="missing_input",
        message="/lake/S2_B/B08.tif: is cut off; /lake/S2_A/B08.tif: is not there",
        input_files=["/lake/S2_B/B08.tif"],
        missing_files=["/lake/S2_A/B08.tif"],
    )


@pytest.mark.parametrize(
    ("problems", "status", "of_timestamp"),
    [
        ([BROKEN], "unreadable_input", "failed_invalid_inputs"),
        ([NOWHERE, BROKEN], "outside_grid", "failed_invalid_inputs"),
        ([BROKEN, MISSING], "missing_input", "failed_missing_inputs"),
        ([CHANGED, MISSING], "missing_input", "failed_missing_inputs"),
        ([ODD, CHANGED], "unknown_baseline", "failed_invalid_inputs"),
    ],
)
def test_the_status_of_several_problems(problems: list[Problem], status: str, of_timestamp: str) -> None:
    found = unplanned_attempt(plan(problems={"B08": problems}))
    assert (found.bands[0].status, found.status) == (status, of_timestamp)


@pytest.mark.parametrize("problem", [BROKEN, CHANGED, ODD])
def test_tiles_that_are_there_are_told_from_those_that_are_missing(problem: Problem) -> None:
    (found,) = unplanned_attempt(plan(problems={"B08": [problem, NOWHERE, MISSING]})).bands[:1]
    assert found.input_files == [str(problem.path)]
    assert found.missing_files == ["/lake/S2_A/B08.tif"]


def test_bands_with_the_same_fault_are_named_together() -> None:
    found = unplanned_attempt(plan(problems={"B04": [MISSING, NOWHERE], "B08": [NOWHERE, MISSING]}))
    assert found.message == "B04, B08 of S2_A: is not there; B04, B08: no tile lies in the aoi"
    assert found.bands[0].input_files == []
    assert found.bands[0].missing_files == ["/lake/S2_A/B08.tif"]


def test_a_success_says_where_it_stands_and_what_to_know() -> None:
    given = plan([mosaic("B04"), mosaic("B08")])
    records = [BandRecord("B04", "success", "dtype promoted"), BandRecord("B08", "success")]
    found = successful_attempt(given, records, Path("/lake/out"))
    assert found == Attempt(
        "2023-02-02",
        "success",
        "B04: dtype promoted",
        records,
        "/lake/out",
        given.inputs,
        ("S2_A", "S2_B"),
        parameters='{"dtype": "float32"}',
    )


def test_what_was_made_is_withheld_where_another_band_failed() -> None:
    records = [
        BandRecord("B04", "success", "a remark", ["/lake/S2_A/B04.tif"], output_path="/staging/B04.tif", valid_share=1),
        BandRecord("B08", "merge_failed", "is cut off"),
        BandRecord("B11", "write_failed", "No space left on device"),
        BandRecord("SCL", "skipped", "stopped"),
    ]
    found = failed_attempt(plan(), records)
    assert (found.status, found.output_folder) == ("failed_merge", "")
    assert found.message == "B08: is cut off; B11: No space left on device"
    assert found.bands == [
        BandRecord("B04", "skipped", "made, but not published, because of B08, B11", ["/lake/S2_A/B04.tif"]),
        *records[1:],
    ]
