"""NDVI: a band derived from two others, block by block."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rasterio.errors import RasterioError

from thess_agg_dagster.mosaic import reducers
from thess_agg_dagster.mosaic.blocks import TileReader
from thess_agg_dagster.mosaic.composite import CompositeError, Series
from thess_agg_dagster.mosaic.engine import WriteError, write_problem
from thess_agg_dagster.mosaic.geotiff import new_geotiff, threads_of
from thess_agg_dagster.mosaic.grid import Box
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.storage.gdal import gdal_env

#: NDVI as int16 is that many times the index, and this where it is empty.
SCALE, NOTHING = 10_000, -32_768


@dataclass(frozen=True)
class NdviOptions:
    """``scaled``: int16, the index times 10 000, instead of float32. ``offset`` is what the reflectances carry."""

    scaled: bool = False
    offset: float = 0
    output: MosaicOptions = field(default_factory=MosaicOptions)


def write_ndvi(red: Series, nir: Series, path: Path, options: NdviOptions) -> None:
    """NDVI of one mosaic or composite (:func:`open_mosaics` of one path each). Empty where either band is, or both are 0.

    Scale and offset stand in the file as GDAL knows them. Raises :class:`CompositeError` where the bands do not share a
    grid, ``TileError`` and ``SystemFaultError`` where one cannot be read, :class:`WriteError`.
    """
    if red.grid != nir.grid or red.tiles[0].block_shape != nir.tiles[0].block_shape:
        raise CompositeError(f"{nir.tiles[0].path}: is not on the grid of {red.tiles[0].path}; see match_band")
    dtype, nodata = ("int16", float(NOTHING)) if options.scaled else ("float32", math.nan)
    plan = MosaicPlan("NDVI", (), red.grid, dtype, nodata, options.output)
    readers = [TileReader(red.tiles[0]), TileReader(nir.tiles[0])]
    cores = threading.Semaphore(threads_of(plan))
    rows, cols = red.tiles[0].shape

    def make(chunk: tuple[int, int]) -> None:
        with gdal_env():
            low, high = (reader.decode(chunk) for reader in readers)
        index = reducers.ndvi(low, high, options.offset)
        empty = red.is_empty(low) | nir.is_empty(high) | np.isnan(index)
        pixels = np.rint(np.clip(np.nan_to_num(index), -3, 3) * SCALE) if options.scaled else index
        pixels = np.where(empty, nodata, pixels).astype(dtype)
        target.write(readers[0].box(chunk), pixels, ~empty, cores)

    with gdal_env():
        try:
            with new_geotiff(path, plan) as target:
                with ThreadPoolExecutor(threads_of(plan), thread_name_prefix="ndvi") as pool:
                    list(pool.map(make, readers[0].chunks(Box(0, rows, 0, cols))))
                if options.scaled:
                    target.file.scales = (1 / SCALE,)
                target.file.update_tags(index="NDVI", bands="B08|B04", offset_removed=f"{options.offset:g}")
        except (RasterioError, OSError) as error:
            raise WriteError(write_problem(path, plan, error)) from error
        finally:
            for reader in readers:
                reader.close()
