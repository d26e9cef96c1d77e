"""What identifies the composites of a period, and when they are due: identities are spelled out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, RecordedAttempt
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.period.freshness import (
    due_among,
    identify_mosaics,
    identify_period,
    is_current,
    is_due,
    members_of,
    read_for,
)
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster_tests.rasters import listing

MARCH, APRIL, LATER, MAY = (
    "2023-03-31T23:30:00-02:00",  # April already, in UTC, and the first
    "2023-04-20 09:21:09",
    "2023-04-20 12:00:00+02:00",
    "2023-05-02 09:21:09+00:00",
)
BANDS = ("B04", "B08", "SCL")
LAKE = DataLake(Path("/nowhere/lake"))
PERIOD = "2023-04"


def mosaic(timestamp: str, *bands: str) -> Attempt:
    records = [BandRecord(band, "success", inputs=f"{band} of {timestamp}", output_checksum="x:1") for band in bands]
    return Attempt(timestamp, "success", "", records)


def with_ndvi(attempt: Attempt) -> Attempt:
    return replace(attempt, bands=[*attempt.bands, BandRecord("NDVI", "success", derived_from=("B08", "B04"))])


PUBLISHED = {key: mosaic(key, *BANDS) for key in (MAY, LATER, MARCH, APRIL)}


def params(**given: Any) -> TimestampsAggregationParams:
    return TimestampsAggregationParams(**{"bands": list(BANDS)} | given)


def digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def lines(*bands: str, keys: tuple[str, ...] = (MARCH, APRIL, LATER)) -> list[list[str]]:
    """What the records of the mosaics tell, mosaic by mosaic."""
    return [[key, band, f"{band} of {key}", "x:1"] for key in keys for band in BANDS if band in bands]


def test_members_are_in_order_of_time_in_utc() -> None:
    assert members_of(PERIOD, PUBLISHED) == [MARCH, APRIL, LATER]
    assert members_of("2023-05", PUBLISHED) == [MAY]
    assert members_of("2023-03", PUBLISHED) == []
    assert members_of("2023-Q2", PUBLISHED) == [MARCH, APRIL, LATER, MAY]
    assert members_of("2023-Q1", PUBLISHED) == []


@pytest.mark.parametrize(
    ("period", "stands_in", "expected"),
    [
        (PERIOD, False, ("", [MARCH, APRIL, LATER])),
        (PERIOD, True, ("2023-Q2", [MARCH, APRIL, LATER, MAY])),
        ("2023-05", True, ("2023-Q2", [MARCH, APRIL, LATER, MAY])),
        ("2023-06", True, ("", [])),  # a month without any of its own has no composite
        ("2023-Q2", True, ("", [MARCH, APRIL, LATER, MAY])),
        ("2023-Q2", False, ("", [MARCH, APRIL, LATER, MAY])),
    ],
)
def test_a_quarter_stands_in_for_a_month_that_has_something(
    period: str, stands_in: bool, expected: tuple[str, list[str]]
) -> None:
    assert read_for(period, PUBLISHED, params(quarter_stands_in=stands_in)) == expected


def test_mosaics_of_a_period_are_identified_by_their_records() -> None:
    expected = digest([[PERIOD], *lines(*BANDS)])
    assert identify_mosaics(PERIOD, PUBLISHED) == expected
    # NDVI of a timestamp is no part of a composite, nor is what lies in another month.
    assert identify_mosaics(PERIOD, PUBLISHED | {APRIL: with_ndvi(PUBLISHED[APRIL]), MAY: mosaic(MAY)}) == expected
    assert identify_mosaics(PERIOD, PUBLISHED | {APRIL: mosaic(APRIL, "B04")}) != expected


@pytest.mark.parametrize(
    ("method", "versions", "joint"),
    [
        ("median", {"B04": "1", "SCL": "1"}, {"B04": ["B04"], "SCL": ["SCL"]}),
        ("max_ndvi", {"B04": "1.1", "SCL": "1"}, {"B04": ["B04", "B08"], "SCL": ["SCL"]}),
        ("medoid", {"B04": "1", "SCL": "1"}, {"B04": ["B04", "B08"], "SCL": ["SCL"]}),
    ],
)
def test_a_band_is_identified_by_what_its_composite_is_made_of(
    method: str, versions: dict[str, str], joint: dict[str, list[str]]
) -> None:
    """Where one date is chosen for all bands together, by all of them; classes are by themselves."""
    given = params(composite_method=method)
    found = identify_period(PERIOD, PUBLISHED, given)
    assert list(found) == list(BANDS)
    for band in ("B04", "SCL"):
        start = [versions[band], given.composite_identity(), PERIOD, MARCH, APRIL, LATER]
        assert found[band] == digest([start, *lines(*joint[band])])


def test_with_a_quarter_that_stands_in_its_mosaics_count_and_whose_the_month_is() -> None:
    given = params(quarter_stands_in=True)
    start = ["1", given.composite_identity(), PERIOD, MARCH, APRIL, LATER]
    expected = digest([start, *lines("B04", keys=(MARCH, APRIL, LATER, MAY))])
    assert identify_period(PERIOD, PUBLISHED, given)["B04"] == expected


def made_now(
    period: str = PERIOD, given: TimestampsAggregationParams | None = None, more: tuple[str, ...] = ()
) -> Attempt:
    found = identify_period(period, PUBLISHED, given or params())
    records = [BandRecord(band, "success", inputs=text) for band, text in found.items()]
    return Attempt(period, "success", "", [*records, *(BandRecord(band, "success") for band in more)])


def test_composites_are_current_while_all_that_is_asked_for_would_be_the_same() -> None:
    made = made_now()
    assert is_current(made, PUBLISHED, params())
    assert is_current(made, PUBLISHED, params(bands=["B04"]))
    assert is_current(made, PUBLISHED, params(stac=True))
    assert is_current(made, PUBLISHED | {APRIL: with_ndvi(PUBLISHED[APRIL])}, params())
    assert not is_current(made, PUBLISHED, params(composite_method="mean"))
    assert not is_current(made, PUBLISHED, params(bands=["B04", "B02"]))
    changed = PUBLISHED | {APRIL: mosaic(APRIL, "B04", "B08")}
    assert not is_current(made, changed, params())
    assert is_current(made, changed, params(bands=["B08", "B04"]))
    assert not is_current(made, {key: PUBLISHED[key] for key in (MARCH, APRIL)}, params())


def recorded(attempt: Attempt) -> RecordedAttempt:
    return RecordedAttempt(attempt, "run", 1.0, 1)


def all_there(*more: str, period: str = PERIOD) -> dict[File, str]:
    folder = LAKE.root / "data_raw" / "composites" / period
    return {
        folder / name: "there" for name in ("manifest.json", "quicklook.jpg", "B04.tif", "B08.tif", "SCL.tif", *more)
    }


def test_due_without_a_success_or_with_another() -> None:
    def due(last: RecordedAttempt | None, given: TimestampsAggregationParams) -> bool:
        return is_due(PERIOD, last, PUBLISHED, LAKE, given, listing(all_there()))

    assert due(None, params())
    assert not due(recorded(made_now()), params())
    assert due(recorded(replace(made_now(), status="failed_merge")), params())
    assert due(recorded(replace(made_now(), status="exception")), params())
    assert due(recorded(made_now()), params(composite_method="mean"))


@pytest.mark.parametrize(
    "gone",
    [
        "manifest.json",
        "quicklook.jpg",
        "item.json",
        "B04.tif",
        "SCL.tif",
        "count.tif",
        "NDVI.tif",
        "period.tif",
        "B11.tif",
    ],
)
@pytest.mark.parametrize(
    ("given", "made", "needed"),
    [
        ({}, (), {"manifest.json", "quicklook.jpg", "B04.tif", "SCL.tif"}),
        ({"stac": True}, (), {"manifest.json", "quicklook.jpg", "B04.tif", "SCL.tif", "item.json"}),
        ({"bands": ["B04"]}, (), {"manifest.json", "quicklook.jpg", "B04.tif"}),
        (
            {},
            ("count", "period", "NDVI", "B11"),  # B11 is not asked for now
            {"manifest.json", "quicklook.jpg", "B04.tif", "SCL.tif", "count.tif", "period.tif", "NDVI.tif"},
        ),
    ],
)  # fmt: skip
def test_due_where_something_is_gone(gone: str, given: dict[str, Any], made: tuple[str, ...], needed: set[str]) -> None:
    there = all_there("item.json", "count.tif", "period.tif", "NDVI.tif", "B11.tif")
    del there[LAKE.root / "data_raw" / "composites" / PERIOD / gone]
    last = recorded(made_now(more=made))
    assert is_due(PERIOD, last, PUBLISHED, LAKE, params(**given), listing(there)) is (gone in needed)


def test_of_the_periods_asked_for_those_with_something_in_them_are_due(tmp_path: Path) -> None:
    lake = DataLake(tmp_path)
    latest: Mapping[str, RecordedAttempt] = {
        PERIOD: recorded(made_now()),
        "2023-05": recorded(made_now("2023-05")),
        "2023-Q2": recorded(replace(made_now("2023-Q2"), status="exception")),
    }
    for path in (*all_there(), *all_there(period="2023-Q2")):
        there = tmp_path / Path(str(path)).relative_to(LAKE.root)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("there")
    asked = ["2023-Q2", "2023-05", PERIOD, "2023-03", "2023-Q1"]
    assert due_among(asked, latest, PUBLISHED, lake, params()) == ["2023-Q2", "2023-05"]
    assert due_among(asked, {}, PUBLISHED, lake, params()) == ["2023-Q2", "2023-05", PERIOD]
    assert due_among([], latest, PUBLISHED, lake, params()) == []
