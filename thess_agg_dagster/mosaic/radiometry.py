"""Radiometry: the offset that Sentinel-2 products carry since processing baseline 04.00.

Since 25 January 2022 ESA adds 1000 to the digital numbers of reflectance bands (``RADIO_ADD_OFFSET`` and
``BOA_ADD_OFFSET`` of -1000 in the product's metadata), so that noise around zero survives; see the Sentinel-2 Products
Specification Document. Older acquisitions carry it, too, where they were processed again (baseline 05.00 and later).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Digital numbers added to the reflectance bands of baseline 04.00 and later.
OFFSET = 1000
_SINCE = 400

_BASELINE = re.compile(r"_N(\d{4})_", re.ASCII)
# What Sen2Cor writes where it was run by hand: any version of it.
_BY_HAND = "9999"


def baseline_of(scene_id: str) -> str | None:
    """The processing baseline in a scene id, ``"05.10"`` of ``..._N0510_...``; ``None`` where it tells none."""
    found = _BASELINE.search(scene_id)
    return None if found is None or found[1] == _BY_HAND else f"{found[1][:2]}.{found[1][2:]}"


def offset_of(baseline: str) -> int:
    """The offset that products of a baseline (``"05.10"``) carry, in digital numbers."""
    major, minor = baseline.split(".")
    return OFFSET if int(major) * 100 + int(minor) >= _SINCE else 0


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
