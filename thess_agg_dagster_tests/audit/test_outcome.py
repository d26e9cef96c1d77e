"""Statuses, and what an attempt says of all its bands."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any, get_args

import pytest

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, BandStatus, RecordedAttempt, status_of
from thess_agg_dagster.mosaic.choices import ProblemKind

# The fault that comes first on the way from tiles to mosaics, by band status.
EXPECTED = {
    "success": "success",
    "missing_input": "failed_missing_inputs",
    "unreadable_input": "failed_invalid_inputs",
    "checksum_mismatch": "failed_invalid_inputs",
    "unknown_crs": "failed_invalid_inputs",
    "dtype_conflict": "failed_invalid_inputs",
    "outside_grid": "failed_invalid_inputs",
    "unknown_baseline": "failed_invalid_inputs",
    "grid_conflict": "failed_invalid_inputs",
    "merge_failed": "failed_merge",
    "write_failed": "failed_merge",
    "skipped": "failed_merge",
}
ORDER = ["failed_missing_inputs", "failed_invalid_inputs", "failed_merge", "success"]


def test_every_status_of_a_band_is_known_here() -> None:
    alone, kinds, *others = get_args(BandStatus)[0], get_args(ProblemKind), *get_args(BandStatus)
    assert alone == "success"
    assert {*kinds, *others} == set(EXPECTED)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_fault_on_the_way_decides(count: int) -> None:
    for statuses in combinations(EXPECTED, count):
        bands: list[Any] = [BandRecord(str(number), status) for number, status in enumerate(statuses)]  # type: ignore[arg-type]
        assert status_of(bands) == min((EXPECTED[status] for status in statuses), key=ORDER.index), statuses


@pytest.mark.parametrize(
    ("name", "expected"),
    [("valid_share", 0.2), ("cloud_share", 0.7), ("masked_share", 0.7)],
)
def test_shares_of_an_attempt(name: str, expected: float) -> None:
    """The least valid, the most masked, the clouds of the one band that tells."""
    values: list[Any] = [None, 0.7, 0.2, None]
    zero: Any = 0.0
    bands = [BandRecord(str(number), "success", **{name: value}) for number, value in enumerate(values)]
    attempt = Attempt("2023", "success", "", bands)
    assert getattr(attempt, name) == expected
    assert getattr(Attempt("2023", "success", "", bands[:1]), name) is None
    assert getattr(Attempt("2023", "success", "", [replace(BandRecord("B04", "success"), **{name: zero})]), name) == 0


def test_an_attempt_as_found_stays_as_it_was() -> None:
    found = RecordedAttempt(Attempt("2023", "success", ""), "run", 12.5, 7)
    assert found == RecordedAttempt(Attempt("2023", "success", ""), run_id="run", finished_at=12.5, storage_id=7)
    with pytest.raises(AttributeError):
        found.run_id = "another"  # type: ignore[misc]


def test_an_attempt_carries_the_version_of_its_record() -> None:
    attempt = Attempt("2023", "exception", "killed")
    assert (attempt.schema, attempt.bands, attempt.parameters) == (1, (), "")
    with pytest.raises(AttributeError):
        attempt.message = "another"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        BandRecord("B04", "success").message = "another"  # type: ignore[misc]
