"""Radiometry: the offset that products carry since a processing baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2


def baseline_of(scene_id: str) -> str | None:
    """The processing baseline in a scene id, ``"05.10"`` of ``..._N0510_...``; ``None`` where it tells none."""
    found = SENTINEL_2.baseline.search(scene_id)
    return None if found is None or found[1] == SENTINEL_2.no_baseline else f"{found[1][:2]}.{found[1][2:]}"


def offset_of(baseline: str) -> int:
    """The offset that products of a baseline (``"05.10"``) carry, in digital numbers."""
    major, minor = baseline.split(".")
    return SENTINEL_2.offset if int(major) * 100 + int(minor) >= SENTINEL_2.offset_since else 0


def remove_offset(pixels: NDArray[Any], offset: int, empty: float) -> NDArray[Any]:
    """Integer pixels without their offset, in their own dtype; empty ones stay empty, and no other becomes so.

    Digital numbers up to ``offset`` are reflectances of zero and less, which unsigned integers do not hold: they become
    the smallest number that does not mean empty.
    """
    info = np.iinfo(pixels.dtype)
    floor = int(info.min) + (int(info.min) == empty)
    nothing = pixels == pixels.dtype.type(empty)
    out: NDArray[Any] = np.maximum(pixels, min(floor + offset, int(info.max))).astype(pixels.dtype, copy=False)
    out -= pixels.dtype.type(offset)
    if floor <= empty <= info.max:  # a number that would become the empty one moves by one
        out[out == empty] += 1
    out[nothing] = pixels.dtype.type(empty)
    return out


def radiometry_of(scene_id: str, item: Mapping[str, Any] | None = None) -> tuple[str | None, int | None]:
    """Processing baseline of a scene and the offset its reflectance bands carry; ``None`` for what is not known.

    ``item`` is the scene's STAC item, where there is one.
    """
    found = (item or {}).get("properties")
    properties = found if isinstance(found, dict) else {}
    # 1. What the catalogue says: some archives have removed the offset already.
    # 2. The baseline, as the catalogue says, else as the scene id does.
    stated = str(properties.get("s2:processing_baseline") or properties.get("processing:version") or "")
    baseline = stated if re.fullmatch(r"\d\d\.\d\d", stated, re.ASCII) else baseline_of(scene_id)
    if properties.get("earthsearch:boa_offset_applied") is True:
        return baseline, 0
    return baseline, None if baseline is None else offset_of(baseline)
