"""Parameters of an aggregation: one set of names for command line, run config and environment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import dagster as dg
from odc.geo.crs import CRS
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pyproj.exceptions import CRSError

from thess_agg_dagster.lake.layout import is_beside, is_plain_name
from thess_agg_dagster.mosaic.area import is_wkt, read_area
from thess_agg_dagster.mosaic.geotiff import COMPRESSIONS
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.rules import METHODS, RESAMPLINGS
from thess_agg_dagster.mosaic.scl import CLASSES
from thess_agg_dagster.mosaic.target import FIRST, MAJORITY, Target
from thess_agg_dagster.mosaic.tiles import SUPPORTED_DTYPES

#: A parameter ``x`` is read from the environment variable ``THESS_X``.
ENVIRONMENT_PREFIX = "THESS_"

GRIDS = ("tiles", "fixed")
FORMATS = ("geotiff", "cog")
MISSING_SCL = ("fail", "unmasked")


# What parameters of few values may be.
_ALLOWED: Mapping[str, Sequence[str]] = {
    "merge_method": METHODS,
    "resampling": RESAMPLINGS,
    "reduction": RESAMPLINGS,
    "dtype": SUPPORTED_DTYPES,
    "compress": tuple(COMPRESSIONS),
    "grid": GRIDS,
    "missing_scl": MISSING_SCL,
    "format": FORMATS,
}

# The launchpad knows values of these types: it offers them, and says at once where another stands. (A type checker would
# have to read the lists.)
if TYPE_CHECKING:
    Merging: TypeAlias = str
    Resampling: TypeAlias = str
    Compression: TypeAlias = str
    Grid: TypeAlias = str
    MissingScl: TypeAlias = str
    Format: TypeAlias = str
    Dtype: TypeAlias = str
else:
    Merging, Resampling = Literal[METHODS], Literal[RESAMPLINGS]
    Compression, Grid = Literal[tuple(COMPRESSIONS)], Literal[GRIDS]
    MissingScl, Format = Literal[MISSING_SCL], Literal[FORMATS]
    Dtype = StrEnum("Dtype", {name: name for name in SUPPORTED_DTYPES})  # Dagster takes no Literal that may be unset


# What decides the pixels of a mosaic (or the bytes they are kept in), and the default of each.
_PIXELS: dict[str, Any] = {}


def _parameter(name: str, default: Any, description: str, *, pixels: bool = True) -> Any:
    """A parameter. ``pixels``: whether it decides what a mosaic holds, so that a timestamp is made again where it
    changes."""
    if pixels:
        _PIXELS[name] = default
    return environment_field(name, default, description)


def environment_field(name: str, default: Any, description: str) -> Any:
    """A field whose default the environment may set, read anew in every process that makes the parameters."""
    return Field(
        default_factory=lambda: os.environ.get(ENVIRONMENT_PREFIX + name.upper(), "").strip() or default,
        validate_default=True,
        description=description,
    )


class TimestampsAggregationParams(dg.ConfigurableResource):  # type: ignore[type-arg]
    """How timestamps are aggregated.

    Each parameter comes from the run config (``resources: params: config:`` in the launchpad) or the command line of
    ``python -m thess_agg_dagster``; else from the environment (``THESS_BANDS=B04,B08``: for backfills and sensors);
    else it has its default. Raises ``pydantic.ValidationError`` that lists what is allowed.
    """

    bands: list[str] = _parameter("bands", ["B04", "B08", "SCL"], "Bands to mosaic, one file each.", pixels=False)
    drop_bands: bool = _parameter(
        "drop_bands",
        False,
        "Published bands that are not asked for stay while they are up to date; whether those that are not may be removed.",
        pixels=False,
    )
    merge_method: Merging = _parameter(
        "merge_method", "first", f"Which pixel wins where tiles overlap: {', '.join(METHODS)}. Default: first."
    )
    resampling: Resampling = _parameter(
        "resampling",
        "nearest",
        f"For tiles in another CRS or pixel size; SCL is never interpolated: {', '.join(RESAMPLINGS)}. Default: nearest.",
    )
    nodata: float = _parameter(
        "nodata",
        math.nan,
        "Value of empty pixels in the mosaics. Default: NaN, no override: integer mosaics keep the tiles' value "
        "(0 where untagged), float mosaics get NaN.",
    )
    dtype: Dtype | None = _parameter(
        "dtype", None, f"Dtype of the mosaics: {', '.join(SUPPORTED_DTYPES)}. Default: the tiles'."
    )
    compress: Compression = _parameter(
        "compress", "zstd", f"Compression of the mosaics: {', '.join(COMPRESSIONS)}. Default: zstd."
    )
    target_crs: str = _parameter(
        "target_crs",
        FIRST,
        "CRS of the mosaics: first (the first tile's), majority (that of most tiles), or any CRS, e.g. EPSG:32634. "
        "Default: first; for grid=fixed around an aoi, the UTM zone of its centre.",
    )
    grid: Grid = _parameter(
        "grid",
        "tiles",
        "Which pixels the mosaics have: tiles (what the tiles of a timestamp cover) or fixed (bounds, or those of the aoi: "
        "the same CRS, transform and shape for all timestamps). Default: tiles.",
    )
    bounds: list[float] | None = _parameter(
        "bounds",
        None,
        "With grid=fixed: left, bottom, right, top in units of target_crs, whole pixels of all bands. Default: around the aoi.",
    )
    aoi: str | None = _parameter(
        "aoi",
        None,
        "Area of interest: a GeoJSON or GeoPackage file, or a polygon as WKT (in EPSG:4326, or SRID=32634;POLYGON(...)). "
        "The mosaics are clipped to its bounds. Default: none.",
    )
    aoi_mask: bool = _parameter("aoi_mask", False, "Empty what lies in the bounds of the aoi, but outside of it.")
    resolution: float | None = _parameter(
        "resolution", None, "Pixel size of the mosaics, in units of the CRS. Default: the tiles', band by band."
    )
    reduction: Resampling = _parameter(
        "reduction",
        "average",
        "How tiles are brought to the coarser pixels of resolution or match_band; SCL gets the most frequent class, with "
        f"nearest the nearest: {', '.join(RESAMPLINGS)}. Default: average.",
    )
    overviews: bool = _parameter(
        "overviews",
        False,
        "Start a reduction from a tile's overviews or JPEG 2000 resolution levels: much faster, not exact, and empty pixels "
        "mix into the edge of the swath. Never for SCL, nor for what is masked.",
    )
    match_band: str | None = _parameter(
        "match_band", None, "Write all bands on the grid of this one, e.g. B04. Default: each on its own."
    )
    mask_scl_classes: list[int] = _parameter(
        "mask_scl_classes",
        [],
        "SCL classes that empty a pixel of the other bands before merging, e.g. 3,8,9,10 (shadows and clouds). "
        "Default: none.",
    )
    missing_scl: MissingScl = _parameter(
        "missing_scl",
        "fail",
        "What happens with a scene that has no SCL to mask with: fail or unmasked (where SCL is one of the bands, its own "
        "mosaic fails all the same). Default: fail.",
    )
    harmonize: bool = _parameter(
        "harmonize", False, "Remove the offset of 1000 that reflectances of processing baseline 04.00 and later carry."
    )
    format: Format = _parameter(
        "format",
        "geotiff",
        "Format of the mosaics: geotiff or cog (cloud-optimized, with overviews). Default: geotiff.",
    )
    stac: bool = _parameter(
        "stac",
        False,
        "Write a STAC item beside each timestamp's mosaics, and the report a collection of all of them.",
        pixels=False,
    )
    provenance: bool = _parameter(
        "provenance",
        False,
        "Write which scene each pixel came from (source.tif) and how many had a valid one (observations.tif).",
        pixels=False,
    )
    seams: bool = _parameter("seams", False, "With provenance: draw on the quicklook where one scene ends.")
    download_from: list[str] = _parameter(
        "download_from",
        [],
        "Where tiles that are missing, unreadable or not what was published may be fetched from, by the addresses in "
        "tables/assets_manifest_selected.csv or the scenes' STAC items: host names (https), s3://bucket, file:///folder. "
        "Default: nowhere.",
        pixels=False,
    )
    download_token_url: str | None = _parameter(
        "download_token_url",
        None,
        "OAuth2 token endpoint of these hosts; THESS_DOWNLOAD_USER and THESS_DOWNLOAD_PASSWORD stand in the environment.",
        pixels=False,
    )
    download_client_id: str = _parameter(
        "download_client_id",
        "cdse-public",
        "OAuth2 client id. Default: cdse-public, the Copernicus Data Space's.",
        pixels=False,
    )
    download_connections: int = _parameter(
        "download_connections", 4, "Downloads at a time in a process. Default: 4.", pixels=False
    )
    max_workers: int | None = _parameter(
        "max_workers",
        None,
        "Timestamps at a time in `python -m thess_agg_dagster`. Default: one per core, at most 4.",
        pixels=False,
    )
    threads: int | None = _parameter(
        "threads",
        None,
        "Threads within a mosaic. Default: the cores that max_workers leaves to each worker.",
        pixels=False,
    )
    debug: bool = _parameter(
        "debug",
        False,
        "`python -m thess_agg_dagster` only: one timestamp after the other, stop at the first error.",
        pixels=False,
    )

    @field_validator("bands", "download_from", mode="before")
    @classmethod
    def _split(cls, names: Any) -> Any:
        return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names

    @field_validator("bounds", "mask_scl_classes", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers between commas, as a command line and the environment give them."""
        if not isinstance(value, str):
            return value
        kind = float if info.field_name == "bounds" else int
        try:
            return [kind(part) for part in value.split(",") if part.strip()]
        except ValueError as error:
            raise ValueError(f"{info.field_name}={value!r} are not numbers between commas") from error

    @field_validator("bands")
    @classmethod
    def _bands(cls, bands: list[str]) -> list[str]:
        unique = list(dict.fromkeys(bands))
        if not unique:
            raise ValueError("bands is empty; name at least one, e.g. B04")
        for band in unique:
            if not is_plain_name(band):
                raise ValueError(
                    f"band {band[:80]!r} is not a plain name; allowed are letters, digits, '.', '_' and '-'"
                )
            if is_beside(band):
                raise ValueError(
                    f"band {band!r} has the name of a file that stands beside the bands; call it otherwise"
                )
        return unique

    @field_validator(*_ALLOWED, mode="before")
    @classmethod
    def _one_of(cls, value: Any, info: ValidationInfo) -> Any:
        allowed = _ALLOWED[str(info.field_name)]
        if value is not None and value not in allowed:
            raise ValueError(f"{info.field_name}={value!r} is not one of {', '.join(allowed)}")
        return value

    @field_validator("nodata")
    @classmethod
    def _nodata(cls, value: float) -> float:
        if math.isinf(value):
            raise ValueError("nodata is infinite; give a finite number, or NaN for no override")
        return value

    @field_validator("target_crs")
    @classmethod
    def _target_crs(cls, value: str) -> str:
        if value not in (FIRST, MAJORITY):
            try:
                crs = CRS(value)
            except CRSError as error:
                raise ValueError(
                    f"target_crs={value!r} is not one of {FIRST}, {MAJORITY}, nor a CRS ({error})"
                ) from error
            if not (crs.geographic or crs.projected):
                raise ValueError(f"target_crs={value!r} is neither geographic nor projected; a mosaic is flat")
        return value

    @field_validator("bounds")
    @classmethod
    def _bounds(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not (
            len(value) == 4 and all(map(math.isfinite, value)) and value[0] < value[2] and value[1] < value[3]
        ):
            raise ValueError(f"bounds={value} are not left, bottom, right, top, the first two below the last two")
        return value

    @field_validator("aoi")
    @classmethod
    def _aoi(cls, value: str | None) -> str | None:
        # A run may start in another folder.
        return value if value is None or is_wkt(value) else str(Path(value).expanduser().absolute())

    @field_validator("resolution")
    @classmethod
    def _resolution(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"resolution={value} is not a pixel size; give a number above 0")
        return value

    @field_validator("mask_scl_classes")
    @classmethod
    def _classes(cls, value: list[int]) -> list[int]:
        if unknown := [number for number in value if number not in CLASSES]:
            known = ", ".join(f"{number} ({name})" for number, (name, _) in CLASSES.items())
            raise ValueError(f"mask_scl_classes: {unknown[0]} is no class of SCL; there are {known}")
        return sorted(set(value))

    @model_validator(mode="after")
    def _together(self) -> TimestampsAggregationParams:
        if self.grid == "fixed" and self.bounds is None and self.aoi is None:
            raise ValueError("grid=fixed needs bounds (left, bottom, right, top) or an aoi")
        if self.bounds is not None and self.grid != "fixed":
            raise ValueError("bounds are for grid=fixed; to clip to an area, give an aoi")
        if self.bounds is not None and self.target_crs in (FIRST, MAJORITY):
            raise ValueError("bounds need target_crs, the CRS that they are in, e.g. EPSG:32634")
        if self.aoi_mask and self.aoi is None:
            raise ValueError("aoi_mask needs an aoi")
        if self.bounds is not None and self.aoi is not None and not self.aoi_mask:
            raise ValueError(
                "bounds and aoi both say what to clip to; leave one out, or empty what is outside with aoi_mask"
            )
        if self.overviews and self.resolution is None and self.match_band is None:
            raise ValueError("overviews are for a reduction; give a resolution, or match_band")
        if self.seams and not self.provenance:
            raise ValueError("seams need provenance, which tells where they are")
        if self.match_band is not None and self.match_band not in self.bands:
            raise ValueError(f"match_band={self.match_band!r} is not one of the bands, {', '.join(self.bands)}")
        return self

    @field_validator("max_workers", "threads", "download_connections")
    @classmethod
    def _at_least_one(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(f"{value} is not a number of workers, threads or connections; give 1 or more")
        return value

    @classmethod
    def from_environment(cls) -> TimestampsAggregationParams:
        """The parameters that this process starts with, each given by name: only such does the launchpad show."""
        return cls(**cls().run_config())

    def mosaic_options(self) -> MosaicOptions:
        """What the engine needs to know. Reads the aoi; raises ``AreaError`` where it cannot be used."""
        # A parameter goes to the engine under its own name.
        given = self._values() | {
            "aoi": None if self.aoi is None else read_area(self.aoi),
            "bounds": None if self.bounds is None else tuple(self.bounds),
            "mask_scl_classes": tuple(self.mask_scl_classes),
        }
        target = Target(**{field.name: given[field.name] for field in fields(Target)})
        given["target"] = target
        return MosaicOptions(**{field.name: given[field.name] for field in fields(MosaicOptions)})

    def run_config(self) -> dict[str, Any]:
        """These parameters as run config; unset ones are left out, as is NaN, which is no JSON."""
        return {name: value for name, value in self._values().items() if value is not None and value == value}

    def with_bands(self, bands: Sequence[str]) -> TimestampsAggregationParams:
        """These parameters for other bands."""
        return type(self)(**self._values() | {"bands": list(bands)})

    def pixel_identity(self) -> str:
        """The parameters that decide what a mosaic holds, as text: the same text, the same pixels.

        Only those that differ from their defaults, so that one that a later release adds makes nothing due. Which bands
        are made changes none of them. The aoi counts by its shape, not by its name. Raises ``AreaError`` where it cannot
        be used.
        """
        values = self._recorded(_PIXELS)
        defaults = {name: _spelled(value) for name, value in _PIXELS.items()}
        return json.dumps({name: value for name, value in values.items() if value != defaults[name]}, sort_keys=True)

    def as_json(self) -> str:
        """The parameters that mosaics were made with, as they are kept beside and inside them: all that say what is made.

        Raises ``AreaError``.
        """
        return json.dumps(self._recorded([*_PIXELS, "bands", "stac", "provenance"]), sort_keys=True, allow_nan=False)

    def _recorded(self, names: Iterable[str]) -> dict[str, Any]:
        values = {name: _spelled(getattr(self, name)) for name in names}
        if self.aoi is not None and "aoi" in values:
            area = read_area(self.aoi)
            values["aoi"] = f"{area.crs} {area.wkt}"
        return values

    def _values(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}


def _spelled(value: Any) -> Any:
    """A value as JSON can say it."""
    return "nan" if isinstance(value, float) and math.isnan(value) else value
