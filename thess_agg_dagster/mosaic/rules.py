"""The small decisions of a mosaic, each a pure function: what is empty, which dtype, which nodata.

Numbered comments give the order of precedence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rasterio.enums import Resampling

from thess_agg_dagster.mosaic.bands import role_of
from thess_agg_dagster.mosaic.choices import SUPPORTED_DTYPES
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2


def fits(value: float, dtype: str) -> bool:
    """Whether ``dtype`` holds ``value`` exactly (floats: within their range; NaN and infinity fit floats only)."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return not math.isfinite(value) or abs(value) <= float(np.finfo(kind).max)
    info = np.iinfo(kind)
    return math.isfinite(value) and value == int(value) and info.min <= value <= info.max


def smallest_dtype(dtypes: Sequence[str], values: Sequence[float] = ()) -> str | None:
    """The first of ``dtypes[0]`` and the supported dtypes, small to large, that holds all dtypes and values exactly."""
    for candidate in (dtypes[0], *SUPPORTED_DTYPES):
        if all(np.can_cast(d, candidate, "safe") for d in dtypes) and all(fits(v, candidate) for v in values):
            return candidate
    return None


def resolve_empty_value(dtype: str, nodata_tag: float | None) -> float:
    """The value that means "empty" in a tile. Raises ``ValueError`` for a tag the dtype cannot hold."""
    # 1. The file's own nodata tag.
    if nodata_tag is not None:
        if not fits(nodata_tag, dtype):
            raise ValueError(
                f"has the nodata tag {nodata_tag:g}, beyond {dtype}; correct it with `rio edit-info --nodata`"
            )
        return nodata_tag
    # 2. Floats: NaN. (NaN counts as empty in float tiles with a tag, too.)
    if np.dtype(dtype).kind == "f":
        return math.nan
    # 3. Integers: what the sensor's products mean by it.
    return float(SENTINEL_2.nodata)


def resolve_dtype(dtypes: Sequence[str], method: str, requested: str | None) -> str:
    """The mosaic's dtype before nodata is considered. Raises ``ValueError`` if no dtype holds every tile exactly."""
    # 1. What the caller asks for, where it loses nothing.
    # 2. The tiles' common dtype, promoted to the smallest that holds them all.
    dtype = requested or smallest_dtype(dtypes)
    names = ", ".join(dict.fromkeys(dtypes))
    if dtype is None or not all(np.can_cast(d, dtype, "safe") for d in dtypes):
        raise ValueError(f"tiles of dtype {names} do not fit {requested or 'one supported dtype'} without loss")
    # 3. `sum` and `count` of integers must not overflow: room for every tile's largest value, or for their number.
    count = len(dtypes)
    if np.dtype(dtype).kind != "f" and method in ("sum", "count"):
        infos = [np.iinfo(d) for d in dtypes]
        bounds = (0, count) if method == "count" else (sum(int(i.min) for i in infos), sum(int(i.max) for i in infos))
        room = smallest_dtype([dtype], [float(b) for b in bounds])
        assert room is not None  # float64 holds any such sum
        dtype = room
    return dtype


def resolve_nodata(nodata: float, dtype: str, first_empty_value: float) -> tuple[str, float]:
    """The mosaic's dtype and nodata. ``nodata=NaN`` means "no override". Raises ``ValueError`` where none fits."""
    # 1. A finite override, promoting the dtype where it cannot hold it.
    if not math.isnan(nodata):
        promoted = smallest_dtype([dtype], [nodata])
        if promoted is None:
            raise ValueError(f"no supported dtype holds both {dtype} pixels and nodata={nodata:g}")
        return promoted, nodata
    # 2. Float mosaics: NaN.
    if np.dtype(dtype).kind == "f":
        return dtype, math.nan
    # 3. Integer mosaics: what the first tile calls empty.
    return dtype, first_empty_value


def resolve_resampling(band: str, resampling: str, reduction: str | None = None) -> Resampling:
    """The resampling of a band: classes are never interpolated (``nearest`` or ``mode``). ``reduction`` is set if a
    tile's pixels are finer than the mosaic's."""
    # 1. Classes, reduced: the most frequent, unless the nearest is asked for.
    # 2. Classes otherwise: the nearest, unless the most frequent is asked for.
    if role_of(band) == "classes":
        frequent = resampling == "mode" if reduction is None else reduction != "nearest"
        return Resampling.mode if frequent else Resampling.nearest
    # 3. Continuous bands: what is asked for.
    return Resampling[reduction or resampling]
