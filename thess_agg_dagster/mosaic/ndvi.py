"""NDVI: a band derived from two others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from odc.geo.geobox import GeoBox

from thess_agg_dagster.mosaic import reducers
from thess_agg_dagster.mosaic.bands import NIR, RED
from thess_agg_dagster.mosaic.blocks import Pixels
from thess_agg_dagster.mosaic.composite import CompositeStats, Series
from thess_agg_dagster.mosaic.derive import derive
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.placement import Mask
from thess_agg_dagster.mosaic.plan import MosaicPlan

#: NDVI as int16 is that many times the index, and this where it is empty.
SCALE, NOTHING = 10_000, -32_768


@dataclass(frozen=True)
class NdviOptions:
    """``scaled``: int16, the index times 10 000, instead of float32. ``offset`` is what the reflectances carry."""

    scaled: bool = False
    offset: float = 0
    output: MosaicOptions = field(default_factory=MosaicOptions)

    @property
    def unit(self) -> float:
        """What numbers in the file are to be multiplied with."""
        return 1 / SCALE if self.scaled else 1


def ndvi_plan(grid: GeoBox, options: NdviOptions, name: str = "NDVI") -> MosaicPlan:
    """What the file will hold."""
    dtype, nodata = ("int16", float(NOTHING)) if options.scaled else ("float32", math.nan)
    return MosaicPlan(name, (), grid, dtype, nodata, options.output)


def write_ndvi(
    red: Series,
    nir: Series,
    path: Path,
    options: NdviOptions,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> CompositeStats:
    """NDVI of one mosaic or composite (:func:`open_mosaics` of one path each). Empty where either band is, or both are 0.

    Scale and offset stand in the file as GDAL knows them. Raises :class:`CompositeError` where the bands do not share a
    grid, ``TileError`` and ``SystemFaultError`` where one cannot be read, ``WriteError``.
    """
    plan = ndvi_plan(red.grid, options)

    def make(low: Pixels, high: Pixels) -> tuple[Pixels, Mask]:
        index = reducers.ndvi(low, high, options.offset)
        empty = red.is_empty(low) | nir.is_empty(high) | np.isnan(index)
        pixels = np.rint(np.clip(np.nan_to_num(index), -3, 3) * SCALE) if options.scaled else index
        return np.where(empty, plan.nodata, pixels).astype(plan.dtype), ~empty

    told = {"index": "NDVI", "bands": f"{NIR}|{RED}", "offset_removed": f"{options.offset:g}"}
    return derive([red, nir], plan, path, make, {**told, **tags}, options.unit if options.scaled else None)
