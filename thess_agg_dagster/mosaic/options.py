"""Options for making mosaics. Each field but ``sizes`` has the name and default of its parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from thess_agg_dagster.mosaic.choices import Format, MissingScl
from thess_agg_dagster.mosaic.sizes import Sizes
from thess_agg_dagster.mosaic.target import Target


@dataclass(frozen=True)
class MosaicOptions:
    """How to make mosaics. The defaults are those of the parameters.

    ``nodata=NaN`` means no override, ``dtype=None`` the dtype of the tiles, ``threads=None`` one per core.
    ``reduction`` is the resampling of continuous bands to coarser pixels requested by ``target``; ``overviews`` says
    whether it may start from a tile's overviews. ``aoi_mask`` empties everything outside the target's ``aoi``.
    ``mask_scl_classes`` are the SCL classes that empty a pixel of a continuous band before merging;
    ``missing_scl="unmasked"`` leaves tiles without SCL unmasked. ``harmonize`` removes the radiometric offset.
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
    sizes: Sizes = field(default_factory=Sizes)
