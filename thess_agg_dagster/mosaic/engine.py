"""The engine: a planned mosaic, written window by window.

Threads take windows of the target grid; each fetches the source pixels it needs from the shared
:class:`BlockCache`, merges them, and writes. Memory is bounded by windows and that cache, whatever the
size of the mosaic.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.merge import MERGE_METHODS
from rasterio.windows import Window

from thess_agg_dagster.mosaic.blocks import BlockCache, Pixels, TileReader
from thess_agg_dagster.mosaic.grid import Box, windows
from thess_agg_dagster.mosaic.placement import Mask, place
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.tiles import first_line, gdal_env

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter

#: Pixels a side of a window: a multiple of the output's blocks, small enough to skip what is hidden. (2048 is as fast
#: and takes 50 MB more.)
WINDOW = 1536
#: Pixels a side of the output's internal tiles.
BLOCK = 512
#: Pixels of a mosaic's longer side in its preview, at most.
PREVIEW = 800
# Windows side by side in one strip, and bytes of decoded blocks that may wait in memory for their next window.
_STRIP = 12
_CACHE_BYTES = 24 * 2**20

#: Values of ``compress`` and the GeoTIFF creation options behind them.
COMPRESSIONS: Mapping[str, Mapping[str, Any]] = {
    "zstd": {"compress": "ZSTD", "zstd_level": 1},
    "deflate": {"compress": "DEFLATE", "zlevel": 6},
    "lzw": {"compress": "LZW"},
    "none": {},
}


class WriteError(Exception):
    """The mosaic could not be written (disk full, no permission, ...)."""


@dataclass(frozen=True)
class MosaicStats:
    """What making a mosaic took and gave.

    ``valid_share`` counts pixels of the whole grid, 0 to 1; ``overwritten_pixels`` are valid, but have the value of the
    mosaic's nodata and read as empty. ``preview`` is every n-th pixel (same dtype, same nodata), at most
    :data:`PREVIEW` a side. ``histogram`` counts the pixels of each value of a uint8 mosaic, shape ``(256,)``, where
    some tile has a pixel; ``None`` for other dtypes.
    """

    valid_pixels: int
    valid_share: float
    overwritten_pixels: int
    blocks_decoded: int
    seconds: float
    bytes: int
    preview: Pixels
    histogram: NDArray[np.int64] | None


def creation_options(plan: MosaicPlan) -> dict[str, Any]:
    """Creation options of a mosaic's GeoTIFF. GDAL compresses on as many threads as the engine computes on."""
    rows, cols = plan.grid.shape
    options: dict[str, Any] = {
        "driver": "GTiff",
        "width": int(cols),
        "height": int(rows),
        "count": 1,
        "dtype": plan.dtype,
        "crs": CRS.from_wkt(str(plan.grid.crs.wkt)) if plan.grid.crs else None,
        "transform": plan.grid.affine,
        "nodata": plan.nodata,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "bigtiff": "IF_SAFER",
        "sparse_ok": True,
    }
    compression = COMPRESSIONS[plan.options.compress]
    if compression:
        options |= compression
        options["num_threads"] = _threads(plan)
        options["predictor"] = 3 if np.dtype(plan.dtype).kind == "f" else 2
    return options


def _threads(plan: MosaicPlan) -> int:
    return plan.options.threads or os.cpu_count() or 1


def write_mosaic(plan: MosaicPlan, path: Path, tags: Mapping[str, str] | None = None) -> MosaicStats:
    """Make a planned mosaic at ``path``.

    Parameters
    ----------
    plan
        From :func:`plan_mosaic`.
    path
        Where the GeoTIFF goes. Half a file may stay there after an error: publish by rename.
    tags
        Metadata written into the file.

    Raises
    ------
    TileError
        A tile's pixels are damaged.
    SystemFaultError
        A tile could not be read just now.
    WriteError
        The file could not be written.
    """
    started = time.perf_counter()
    with gdal_env():
        try:
            path.unlink(missing_ok=True)  # rasterio would look into a file that is already there
            with rasterio.open(path, "w", **creation_options(plan)) as target:
                target.set_band_description(1, plan.band)
                target.update_tags(**(tags or {}))
                merger = _Merger(plan, target, path.parent)
                try:
                    merger.run()
                finally:
                    merger.close()
            _verify(path, merger.filled_blocks)
        except (RasterioError, OSError) as error:
            raise WriteError(_write_problem(path, plan, first_line(error.__cause__ or error))) from error
    rows, cols = plan.grid.shape
    return MosaicStats(
        valid_pixels=merger.valid_pixels,
        valid_share=merger.valid_pixels / (int(rows) * int(cols)),
        overwritten_pixels=merger.overwritten_pixels,
        blocks_decoded=merger.cache.decoded,
        seconds=time.perf_counter() - started,
        bytes=path.stat().st_size,
        preview=merger.preview,
        histogram=merger.histogram,
    )


def _verify(path: Path, filled_blocks: Collection[tuple[int, int]]) -> None:
    """Raise ``OSError`` unless every block that holds something is in the file, whole.

    What GDAL writes while it closes a file can fail without a word: on a full disk the last blocks would be missing.
    """
    size = path.stat().st_size
    with rasterio.open(path, driver="GTiff") as written:
        for row, col in filled_blocks:
            offset, length = (
                int(written.get_tag_item(f"BLOCK_{name}_{col}_{row}", "TIFF", bidx=1) or 0)
                for name in ("OFFSET", "SIZE")
            )
            if not length or offset + length > size:
                raise OSError(errno.ENOSPC, "the file is incomplete after closing it")


def _write_problem(path: Path, plan: MosaicPlan, cause: str) -> str:
    rows, cols = plan.grid.shape
    needed = rows * cols * np.dtype(plan.dtype).itemsize / 1e6
    try:
        room = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there"
    except OSError:
        room = "its folder cannot be looked at"
    return (
        f"{path}: cannot be written ({cause}); it takes up to {needed:.0f} MB before compression, {room}; "
        "check disk space, quota and permissions"
    )


class _Merger:
    """One mosaic in the making."""

    def __init__(self, plan: MosaicPlan, target: DatasetWriter, scratch: Path) -> None:
        self._plan = plan
        self._target = target
        self._dtype = np.dtype(plan.dtype)
        method = plan.options.merge_method
        self._hides = method in ("first", "last")
        order = list(zip(plan.tiles, plan.empty_values, strict=True))
        if method == "last":  # the last valid pixel is the first one from the other end
            order.reverse()
        self._merge = MERGE_METHODS["first" if self._hides else method]
        self._placements = [place(tile, empty, plan.grid, plan.resampling) for tile, empty in order]
        self._readers = [TileReader(placement.tile) for placement in self._placements]
        self._threads = _threads(plan)
        # As many threads compute as there are cores to use; one more exists, to go on while
        # another waits for a block.
        self._cores = threading.Semaphore(self._threads)
        self._stop = threading.Event()
        self._write_lock = threading.Lock()
        self._stats_lock = threading.Lock()
        self.cache = BlockCache(self._readers, _CACHE_BYTES, scratch, self._cores)
        self.filled_blocks: set[tuple[int, int]] = set()  # (row, col) of the output's blocks that hold something
        self.valid_pixels = 0
        self.overwritten_pixels = 0
        rows, cols = (int(size) for size in plan.grid.shape)
        self._step = math.ceil(max(rows, cols) / PREVIEW)
        self.preview: Pixels = np.full((-(-rows // self._step), -(-cols // self._step)), plan.nodata, self._dtype)
        self.histogram = np.zeros(256, np.int64) if self._dtype == np.uint8 else None

    def run(self) -> None:
        jobs = []
        for window in windows(self._plan.grid, WINDOW, _STRIP):
            reads = list(self._reads(window))
            for tile, _, source in reads:
                self.cache.announce(tile, source)
            if reads:  # an empty window is a hole in the sparse file
                jobs.append((window, reads))
        with ThreadPoolExecutor(self._threads + 1, thread_name_prefix="mosaic") as pool:
            futures = [pool.submit(self._window, window, reads) for window, reads in jobs]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        self.cache.close()
        for reader in self._readers:
            reader.close()

    def _reads(self, window: Box) -> list[tuple[int, Box, Box]]:
        """What a window reads: the tile, the part of the window it may cover, and the tile's pixels for it."""
        reads = []
        for number, placement in enumerate(self._placements):
            part = window.overlap(placement.footprint)
            if part and (source := placement.source_box(part)):
                reads.append((number, part, source))
        return reads

    def _window(self, window: Box, reads: Sequence[tuple[int, Box, Box]]) -> None:
        if self._stop.is_set():
            return
        with gdal_env(), self._cores:
            merged, empty = self._merged(window, reads)
            shown = (
                ~np.isnan(merged) if math.isnan(self._plan.nodata) else merged != self._dtype.type(self._plan.nodata)
            )
        filled = {
            ((window.top + row) // BLOCK, (window.left + col) // BLOCK)
            for row in range(0, window.shape[0], BLOCK)
            for col in range(0, window.shape[1], BLOCK)
            if shown[row : row + BLOCK, col : col + BLOCK].any()
        }
        valid = empty.size - int(np.count_nonzero(empty))
        self._show(window, merged)
        counts = np.bincount(merged[~empty], minlength=256) if self.histogram is not None else 0
        with self._stats_lock:
            if self.histogram is not None:
                self.histogram += counts
            self.valid_pixels += valid
            self.overwritten_pixels += valid - int(np.count_nonzero(shown))
            self.filled_blocks |= filled
        if filled:
            height, width = window.shape
            with self._write_lock, self._cores:
                self._target.write(merged, 1, window=Window(window.left, window.top, width, height))

    def _show(self, window: Box, merged: Pixels) -> None:
        """Put a window's share of the pixels into the preview."""
        step = self._step
        seen = merged[-window.top % step :: step, -window.left % step :: step]
        top, left = -(-window.top // step), -(-window.left // step)
        self.preview[top : top + seen.shape[0], left : left + seen.shape[1]] = seen

    def _merged(self, window: Box, reads: Sequence[tuple[int, Box, Box]]) -> tuple[Pixels, Mask]:
        """A window's pixels, and which of them no tile has."""
        number, part, source = reads[0]
        placement = self._placements[number]
        merged: Pixels
        if self._hides and part == window and placement.gives(self._dtype, self._plan.nodata):
            # Most windows lie in one tile: its pixels are theirs, with nothing to merge them into.
            merged = np.require(self._resampled(number, part, source, source), requirements=["OWNDATA", "WRITEABLE"])
            empty = placement.is_empty(merged)
            reads = reads[1:]
        else:
            merged = np.full(window.shape, self._plan.nodata, self._dtype)
            empty = np.ones(window.shape, dtype=bool)
        for number, part, source in reads:
            announced = source
            if self._hides:  # what lies behind earlier tiles is neither decoded nor resampled
                part = _still_empty(part, empty[part.within(window).slices])
                source = self._placements[number].source_box(part).overlap(announced) if part else part
                if not source:
                    self.cache.skip(number, announced)
                    continue
            inside = part.within(window).slices
            new = self._resampled(number, part, source, announced)
            new_empty = self._placements[number].is_empty(new)
            self._merge(merged[inside], new.astype(self._dtype, copy=False), empty[inside], new_empty)
            empty[inside] &= new_empty
        return merged, empty

    def _resampled(self, number: int, part: Box, source: Box, announced: Box) -> Pixels:
        return self._placements[number].resample(self.cache.read(number, source, announced), source, part)


def _still_empty(part: Box, empty: Mask) -> Box:
    """The smallest rectangle that holds all empty pixels of ``part``, whose mask is ``empty``; falsy without any."""
    rows = np.flatnonzero(empty.any(axis=1))
    if not rows.size:
        return Box(part.top, part.top, part.left, part.left)
    cols = np.flatnonzero(empty[rows[0] : rows[-1] + 1].any(axis=0))
    return Box(
        part.top + int(rows[0]), part.top + int(rows[-1]) + 1, part.left + int(cols[0]), part.left + int(cols[-1]) + 1
    )
