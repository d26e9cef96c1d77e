"""The Scene Classification Layer (SCL) of Sentinel-2 Level-2A: the meaning of its values.

Names and colours follow ESA's Level-2A Algorithm Theoretical Basis Document and product specification.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

#: Value -> name and colour.
CLASSES: Mapping[int, tuple[str, str]] = {
    0: ("no data", "#000000"),
    1: ("saturated or defective", "#ff0000"),
    2: ("dark area", "#2f2f2f"),
    3: ("cloud shadow", "#643200"),
    4: ("vegetation", "#00a000"),
    5: ("not vegetated", "#ffe65a"),
    6: ("water", "#0000ff"),
    7: ("unclassified", "#808080"),
    8: ("cloud, medium probability", "#c0c0c0"),
    9: ("cloud, high probability", "#ffffff"),
    10: ("thin cirrus", "#64c8ff"),
    11: ("snow or ice", "#ff96ff"),
}

#: Values that mean a cloud (its shadow is none).
CLOUDS = (8, 9, 10)


def palette() -> NDArray[np.uint8]:
    """Red, green and blue of every uint8 value, shape ``(256, 3)``; black where there is no such class."""
    colours = np.zeros((256, 3), np.uint8)
    for value, (_, colour) in CLASSES.items():
        colours[value] = list(bytes.fromhex(colour[1:]))
    return colours


def cloud_share(histogram: NDArray[np.int64]) -> float | None:
    """Share of an SCL mosaic's pixels that are clouds, 0 to 1; ``None`` where it has no pixel.

    ``histogram`` counts the pixels of each value, shape ``(256,)``; value 0, no data, does not count.
    """
    valid = int(histogram[1:].sum())
    return float(histogram[list(CLOUDS)].sum()) / valid if valid else None
