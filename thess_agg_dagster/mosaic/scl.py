"""The Scene Classification Layer (SCL): what is made of its classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2


def palette() -> NDArray[np.uint8]:
    """Red, green and blue of every uint8 value, shape ``(256, 3)``; black where there is no such class."""
    colours = np.zeros((256, 3), np.uint8)
    for value, (_, colour) in SENTINEL_2.classes.items():
        colours[value] = list(bytes.fromhex(colour[1:]))
    return colours


def cloud_share(histogram: NDArray[np.int64]) -> float | None:
    """Share of an SCL mosaic's pixels that are clouds, 0 to 1; ``None`` where it has no pixel.

    ``histogram`` counts the pixels of each value, shape ``(256,)``; value 0, no data, does not count.
    """
    valid = int(histogram[1:].sum())
    return float(histogram[list(SENTINEL_2.clouds)].sum()) / valid if valid else None
