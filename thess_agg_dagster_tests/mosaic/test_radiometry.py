"""Processing baselines and the offset they carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thess_agg_dagster.mosaic.radiometry import offset_of, radiometry_of, remove_offset

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
        ("N0510", {"properties": ["x"]}, ("05.10", 1000)),
        ("N0510", {"properties": {"earthsearch:boa_offset_applied": "yes"}}, ("05.10", 1000)),
        ("N0510", {"properties": {"s2:processing_baseline": "02.14", "processing:version": "05.09"}}, ("02.14", 0)),
    ],
)
def test_baseline_and_offset(number: str, item: dict[str, Any] | None, expected: tuple[str | None, int | None]) -> None:
    assert radiometry_of(SCENE.format(number), item) == expected


def test_the_offset_came_with_04_00() -> None:
    assert [offset_of(baseline) for baseline in ("02.14", "03.01", "03.99")] == [0, 0, 0]
    assert [offset_of(baseline) for baseline in ("04.00", "04.01", "05.00", "05.11")] == [1000] * 4


@pytest.mark.parametrize(
    ("dtype", "empty"),
    [
        *(("uint16", value) for value in (0, 1, 5, 1000, 1001, 64535, 65534, 65535)),
        *(("int16", value) for value in (0, 1, -1, -9999, -32768, -32767, -31768, 31767, 32767)),
        *(("int32", value) for value in (0, -(2**31), 2**31 - 1)),
    ],
)
def test_an_offset_is_removed_pixel_by_pixel(dtype: str, empty: int) -> None:
    """Against plain integers: clipped to what the dtype holds, one more where that would mean empty."""
    info = np.iinfo(dtype)
    edges = [int(info.min), 0, 1000, int(info.max) - 1000, int(info.max), empty, empty + 1000]
    values = sorted({v for edge in edges for v in range(edge - 3, edge + 4) if info.min <= v <= info.max})
    expected = []
    for value in values:
        less = max(value - 1000, int(info.min))
        expected.append(empty if value == empty else less + (less == empty))
    before = np.array([values], dtype)
    after = remove_offset(before, 1000, float(empty))
    assert after.dtype == dtype
    assert after.tolist() == [expected]
    assert before.tolist() == [values]
