"""What a satellite's products have of their own: the facts that differ between sensors, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: ``classes`` are never interpolated; ``reflectance`` may carry an offset; a ``quantity`` neither. What is ``unknown``
#: is handled like a quantity, and the audit says so where that may be wrong.
Role = Literal["classes", "reflectance", "quantity", "unknown"]


class Band(NamedTuple):
    """The meaning of a band's pixels, the pixel size in metres that it was taken (or classified) in, and its name in
    catalogues that use common names."""

    role: Role
    resolution: int | None = None
    common_name: str | None = None


@dataclass(frozen=True)
class Sensor:
    """A sensor's products. ``bands`` are all that it has, by their names in the product specification."""

    bands: Mapping[str, Band]
    #: Red and near infrared, which NDVI is made of.
    red: str
    nir: str
    #: Bands for red, green and blue of a picture; the first combination that is there is shown.
    pictures: Sequence[tuple[str, str, str]]
    #: The band whose classes mask the others; the name and colour of each class, and those that mean a cloud.
    class_band: str
    classes: Mapping[int, tuple[str, str]]
    clouds: Sequence[int]
    #: What integers without a nodata tag mean by "empty".
    nodata: float
    #: Tiles lie on multiples of this length, in metres.
    lattice: int
    #: Reflectance is the digital number times this, less the offset: digital numbers added since a processing baseline (400:
    #: 04.00).
    scale: float
    offset: int
    offset_since: int
    #: Where a scene id tells its processing baseline, four digits; these tell none.
    baseline: re.Pattern[str]
    no_baseline: str
    #: Names of STAC collections begin with this.
    collection: str
