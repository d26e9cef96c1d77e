"""Parameters of an aggregation, with the same names on the command line, in run config, in the environment and in the
engine.

``python -m thess_agg_dagster.params > docs/PARAMETERS.md`` writes the page of the docs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from pydantic import field_validator, model_validator

from thess_agg_dagster.grid_params import GridParams, Resampling
from thess_agg_dagster.lake.layout import is_plain_name
from thess_agg_dagster.lake.periods import KINDS
from thess_agg_dagster.lake.published import COMPOSITE_FILES, NDVI, is_beside
from thess_agg_dagster.mosaic.bands import NIR, RED
from thess_agg_dagster.mosaic.choices import (
    COMPOSITE_METHODS,
    COMPRESSIONS,
    METHODS,
    MIXING,
    SUPPORTED_DTYPES,
    Format,
    MissingScl,
)
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2
from thess_agg_dagster.mosaic.sizes import Sizes
from thess_agg_dagster.parameter import parameter

if TYPE_CHECKING:
    from thess_agg_dagster.mosaic.options import MosaicOptions

# The engine, and what reads areas, are imported where they are needed: who defines assets has parameters, but no pixels.

# The launchpad knows values of these types: it offers them, and says at once where another stands. (A type checker would
# have to read the lists.)
if TYPE_CHECKING:
    Merging: TypeAlias = str
    Compression: TypeAlias = str
    Dtype: TypeAlias = str
    CompositeMethod: TypeAlias = str
    Ndvi: TypeAlias = str
else:
    Merging, Compression = Literal[METHODS], Literal[tuple(COMPRESSIONS)]
    Dtype = StrEnum("Dtype", {name: name for name in SUPPORTED_DTYPES})  # Dagster takes no Literal that may be unset
    CompositeMethod = Literal[COMPOSITE_METHODS]
    Ndvi = StrEnum("Ndvi", {name: name for name in ("float32", "int16")})


class TimestampsAggregationParams(GridParams):
    """How timestamps are aggregated.

    Each parameter comes from the run config (``resources: params: config:`` in the launchpad) or the command line of
    ``python -m thess_agg_dagster``; otherwise from the environment (``THESS_BANDS=B04,B08``: for backfills and
    sensors); otherwise it has its default. Raises ``pydantic.ValidationError``, which lists the allowed values.
    """

    bands: list[str] = parameter(["B04", "B08", "SCL"], "Mosaic", metavar="B04,B08,SCL")
    """Bands to mosaic, one file each. Any names are allowed; a tile is `<scene_id>/<band>.tif`."""

    drop_bands: bool = parameter(False, "Mosaic")
    """Remove published bands that are out of date and not among `bands`; up-to-date ones always stay."""

    merge_method: Merging = parameter("first", "Mosaic", pixels=True)
    """Which pixel to use where tiles overlap, as in rasterio.merge."""

    resampling: Resampling = parameter("nearest", "Mosaic", pixels=True)
    """For tiles in another CRS or not aligned with the grid; SCL is never interpolated."""

    harmonize: bool = parameter(False, "Mosaic", pixels=True)
    """Remove the offset of 1000 from reflectances of processing baseline 04.00 and later."""

    mask_scl_classes: list[int] = parameter([], "Masking", pixels=True, metavar="3,8,9,10")
    """SCL classes to mask: their pixels are emptied in the other bands before merging, e.g. shadows (3) and clouds (8, 9, 10)."""

    missing_scl: MissingScl = parameter("fail", "Masking", pixels=True)
    """What to do with a scene that has no SCL to mask with. (If SCL is one of the bands, its own mosaic fails in any case.)"""

    nodata: float = parameter(math.nan, "Output", pixels=True)
    """Value of empty pixels in the mosaics. nan means no override: integer mosaics keep the tiles' value (0 if untagged) and
    float mosaics get NaN."""

    dtype: Dtype | None = parameter(None, "Output", pixels=True, unset="the tiles'")
    """Dtype of the mosaics; in float32, empty pixels are NaN."""

    compress: Compression = parameter("zstd", "Output", pixels=True, composite=True)
    """Compression of the mosaics."""

    format: Format = parameter("geotiff", "Output", pixels=True, composite=True)
    """Format of the mosaics; cog is cloud-optimized, with overviews."""

    stac: bool = parameter(False, "Output")
    """Write a STAC item next to each timestamp's mosaics and, with the report, a collection of all items and its indices."""

    provenance: bool = parameter(False, "Output")
    """Write which scene each pixel comes from (source.tif) and how many scenes had a valid pixel (observations.tif)."""

    seams: bool = parameter(False, "Output")
    """With provenance: draw the borders between scenes on the quicklook."""

    metrics: bool = parameter(False, "Output")
    """With the report, write its numbers to timestamps_aggregation.prom next to the tables, for Prometheus."""

    ndvi: Ndvi | None = parameter(None, "Output", composite=True, unset="none")
    """Also write NDVI.tif, the NDVI of B08 and B04, for each timestamp and each composite: float32, or int16 times 10 000 (the
    scale is in the file)."""

    composites: list[str] = parameter([], "Composites", metavar="month,quarter")
    """Periods to make composites of, from the mosaics of their published timestamps. Needs grid=fixed."""

    composite_method: CompositeMethod = parameter("median", "Composites", composite=True)
    """How the timestamps of a period are combined; classes (SCL) become the most frequent one. All methods but median and
    mean consider all bands together, which must then share one grid (match_band, or resolution)."""

    min_observations: int = parameter(2, "Composites", composite=True)
    """A composite's pixel stays empty if fewer timestamps have a value there."""

    quarter_stands_in: bool = parameter(False, "Composites", composite=True)
    """Where a month has fewer observations than that, use the quarter's pixel; period.tif tells where."""

    download_from: list[str] = parameter([], "Download", metavar="HOST|s3://BUCKET|file:///FOLDER,...")
    """Sources to download tiles from if they are missing, unreadable or differ from their published checksum. The addresses are
    those in tables/assets_manifest_selected.csv or the scenes' STAC items; hosts are contacted by https."""

    download_token_url: str | None = parameter(None, "Download", metavar="URL", unset="none")
    """OAuth2 token endpoint of these hosts; set THESS_DOWNLOAD_USER and THESS_DOWNLOAD_PASSWORD in the environment."""

    download_client_id: str = parameter("cdse-public", "Download", metavar="ID")
    """OAuth2 client id; the default is the Copernicus Data Space's."""

    download_connections: int = parameter(4, "Download")
    """Concurrent downloads per process."""

    max_workers: int | None = parameter(None, "Running", unset="one per core, at most 4")
    """Timestamps that `python -m thess_agg_dagster` aggregates concurrently, each in its own process."""

    threads: int | None = parameter(None, "Running", unset="cores / max_workers")
    """Threads per mosaic."""

    debug: bool = parameter(False, "Running")
    """`python -m thess_agg_dagster` only: aggregate one timestamp at a time and stop at the first error with its full traceback."""

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
                    f"band {band!r} is the name of a file that is written next to the bands; use another name"
                )
        return unique

    @field_validator("composites")
    @classmethod
    def _composites(cls, value: list[str]) -> list[str]:
        if unknown := [kind for kind in value if kind not in KINDS]:
            raise ValueError(f"composites: {unknown[0]!r} is not one of {', '.join(KINDS)}")
        return [kind for kind in KINDS if kind in value]

    @field_validator("nodata")
    @classmethod
    def _nodata(cls, value: float) -> float:
        if math.isinf(value):
            raise ValueError("nodata is infinite; give a finite number, or NaN for no override")
        return value

    @field_validator("mask_scl_classes")
    @classmethod
    def _classes(cls, value: list[int]) -> list[int]:
        if unknown := [number for number in value if number not in SENTINEL_2.classes]:
            known = ", ".join(f"{number} ({name})" for number, (name, _) in SENTINEL_2.classes.items())
            raise ValueError(f"mask_scl_classes: {unknown[0]} is not a class of SCL; choose from {known}")
        return sorted(set(value))

    @model_validator(mode="after")
    def _together(self) -> TimestampsAggregationParams:
        if self.seams and not self.provenance:
            raise ValueError("seams need provenance, which tells where they are")
        if self.match_band is not None and self.match_band not in self.bands:
            raise ValueError(f"match_band={self.match_band!r} is not one of the bands, {', '.join(self.bands)}")
        if self.ndvi is not None:
            self._for_ndvi()
        if self.composites:
            self._for_composites()
        return self

    def _for_ndvi(self) -> None:
        self._need_red_and_nir("ndvi")
        if NDVI in self.bands:
            raise ValueError(
                f"band {NDVI!r} has the name of the file that ndvi writes; call it otherwise, or unset ndvi"
            )
        if self.merge_method in MIXING:
            raise ValueError(f"ndvi needs reflectances; merge_method={self.merge_method} leaves none")

    def _for_composites(self) -> None:
        if self.grid != "fixed":
            raise ValueError("composites need grid=fixed, so that all timestamps have the same pixels")
        if taken := sorted(set(self.bands) & set(COMPOSITE_FILES)):
            raise ValueError(f"band {taken[0]!r} has the name of a file of the composites; call it otherwise")
        if self.composite_method == "max_ndvi":
            self._need_red_and_nir("composite_method=max_ndvi")

    def _need_red_and_nir(self, what: str) -> None:
        if not {RED, NIR} <= set(self.bands):
            raise ValueError(f"{what} needs the bands {RED} and {NIR}, there are {', '.join(self.bands)}")

    @field_validator("max_workers", "threads", "download_connections", "min_observations")
    @classmethod
    def _at_least_one(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(
                f"{value} is not a number of workers, threads, connections or observations; give 1 or more"
            )
        return value

    @classmethod
    def from_environment(cls) -> Self:
        """The parameters of this process, each passed by name, because the launchpad shows only those."""
        return cls(**cls().run_config())

    def mosaic_options(self) -> MosaicOptions:
        """The options of the engine. Reads the aoi; raises ``AreaError`` if it cannot be used."""
        from thess_agg_dagster.mosaic.area import read_area
        from thess_agg_dagster.mosaic.options import MosaicOptions
        from thess_agg_dagster.mosaic.target import Target

        # A parameter goes to the engine under its own name.
        given = self.values() | {
            "aoi": None if self.aoi is None else read_area(self.aoi),
            "bounds": None if self.bounds is None else tuple(self.bounds),
            "mask_scl_classes": tuple(self.mask_scl_classes),
        }
        given |= {"target": Target(**{field.name: given[field.name] for field in fields(Target)}), "sizes": Sizes()}
        return MosaicOptions(**{field.name: given[field.name] for field in fields(MosaicOptions)})

    @property
    def outputs(self) -> list[str]:
        """The bands of each timestamp: those that are merged, and NDVI if it is derived from them."""
        return [*self.bands, NDVI] if self.ndvi else list(self.bands)

    def with_bands(self, bands: Sequence[str]) -> TimestampsAggregationParams:
        """These parameters with other bands. (To make a resource takes Dagster as long as to plan a small mosaic.)"""
        return self if list(bands) == self.bands else type(self)(**self.values() | {"bands": list(bands)})

    def pixel_identity(self) -> str:
        """The parameters that determine a mosaic's pixels, as text: the same text means the same pixels.

        Parameters at their defaults are left out, so that a parameter added in a later release makes nothing due. The
        choice of bands does not count. The aoi counts by its shape, not its name. Raises ``AreaError`` if the aoi
        cannot be used.
        """
        return self._pixel_identity if self.aoi is None else self._identify_pixels()

    @cached_property
    def _pixel_identity(self) -> str:
        """Where no file is read for it, it is asked for once for each of ten thousand timestamps."""
        return self._identify_pixels()

    def _identify_pixels(self) -> str:
        return self._differing(name for name, each in self.declared().items() if each.pixels)

    def composite_identity(self) -> str:
        """The parameters that decide what a composite of given mosaics holds, in the same way."""
        return self._differing(name for name, each in self.declared().items() if each.composite)

    def _differing(self, names: Iterable[str]) -> str:
        defaults = {name: _spelled(self.declared()[name].default) for name in names}
        values = self._recorded(defaults)
        return json.dumps({name: value for name, value in values.items() if value != defaults[name]}, sort_keys=True)

    def as_json(self) -> str:
        """The parameters that say what is made, as recorded in the mosaics and next to them. Raises ``AreaError``."""
        made = [name for name, each in self.declared().items() if each.pixels]
        return json.dumps(self._recorded([*made, "bands", "stac", "provenance"]), sort_keys=True, allow_nan=False)

    def composite_json(self) -> str:
        """The parameters that composites were made with, beside those of their mosaics."""
        made = [name for name, each in self.declared().items() if each.composite]
        return json.dumps(self._recorded([*made, "bands", "stac"]), sort_keys=True, allow_nan=False)

    def _recorded(self, names: Iterable[str]) -> dict[str, Any]:
        values = {name: _spelled(getattr(self, name)) for name in names}
        if self.aoi is not None and "aoi" in values:
            from thess_agg_dagster.mosaic.area import read_area

            area = read_area(self.aoi)
            values["aoi"] = f"{area.crs} {area.wkt}"
        return values


def _spelled(value: Any) -> Any:
    """A value as JSON can say it."""
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def page() -> str:
    """The parameters' page of the docs, as Markdown."""
    return f"""# Parameters

Set parameters on the command line (`--merge-method max`), in run config or the launchpad (`resources: params: config:
{{merge_method: max}}`), or in the environment (`THESS_MERGE_METHOD=max`: for backfills and sensors). The first of these that is
set takes precedence.

Locations are not parameters: `--data-lake` (`DATA_LAKE`), `--tiles` (`THESS_TILES`) and `THESS_TABLES`, or in run config
`resources: io_manager: config:`, are described in [LAKE.md](LAKE.md#what-goes-in).

For `provenance` and `seams`, see [LAKE.md](LAKE.md#which-pixel-from-where); for composites,
[COMPOSITES.md](COMPOSITES.md); for downloads, [DOWNLOADS.md](DOWNLOADS.md).
{TimestampsAggregationParams.markdown()}
"""


if __name__ == "__main__":
    print(page(), end="")
