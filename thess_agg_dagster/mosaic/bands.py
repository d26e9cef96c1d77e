"""Bands: the meaning of a band's pixels, recognized by its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from thess_agg_dagster.mosaic.sensor import Role
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2

#: The band whose classes mask the others, as it is called where nobody calls it otherwise.
SCL = SENTINEL_2.class_band

#: The bands that NDVI is made of.
RED, NIR = SENTINEL_2.red, SENTINEL_2.nir

#: Of the band that tells of each pixel's tile: the number of a pixel that has none. Tiles are numbered from 1, in merge order.
NOWHERE = 0

# As Sentinel-2's own files are named, `B04_10m`.
_SIZES = sorted({band.resolution for band in SENTINEL_2.bands.values() if band.resolution})
_PIXEL_SIZE = re.compile(rf"_({'|'.join(map(str, _SIZES))})M", re.ASCII)


def plain(band: str) -> str:
    """A band's name as in the Sentinel-2 product specification: ``SCL`` for ``scl`` and ``SCL_20m``."""
    upper = band.upper() if band.isascii() else band
    base, size = upper[:-4], upper[-4:]
    return base if _PIXEL_SIZE.fullmatch(size) else upper


def role_of(band: str) -> Role:
    """The meaning of a band's pixels."""
    known = SENTINEL_2.bands.get(plain(band))
    return known.role if known else "unknown"


def is_scl(band: str) -> bool:
    """Whether a band is the Scene Classification Layer."""
    return plain(band) == SCL


def mask_band(bands: Iterable[str]) -> str:
    """The name of the SCL to mask with: as it appears among the bands, else ``SCL``."""
    return next((band for band in bands if is_scl(band)), SCL)
