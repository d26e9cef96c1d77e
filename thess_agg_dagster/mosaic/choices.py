"""What options and parameters may be, and what is told of tiles and mosaics: names alone.

Parameters and records need no more of the mosaics, and who only defines assets is spared numpy and rasterio. Tests compare
the names with what rasterio and the reducers know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

#: Merge methods, meaning what ``rasterio.merge`` means by them (they are rasterio's own functions).
METHODS = ("first", "last", "min", "max", "sum", "count")
#: Merge methods that make a pixel of several tiles.
MIXING = ("sum", "count")

#: Resampling names ``rasterio.warp`` supports; ``gauss`` exists for overviews only.
RESAMPLINGS = (
    "nearest",
    "bilinear",
    "cubic",
    "cubic_spline",
    "lanczos",
    "average",
    "mode",
    "max",
    "min",
    "med",
    "q1",
    "q3",
    "sum",
    "rms",
)

#: Dtypes a mosaic can keep exactly; 64-bit integers and complex numbers are refused by name.
SUPPORTED_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

#: Compressions, and what they are called where a GeoTIFF is written.
COMPRESSIONS: Mapping[str, Mapping[str, Any]] = {
    "zstd": {"compress": "ZSTD", "zstd_level": 1},
    "deflate": {"compress": "DEFLATE", "zlevel": 6},
    "lzw": {"compress": "LZW"},
    "none": {},
}

#: Methods of composites that consider each band by itself.
BAND_BY_BAND = ("median", "mean")
#: All methods of composites.
COMPOSITE_METHODS = (*BAND_BY_BAND, "max_ndvi", "medoid", "geomedian")

Grid = Literal["tiles", "fixed"]
#: Values of ``target_crs`` that ask the tiles.
FIRST, MAJORITY = "first", "majority"
MissingScl = Literal["fail", "unmasked"]
Format = Literal["geotiff", "cog"]

#: Why a tile or a mosaic cannot be used.
ProblemKind = Literal[
    "missing_input",
    "unreadable_input",
    "checksum_mismatch",
    "unknown_crs",
    "dtype_conflict",
    "outside_grid",
    "unknown_baseline",
    "grid_conflict",
]

#: What a note tells of.
NoteKind = Literal[
    "unmasked",
    "mixed_baselines",
    "dtype",
    "empty_values",
    "pixel_sizes",
    "off_grid",
    "unknown_band",
    "outside_grid",
    "overviews",
    "offset_removed",
    "incomplete",
    "mixed_parameters",
]
