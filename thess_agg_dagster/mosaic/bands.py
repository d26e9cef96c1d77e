"""Bands: the meaning of a band's pixels, recognized by its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

#: ``classes`` are never interpolated; ``reflectance`` may carry an offset; a ``quantity`` neither. What is ``unknown``
#: is handled like a quantity, and the audit says so where that may be wrong.
Role = Literal["classes", "reflectance", "quantity", "unknown"]

#: The band whose classes mask the others, as it is called where nobody calls it otherwise.
SCL = "SCL"

#: The bands that NDVI is made of.
RED, NIR = "B04", "B08"

_CLASSES = frozenset({SCL, "QA60", "CLASSI"})
_QUANTITIES = frozenset({"AOT", "WVP", "CLD", "SNW"})
_REFLECTANCE = re.compile(r"B(0[1-9]|1[0-2]|8A)", re.ASCII)
# As Sentinel-2's own files are named, `B04_10m`.
_PIXEL_SIZE = re.compile(r"_(10|20|60)M", re.ASCII)


def plain(band: str) -> str:
    """A band's name as in the Sentinel-2 product specification: ``SCL`` for ``scl`` and ``SCL_20m``."""
    upper = band.upper() if band.isascii() else band
    base, size = upper[:-4], upper[-4:]
    return base if _PIXEL_SIZE.fullmatch(size) else upper


def role_of(band: str) -> Role:
    """The meaning of a band's pixels."""
    name = plain(band)
    if name in _CLASSES:
        return "classes"
    if _REFLECTANCE.fullmatch(name):
        return "reflectance"
    return "quantity" if name in _QUANTITIES else "unknown"


def is_scl(band: str) -> bool:
    """Whether a band is the Scene Classification Layer."""
    return plain(band) == SCL


def mask_band(bands: Iterable[str]) -> str:
    """The name of the SCL to mask with: as it appears among the bands, else ``SCL``."""
    return next((band for band in bands if is_scl(band)), SCL)
