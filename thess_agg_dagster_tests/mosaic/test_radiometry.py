"""Processing baselines and the offset they carry."""

from __future__ import annotations

from typing import Any

import pytest

from thess_agg_dagster.mosaic.radiometry import offset_of, radiometry_of

SCENE = "S2B_MSIL2A_20230202T092109_{}_R093_T35TKF_20240815T155145"


@pytest.mark.parametrize(
    ("number", "item", "expected"),
    [
        ("N0510", None, ("05.10", 1000)),
        ("N0400", None, ("04.00", 1000)),
        ("N0301", None, ("03.01", 0)),
        ("N9999", None, (None, None)),  # Sen2Cor by hand: any version
        ("LOCAL", None, (None, None)),
        ("N0510", {"properties": {"earthsearch:boa_offset_applied": True}}, ("05.10", 0)),
        ("N0510", {"properties": {"earthsearch:boa_offset_applied": False}}, ("05.10", 1000)),
        ("N9999", {"properties": {"s2:processing_baseline": "05.09"}}, ("05.09", 1000)),
        ("LOCAL", {"properties": {"processing:version": "02.14"}}, ("02.14", 0)),
        ("N0510", {"properties": {"s2:processing_baseline": "five"}}, ("05.10", 1000)),
        ("N0510", {"properties": None}, ("05.10", 1000)),
    ],
)
def test_baseline_and_offset(number: str, item: dict[str, Any] | None, expected: tuple[str | None, int | None]) -> None:
    assert radiometry_of(SCENE.format(number), item) == expected


def test_the_offset_came_with_04_00() -> None:
    assert [offset_of(baseline) for baseline in ("02.14", "03.01", "04.00", "05.00", "05.11")] == [
        0,
        0,
        1000,
        1000,
        1000,
    ]
