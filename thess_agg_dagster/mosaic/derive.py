"""Bands that are derived from others on the same grid, block by block: each block is decoded once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np
from rasterio.errors import RasterioError

from thess_agg_dagster.mosaic.blocks import Pixels, TileReader
from thess_agg_dagster.mosaic.composite import CompositeError, CompositeStats, Series
from thess_agg_dagster.mosaic.engine import WriteError, write_problem
from thess_agg_dagster.mosaic.geotiff import new_geotiff, threads_of
from thess_agg_dagster.mosaic.grid import Box
from thess_agg_dagster.mosaic.placement import Mask
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.preview import Preview
from thess_agg_dagster.storage.gdal import gdal_env

#: Pixels of a part of the grid, and which of them hold something, from the bands' pixels there.
Derivation = Callable[..., tuple[Pixels, Mask]]


def derive(
    bands: Sequence[Series],
    plan: MosaicPlan,
    path: Path,
    make: Derivation,
    tags: Mapping[str, str] = MappingProxyType({}),
    scale: float | None = None,
) -> CompositeStats:
    """Write a band that ``make`` derives from others, each a single file (:func:`open_mosaics` of one path each).

    ``make`` gets an array of shape (rows, cols) for each of ``bands``; ``plan`` says what the file is called and holds,
    ``scale`` what its numbers are to be multiplied with. Raises :class:`CompositeError` where the bands do not share a grid,
    ``TileError`` and ``SystemFaultError`` where one cannot be read, :class:`WriteError`.
    """
    started = time.perf_counter()
    first = bands[0].tiles[0]
    for each in bands[1:]:
        if each.grid != first.geobox or each.tiles[0].block_shape != first.block_shape:
            raise CompositeError(f"{each.tiles[0].path}: is not on the grid of {first.path}; see match_band")
    readers = [TileReader(each.tiles[0]) for each in bands]
    fill = 0 if math.isnan(plan.nodata) and np.dtype(plan.dtype).kind != "f" else plan.nodata
    preview = Preview(plan.grid, fill, plan.dtype)
    cores, lock = threading.Semaphore(threads_of(plan)), threading.Lock()
    rows, cols = first.shape
    valid = 0

    def block(chunk: tuple[int, int]) -> None:
        nonlocal valid
        with gdal_env():
            pixels, shown = make(*(reader.decode(chunk) for reader in readers))
        box = readers[0].box(chunk)
        with lock:
            valid += int(np.count_nonzero(shown))
            preview.show(box, pixels)
        target.write(box, pixels, shown, cores)

    with gdal_env():
        try:
            with new_geotiff(path, plan) as target:
                with ThreadPoolExecutor(threads_of(plan), thread_name_prefix="derive") as pool:
                    list(pool.map(block, readers[0].chunks(Box(0, rows, 0, cols))))
                if scale is not None:
                    target.file.scales = (scale,)
                target.file.update_tags(**tags)
        except (RasterioError, OSError) as error:
            raise WriteError(write_problem(path, plan, error)) from error
        finally:
            for reader in readers:
                reader.close()
    seconds = time.perf_counter() - started
    return CompositeStats(valid / (rows * cols), seconds, path.stat().st_size, preview.pixels)


def standing_in(first: Series, second: Series) -> Derivation:
    """``second`` where ``first`` is empty."""

    def make(here: Pixels, there: Pixels) -> tuple[Pixels, Mask]:
        empty = first.is_empty(here)
        return np.where(empty, there, here), ~(empty & second.is_empty(there))

    return make


def counts_standing_in(least: int) -> Derivation:
    """The second count where the first is less than ``least``."""

    def make(here: Pixels, there: Pixels) -> tuple[Pixels, Mask]:
        count = np.where(here < least, there, here)
        return count, count > 0

    return make


def whose(least: int, first: int, second: int) -> Derivation:
    """From two counts: ``first`` or ``second``, whichever has ``least`` observations; 0 where neither has."""

    def make(here: Pixels, there: Pixels) -> tuple[Pixels, Mask]:
        found = np.where(here >= least, first, np.where(there >= least, second, 0)).astype(np.uint8)
        return found, found > 0

    return make
