"""Parameters of an aggregation: one set of names for command line, run config and environment."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import dagster as dg
from pydantic import Field, field_validator

from thess_agg_dagster.lake.layout import is_plain_name
from thess_agg_dagster.mosaic.engine import COMPRESSIONS
from thess_agg_dagster.mosaic.plan import MosaicOptions
from thess_agg_dagster.mosaic.rules import METHODS, RESAMPLINGS
from thess_agg_dagster.mosaic.tiles import SUPPORTED_DTYPES

#: A parameter ``x`` is read from the environment variable ``THESS_X``.
ENVIRONMENT_PREFIX = "THESS_"


def _parameter(name: str, default: Any, description: str) -> Any:
    """A field whose default the environment may set, read anew in every process that makes the parameters."""
    return Field(
        default_factory=lambda: os.environ.get(ENVIRONMENT_PREFIX + name.upper(), "").strip() or default,
        validate_default=True,
        description=description,
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    return value


class TimestampsAggregationParams(dg.ConfigurableResource):  # type: ignore[type-arg]
    """How timestamps are aggregated.

    Each parameter comes from the run config (``resources: params: config:`` in the launchpad) or the command line of
    ``python -m thess_agg_dagster``; else from the environment (``THESS_BANDS=B04,B08``: for backfills and sensors);
    else it has its default. Raises ``pydantic.ValidationError`` that lists what is allowed.
    """

    bands: list[str] = _parameter("bands", ["B04", "B08", "SCL"], "Bands to mosaic, one file each.")
    merge_method: str = _parameter(
        "merge_method", "first", f"Which pixel wins where tiles overlap: {', '.join(METHODS)}. Default: first."
    )
    resampling: str = _parameter(
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
    dtype: str | None = _parameter(
        "dtype", None, f"Dtype of the mosaics: {', '.join(SUPPORTED_DTYPES)}. Default: the tiles'."
    )
    compress: str = _parameter(
        "compress", "zstd", f"Compression of the mosaics: {', '.join(COMPRESSIONS)}. Default: zstd."
    )
    max_workers: int | None = _parameter(
        "max_workers",
        None,
        "Timestamps at a time in `python -m thess_agg_dagster`. Default: one per core, at most 4.",
    )
    threads: int | None = _parameter(
        "threads", None, "Threads within a mosaic. Default: the cores that max_workers leaves to each worker."
    )
    debug: bool = _parameter(
        "debug", False, "`python -m thess_agg_dagster` only: one timestamp after the other, stop at the first error."
    )

    @field_validator("bands", mode="before")
    @classmethod
    def _split_bands(cls, bands: Any) -> Any:
        return [band.strip() for band in bands.split(",") if band.strip()] if isinstance(bands, str) else bands

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
        return unique

    @field_validator("merge_method")
    @classmethod
    def _merge_method(cls, value: str) -> str:
        return _one_of("merge_method", value, METHODS)

    @field_validator("resampling")
    @classmethod
    def _resampling(cls, value: str) -> str:
        return _one_of("resampling", value, RESAMPLINGS)

    @field_validator("nodata")
    @classmethod
    def _nodata(cls, value: float) -> float:
        if math.isinf(value):
            raise ValueError("nodata is infinite; give a finite number, or NaN for no override")
        return value

    @field_validator("dtype")
    @classmethod
    def _dtype(cls, value: str | None) -> str | None:
        return value if value is None else _one_of("dtype", value, SUPPORTED_DTYPES)

    @field_validator("compress")
    @classmethod
    def _compress(cls, value: str) -> str:
        return _one_of("compress", value, tuple(COMPRESSIONS))

    @field_validator("max_workers", "threads")
    @classmethod
    def _at_least_one(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(f"{value} is not a number of workers or threads; give 1 or more")
        return value

    def mosaic_options(self) -> MosaicOptions:
        """What the engine needs to know."""
        return MosaicOptions(
            merge_method=self.merge_method,
            resampling=self.resampling,
            nodata=self.nodata,
            dtype=self.dtype,
            compress=self.compress,
            threads=self.threads,
        )

    def run_config(self) -> dict[str, Any]:
        """These parameters as run config; unset ones are left out, as is NaN, which is no JSON."""
        return {name: value for name, value in self._values().items() if value is not None and value == value}

    def pixel_identity(self) -> str:
        """The parameters that decide what the mosaics hold, as text: the same text, the same pixels."""
        other = ("max_workers", "threads", "debug")
        return json.dumps({k: v for k, v in self._values().items() if k not in other}, sort_keys=True)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}
