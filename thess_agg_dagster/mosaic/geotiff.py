"""GeoTIFF files: how a mosaic is laid out, compressed, made cloud-optimized, and verified."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.windows import Window

from thess_agg_dagster.mosaic.bands import role_of
from thess_agg_dagster.mosaic.choices import COMPRESSIONS
from thess_agg_dagster.mosaic.grid import Box, rasterio_crs
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.storage.errors import first_line

if TYPE_CHECKING:
    from rasterio.io import DatasetReader, DatasetWriter

# What GDAL's COG driver calls a level, whatever the compression.
_LEVELS = {"zstd_level": "level", "zlevel": "level"}
# Overviews of these are nearest, as those of classes: a mean of tiles' numbers is none.
_NUMBERS = ("source", "observations", "count", "period")
# While a COG is made: a cache that holds a row of blocks, and overviews that wait uncompressed for their turn.
_COG_ENV = {"GDAL_CACHEMAX": 16 * 2**20, "COG_TMP_COMPRESSION": "NONE"}


def threads_of(plan: MosaicPlan) -> int:
    """The number of threads for computing and compressing."""
    return plan.options.threads or os.cpu_count() or 1


def creation_options(plan: MosaicPlan) -> dict[str, Any]:
    """Creation options of a mosaic's GeoTIFF; uncompressed where it is but the draft of a cloud-optimized one.

    GDAL compresses on as many threads as the engine computes on.
    """
    rows, cols = plan.grid.shape
    floats = np.dtype(plan.dtype).kind == "f"
    options: dict[str, Any] = {
        "driver": "GTiff",
        "width": int(cols),
        "height": int(rows),
        "count": 1,
        "dtype": plan.dtype,
        "crs": rasterio_crs(plan.grid),
        "transform": plan.grid.affine,
        "nodata": plan.nodata if floats or not math.isnan(plan.nodata) else None,
        "tiled": True,
        "blockxsize": plan.options.sizes.block,
        "blockysize": plan.options.sizes.block,
        "bigtiff": "IF_SAFER",
        "sparse_ok": True,
    }
    compression = {} if plan.options.format == "cog" else COMPRESSIONS[plan.options.compress]
    if compression:
        options |= compression
        options["num_threads"] = threads_of(plan)
        # Numbers of scenes repeat from pixel to pixel as they are.
        options["predictor"] = 1 if plan.band in _NUMBERS else 3 if floats else 2
    return options


class Target:
    """A GeoTIFF under construction, filled by windows of whole blocks."""

    def __init__(self, file: DatasetWriter) -> None:
        self.file = file
        self.dtype = np.dtype(file.dtypes[0])
        self._block = file.block_shapes[0][0]
        #: Row and column of the blocks that hold something.
        self.filled: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def write(self, window: Box, pixels: NDArray[Any], shown: NDArray[np.bool_], cores: threading.Semaphore) -> None:
        """Write a window, unless nothing in it is ``shown``: that is a hole in the sparse file.

        Threads take turns; one of ``cores`` is held while it is this one's.
        """
        (height, width), block = window.shape, self._block
        # A block is written once and whole: GDAL, whose cache holds none, would read it back while it compresses it.
        assert (window.top % block, window.left % block) == (0, 0)
        rows, cols = self.file.shape
        assert height % block == 0 or window.bottom == rows
        assert width % block == 0 or window.right == cols
        filled = {
            ((window.top + row) // block, (window.left + col) // block)
            for row in range(0, height, block)
            for col in range(0, width, block)
            if shown[row : row + block, col : col + block].any()
        }
        if filled:
            with self._lock, cores:
                self.filled |= filled
                self.file.write(pixels, 1, window=Window(window.left, window.top, width, height))


@contextmanager
def new_geotiff(path: Path, plan: MosaicPlan) -> Iterator[Target]:
    """A mosaic's file to write to; when the block ends it is verified, and made cloud-optimized if requested.

    Call inside ``gdal_env``. After an error, half a file may remain. Raises ``OSError`` or ``RasterioError``.
    """
    cog = plan.options.format == "cog"
    draft = path.with_name(f".{path.name}.draft") if cog else path
    draft.unlink(missing_ok=True)  # rasterio would look into a file that is already there
    try:
        with rasterio.open(draft, "w", **creation_options(plan)) as file:
            file.set_band_description(1, plan.band)
            target = Target(file)
            yield target
        verify(draft, target.filled)
        if cog:
            make_cog(draft, path, plan)
            verify(path, target.filled, overviews=True)
    finally:
        if cog:
            draft.unlink(missing_ok=True)


def make_cog(draft: Path, path: Path, plan: MosaicPlan) -> None:
    """Rewrite a GeoTIFF as a cloud-optimized one: the same pixels, and overviews each half the size of the last.

    Overviews are nearest for classes and average for continuous bands. Call inside ``gdal_env``; :func:`verify` the
    result. Raises ``OSError``.
    """
    options: dict[str, Any] = {
        "driver": "COG",
        "blocksize": plan.options.sizes.block,
        "bigtiff": "IF_SAFER",
        "sparse_ok": True,
        "statistics": "NO",
        "overviews": "IGNORE_EXISTING",
        "overview_resampling": "nearest" if role_of(plan.band) == "classes" or plan.band in _NUMBERS else "average",
        "num_threads": threads_of(plan),
        "compress": "NONE",
    }
    if compression := COMPRESSIONS[plan.options.compress]:
        options |= {_LEVELS.get(name, name): value for name, value in compression.items()}
        options |= {"predictor": "YES", "overview_predictor": "YES"}
    path.unlink(missing_ok=True)
    try:
        with rasterio.Env(**_COG_ENV, GDAL_NUM_THREADS=str(threads_of(plan))):
            rasterio.shutil.copy(draft, path, **options)
    except Exception as error:  # what GDAL says comes as a class that rasterio keeps to itself
        raise OSError(f"it could not be converted to a cloud-optimized GeoTIFF: {first_line(error)}") from error


def verify(path: Path, filled_blocks: Collection[tuple[int, int]], overviews: bool = False) -> None:
    """Raise ``OSError`` unless every block that holds something is in the file, whole, and so are its overviews.

    ``filled_blocks`` are rows and columns of blocks at full resolution. What GDAL writes while it closes a file can fail
    without a word: on a full disk the last blocks would be missing.
    """
    size = path.stat().st_size
    with rasterio.open(path, driver="GTiff") as written:
        block = written.block_shapes[0][0]
        whole = all(0 < _end(written, row, col) <= size for row, col in filled_blocks)
        if overviews:
            # Halved until one block holds all; blocks of an overview may be empty, but not lie outside the file.
            rows, cols = written.shape
            for level in range(len(written.overviews(1))):
                with rasterio.open(path, driver="GTiff", overview_level=level) as overview:
                    rows, cols = overview.shape
                blocks = np.ndindex(-(-rows // block), -(-cols // block))
                whole &= all(_end(written, row, col, ovr=level) <= size for row, col in blocks)
            whole &= max(rows, cols) <= block
    if not whole:
        raise OSError(errno.ENOSPC, "the file is incomplete after closing it")


def _end(written: DatasetReader, row: int, col: int, **level: int) -> int:
    """The end of a block in the file; 0 if it is empty."""
    offset, length = (
        int(written.get_tag_item(f"BLOCK_{name}_{col}_{row}", "TIFF", bidx=1, **level) or 0)
        for name in ("OFFSET", "SIZE")
    )
    return offset + length if length else 0
