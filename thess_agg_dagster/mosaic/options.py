"""Options for making mosaics. Each field has the name and default of its parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from thess_agg_dagster.mosaic.target import Target

MissingScl = Literal["fail", "unmasked"]
Format = Literal["geotiff", "cog"]


@dataclass(frozen=True)
class MosaicOptions:
    """How mosaics are made; the defaults are the product's.

    ``nodata=NaN`` means no override, ``dtype=None`` the tiles' own, ``threads=None`` one per core. ``reduction`` is the
    resampling of continuous bands to coarser pixels that ``target`` asks for, ``overviews`` whether it may start from a
    tile's overviews. ``aoi_mask`` empties what is not in the target's ``aoi``. ``mask_scl_classes`` are the SCL classes
    that empty a pixel of a continuous band before merging; ``missing_scl="unmasked"`` lets tiles without SCL go unmasked.
    ``harmonize`` removes the radiometric offset.
    """

    merge_method: str = "first"
    resampling: str = "nearest"
    nodata: float = math.nan
    dtype: str | None = None
    compress: str = "zstd"
    threads: int | None = None
    target: Target = field(default_factory=Target)
    reduction: str = "average"
    overviews: bool = False
    aoi_mask: bool = False
    mask_scl_classes: tuple[int, ...] = ()
    missing_scl: MissingScl = "fail"
    harmonize: bool = False
    format: Format = "geotiff"
