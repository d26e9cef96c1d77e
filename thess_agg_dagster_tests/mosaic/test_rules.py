"""The small decisions, each alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.merge import MERGE_METHODS
from rasterio.warp import SUPPORTED_RESAMPLING

from thess_agg_dagster.mosaic.choices import BAND_BY_BAND, METHODS, RESAMPLINGS, SUPPORTED_DTYPES
from thess_agg_dagster.mosaic.reducers import BY_BAND
from thess_agg_dagster.mosaic.rules import (
    fits,
    resolve_dtype,
    resolve_empty_value,
    resolve_nodata,
    resolve_resampling,
)

dtypes = st.sampled_from(SUPPORTED_DTYPES)


@pytest.mark.parametrize(
    ("dtype", "tag", "empty"),
    [
        ("uint16", None, 0),
        ("uint16", 65535, 65535),
        ("int16", -9999, -9999),
        ("uint8", 0, 0),
        ("float32", -9999, -9999),
    ],
)
def test_empty_value(dtype: str, tag: float | None, empty: float) -> None:
    assert resolve_empty_value(dtype, tag) == empty


@pytest.mark.parametrize("tag", [None, math.nan])
def test_empty_value_of_floats_is_nan(tag: float | None) -> None:
    assert math.isnan(resolve_empty_value("float32", tag))


@pytest.mark.parametrize(("dtype", "tag"), [("uint16", -9999), ("uint8", 300), ("uint16", 0.5), ("uint16", math.nan)])
def test_a_tag_beyond_the_dtype_is_refused(dtype: str, tag: float) -> None:
    with pytest.raises(ValueError, match=dtype):
        resolve_empty_value(dtype, tag)


@pytest.mark.parametrize(
    ("inputs", "method", "requested", "expected"),
    [
        (["uint16", "uint16"], "first", None, "uint16"),
        (["uint8", "uint16"], "first", None, "uint16"),
        (["uint16", "int16"], "first", None, "int32"),
        (["uint16", "float32"], "first", None, "float32"),
        (["uint32", "float32"], "first", None, "float64"),
        (["uint16"], "first", "float32", "float32"),
        (["uint16"] * 3, "sum", None, "uint32"),
        (["uint8"] * 3, "sum", None, "uint16"),
        (["int16"] * 3, "sum", None, "int32"),
        (["uint32"] * 3, "sum", None, "float64"),
        (["uint8"] * 3, "count", None, "uint8"),
        (["uint8"] * 300, "count", None, "uint16"),
        (["float32"] * 3, "sum", None, "float32"),
        (["uint8"] * 255, "count", None, "uint8"),
        (["uint8"] * 256, "count", None, "uint16"),
        (["uint8"] * 257, "sum", None, "uint16"),
        (["uint8"] * 258, "sum", None, "uint32"),
        (["uint16"], "sum", None, "uint16"),
        (["uint8", "uint16"], "sum", None, "uint32"),
        (["uint16"] * 3, "sum", "float32", "float32"),
        (["uint16"] * 3, "max", None, "uint16"),
    ],
)
def test_dtype(inputs: list[str], method: str, requested: str | None, expected: str) -> None:
    assert resolve_dtype(inputs, method, requested) == expected


@pytest.mark.parametrize(
    ("inputs", "requested"), [(["uint16"], "uint8"), (["uint32"], "float32"), (["float64"], "float32")]
)
def test_a_dtype_that_loses_values_is_refused(inputs: list[str], requested: str) -> None:
    with pytest.raises(ValueError, match=requested):
        resolve_dtype(inputs, "first", requested)


@given(st.lists(dtypes, min_size=1, max_size=4))
def test_common_dtype_holds_the_extremes_of_every_tile(inputs: list[str]) -> None:
    result = np.dtype(resolve_dtype(inputs, "first", None))
    for dtype in map(np.dtype, inputs):
        info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        for value in (info.min, info.max):
            as_tile = np.array(value, dtype)
            assert as_tile.astype(result).astype(dtype) == as_tile


@given(dtypes, st.integers(1, 9), st.data())
def test_sums_of_integers_do_not_overflow(dtype: str, count: int, data: st.DataObject) -> None:
    if np.dtype(dtype).kind == "f":
        return
    info = np.iinfo(dtype)
    values = data.draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=count, max_size=count))
    result = resolve_dtype([dtype] * count, "sum", None)
    assert int(np.sum(np.array(values, result), dtype=result)) == sum(values)


@pytest.mark.parametrize(
    ("override", "dtype", "first", "expected"),
    [
        (math.nan, "uint16", 0, ("uint16", 0)),
        (math.nan, "uint16", 65535, ("uint16", 65535)),
        (65535, "uint16", 0, ("uint16", 65535)),
        (-1, "uint16", 0, ("int32", -1)),
        (-9999, "uint8", 0, ("int16", -9999)),
        (300, "uint8", 0, ("uint16", 300)),
        (0.5, "uint16", 0, ("float32", 0.5)),
        (1e12, "int32", 0, ("float64", 1e12)),
        (-9999, "float32", 0, ("float32", -9999)),
        (1e39, "float32", 0, ("float64", 1e39)),
        (-1e39, "float32", 0, ("float64", -1e39)),
    ],
)
def test_nodata(override: float, dtype: str, first: float, expected: tuple[str, float]) -> None:
    assert resolve_nodata(override, dtype, first) == expected


def test_nodata_of_float_mosaics_is_nan() -> None:
    dtype, nodata = resolve_nodata(math.nan, "float32", 0)
    assert dtype == "float32"
    assert math.isnan(nodata)


@given(dtypes, st.floats(-1e15, 1e15) | st.integers(-(10**9), 10**9))
def test_fits_means_a_round_trip(dtype: str, value: float) -> None:
    if np.dtype(dtype).kind == "f":
        assert fits(value, dtype)
    else:
        info = np.iinfo(dtype)
        inside = info.min <= value <= info.max
        assert fits(value, dtype) == (inside and float(np.array(value).astype(dtype)) == value)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (math.inf, "float32", True),
        (math.nan, "float32", True),
        (math.inf, "int32", False),
        (math.nan, "uint8", False),
        (float(np.finfo("float32").max), "float32", True),
        (-float(np.finfo("float32").max), "float32", True),
        (1e39, "float32", False),
        (1e39, "float64", True),
        *((edge, "uint8", True) for edge in (0, 255)),
        *((edge, "uint8", False) for edge in (-1, 256)),
    ],
)
def test_fits_at_the_edges(value: float, dtype: str, expected: bool) -> None:
    assert fits(value, dtype) is expected


@pytest.mark.parametrize(
    ("band", "resampling", "reduction", "expected"),
    [
        ("SCL", "nearest", "average", "mode"),
        ("SCL", "cubic", "mode", "mode"),
        ("SCL", "mode", "nearest", "nearest"),
        *(("SCL", "nearest", name, "mode") for name in RESAMPLINGS if name != "nearest"),
        ("B04", "nearest", "average", "average"),
        ("B04", "cubic", "nearest", "nearest"),
    ],
)
def test_the_resampling_of_a_reduction(band: str, resampling: str, reduction: str, expected: str) -> None:
    assert resolve_resampling(band, resampling, reduction) is Resampling[expected]


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_classes_are_never_interpolated(resampling: str) -> None:
    assert resolve_resampling("SCL", resampling) is (Resampling.mode if resampling == "mode" else Resampling.nearest)
    assert resolve_resampling("B04", resampling) is Resampling[resampling]


def test_names_are_compared_by_their_letters() -> None:
    """Those of a run's configuration are no objects of this module."""
    mode, nearest, count = ("".join(letters) for letters in (["mo", "de"], ["near", "est"], ["co", "unt"]))
    assert resolve_resampling("SCL", mode) is Resampling.mode
    assert resolve_resampling("SCL", "cubic", nearest) is Resampling.nearest
    assert resolve_dtype(["uint8"] * 3, count, None) == "uint8"


def test_every_resampling_but_the_one_for_overviews_only() -> None:
    assert set(RESAMPLINGS) == set(Resampling.__members__) - {"gauss"}
    assert tuple(each.name for each in SUPPORTED_RESAMPLING) == RESAMPLINGS


def test_methods_are_those_that_there_are() -> None:
    assert tuple(MERGE_METHODS) == METHODS
    assert tuple(BY_BAND) == BAND_BY_BAND
