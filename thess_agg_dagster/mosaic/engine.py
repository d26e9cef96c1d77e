"""The engine: writes a planned mosaic, window by window.

Each thread takes a window of the target grid, gets the source pixels it needs from the shared :class:`BlockCache`,
merges them, and writes. Memory is bounded by the windows and that cache, whatever the size of the mosaic.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.merge import MERGE_METHODS

from thess_agg_dagster.mosaic.area import AreaOnGrid
from thess_agg_dagster.mosaic.bands import role_of
from thess_agg_dagster.mosaic.blocks import BlockCache, Pixels, TileReader
from thess_agg_dagster.mosaic.geotiff import Target, new_geotiff, threads_of
from thess_agg_dagster.mosaic.grid import Box, windows
from thess_agg_dagster.mosaic.layers import LayerReader, Needs
from thess_agg_dagster.mosaic.origins import OriginFiles, Origins, WindowOrigins
from thess_agg_dagster.mosaic.placement import Mask
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.preview import Preview
from thess_agg_dagster.mosaic.threads import run_all
from thess_agg_dagster.mosaic.tiles import Tile
from thess_agg_dagster.storage.errors import first_line
from thess_agg_dagster.storage.gdal import gdal_env

# One layer's share of a window.
Read = tuple[LayerReader, Needs]


class WriteError(Exception):
    """The mosaic could not be written (disk full, no permission, ...)."""


@dataclass(frozen=True)
class MosaicStats:
    """Statistics of a mosaic.

    ``valid_share`` and ``masked_share`` are relative to all pixels of the grid (or of the area, if everything outside
    it is emptied), 0 to 1; masked pixels would have a value without the SCL mask. ``overwritten_pixels`` are valid, but
    have the mosaic's nodata value and so read as empty. ``preview`` is every n-th pixel (same dtype, same nodata), at
    most 800 a side.

    ``histogram`` counts the pixels of each class in a mosaic of classes, shape ``(256,)`` (255: everything that is not
    uint8), where some tile has a pixel; ``None`` for other bands, and if ``count`` or ``sum`` turned the classes into
    other numbers. If origins are written, ``tile_shares`` is the share of the valid pixels that comes from each tile,
    by its number, and ``origins`` is the preview of the source.
    """

    valid_pixels: int
    valid_share: float
    masked_share: float
    overwritten_pixels: int
    blocks_decoded: int
    seconds: float
    bytes: int
    preview: Pixels
    histogram: NDArray[np.int64] | None
    tile_shares: Mapping[int, float] | None = None
    origins: Pixels | None = None


def write_mosaic(
    plan: MosaicPlan, path: Path, tags: Callable[[], Mapping[str, str]] = dict, beside: OriginFiles | None = None
) -> MosaicStats:
    """Write a planned mosaic to ``path``.

    Parameters
    ----------
    plan
        From :func:`plan_mosaic`.
    path
        Where the GeoTIFF goes. Half a file may stay there after an error: publish by rename.
    tags
        Metadata written into the file, asked for when all pixels are.
    beside
        Files that tell which tile each pixel came from.

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
            with new_geotiff(path, plan) as target, Origins.writing(plan, beside) as origins:
                merger = _Merger(plan, target, origins, path.parent)
                with closing(merger):
                    merger.run()
                target.file.update_tags(**tags())
        except (RasterioError, OSError) as error:
            raise WriteError(write_problem(path, plan, error)) from error
    rows, cols = plan.grid.shape
    pixels = max(1, int(rows) * int(cols) - merger.outside_pixels)
    return MosaicStats(
        valid_pixels=merger.valid_pixels,
        valid_share=merger.valid_pixels / pixels,
        masked_share=merger.masked_pixels / pixels,
        overwritten_pixels=merger.overwritten_pixels,
        blocks_decoded=merger.cache.decoded,
        seconds=time.perf_counter() - started,
        bytes=path.stat().st_size,
        preview=merger.preview.pixels,
        histogram=merger.histogram,
        tile_shares=None
        if origins is None
        else {number: count / max(1, merger.valid_pixels) for number, count in sorted(origins.counts.items())},
        origins=None if origins is None else origins.preview.pixels,
    )


def _cause(error: BaseException) -> str:
    """The cause of an error: rasterio keeps it as the cause, the system in the error itself."""
    itself = isinstance(error, OSError) and not isinstance(error, RasterioError)
    return first_line(error if itself else error.__cause__ or error)


def write_problem(path: Path, plan: MosaicPlan, error: RasterioError | OSError) -> str:
    """Why a raster cannot be written, and what to check."""
    rows, cols = plan.grid.shape
    # A cloud-optimized one is made from a draft, by way of overviews.
    needed = rows * cols * np.dtype(plan.dtype).itemsize / 1e6 * (3 if plan.options.format == "cog" else 1)
    try:
        room = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there"
    except OSError:
        room = "its folder cannot be inspected"
    return (
        f"{path}: cannot be written ({_cause(error)}); it needs up to {needed:.0f} MB before compression, {room}; "
        "check disk space, quota and permissions"
    )


class _Merger:
    """One mosaic in the making."""

    def __init__(self, plan: MosaicPlan, target: Target, origins: Origins | None, scratch: Path) -> None:
        self._plan = plan
        self._target = target
        self._origins = origins
        self._sizes = plan.options.sizes
        self._dtype = np.dtype(plan.dtype)
        method = plan.options.merge_method
        self._hides = method in ("first", "last")
        # The last valid pixel is the first one from the other end.
        layers = plan.layers[::-1] if method == "last" else plan.layers
        self._merge = MERGE_METHODS["first" if self._hides else method]
        self._readers: list[TileReader] = []
        self._layers = [
            LayerReader(
                layer,
                plan.grid,
                plan.options.mask_scl_classes,
                self._add(layer.tile),
                None if layer.scl is None else self._add(layer.scl),
            )
            for layer in layers
        ]
        aoi = plan.options.target.aoi
        # What lies outside the area is neither read nor written, where it is to be empty.
        self._area = AreaOnGrid.of(aoi, plan.grid) if aoi is not None and plan.options.aoi_mask else None
        self._threads = threads_of(plan)
        # As many threads compute as there are cores to use; one more exists, to go on while
        # another waits for a block.
        self._cores = threading.Semaphore(self._threads)
        self._stop = threading.Event()
        self._stats_lock = threading.Lock()
        self.cache = BlockCache(self._readers, self._sizes.cache_bytes, scratch, self._cores)
        self.valid_pixels = 0
        self.overwritten_pixels = 0
        self.masked_pixels = 0
        self.outside_pixels = 0
        self.preview = Preview(plan.grid, plan.nodata, self._dtype)
        self.histogram = np.zeros(256, np.int64) if holds_classes(plan) else None

    def _add(self, tile: Tile) -> int:
        """A file to read; its number in the cache."""
        self._readers.append(TileReader(tile, self._sizes.chunk))
        return len(self._readers) - 1

    def run(self) -> None:
        jobs = []
        for window in windows(self._plan.grid, self._sizes.window, self._sizes.strip):
            touched = self._touched(window)
            reads = [(layer, needs) for layer in self._layers for needs in layer.pieces(touched, self._sizes.piece)]
            for layer, needs in reads:
                layer.announce(self.cache, needs)
            if reads:  # an empty window is a hole in the sparse file
                jobs.append((window, reads))
            elif (outside := self._outside(window)) is not None:
                self.outside_pixels += int(np.count_nonzero(outside))
        run_all(lambda job: self._window(*job), jobs, self._threads + 1, "mosaic", self._stop)

    def close(self) -> None:
        self.cache.close()
        for reader in self._readers:
            reader.close()

    def _touched(self, window: Box) -> Box:
        """The part of a window that is asked for."""
        return window if self._area is None else self._area.touched(window)

    def _window(self, window: Box, reads: Sequence[Read]) -> None:
        if self._stop.is_set():
            return
        with gdal_env(), self._cores:
            merged, empty, masked, outside, origins = self._merged(window, reads)
            shown = (
                ~np.isnan(merged) if math.isnan(self._plan.nodata) else merged != self._dtype.type(self._plan.nodata)
            )
        valid = empty.size - int(np.count_nonzero(empty))
        self.preview.show(window, merged)
        counts = 0 if self.histogram is None else _counted(merged[~empty])
        with self._stats_lock:
            if self.histogram is not None:
                self.histogram += counts
            self.valid_pixels += valid
            self.masked_pixels += masked
            self.outside_pixels += outside
            self.overwritten_pixels += valid - int(np.count_nonzero(shown))
        self._target.write(window, merged, shown, self._cores)
        if self._origins is not None and origins is not None:
            self._origins.write(window, origins, self._cores)

    def _merged(self, window: Box, reads: Sequence[Read]) -> _Merged:
        outside = self._outside(window)
        origins = None if self._origins is None else self._origins.window(window.shape)
        # To count, a tile is looked at wherever it lies.
        hides = self._hides and (origins is None or origins.observations is None)
        merged: Pixels
        layer, needs = reads[0]
        if self._hides and needs.part == window and layer.placement.gives(self._dtype, self._plan.nodata):
            # Most windows lie in one tile: its pixels are theirs, with nothing to merge them into.
            pixels, unmasked = layer.read(self.cache, needs, needs)
            merged = np.require(pixels, requirements=["OWNDATA", "WRITEABLE"])
            empty = layer.placement.is_empty(merged)
            hidden = None if unmasked is None else ~layer.placement.is_empty(unmasked)
            if origins is not None:
                origins.take(layer.number, empty)
            reads = reads[1:]
        else:
            merged = np.full(window.shape, self._plan.nodata, self._dtype)
            empty = np.ones(window.shape, dtype=bool)
            hidden = None  # where some tile has a pixel that SCL masks
        for layer, announced in reads:
            needs = announced
            if hides:  # what lies behind earlier tiles, or outside, is neither decoded nor resampled
                asked = empty if outside is None else empty & ~outside
                part = _still_empty(needs.part, asked[needs.part.within(window).slices])
                found = layer.needs(part, announced) if part else None
                if found is None:
                    layer.skip(self.cache, announced)
                    continue
                needs = found
            inside = needs.part.within(window).slices
            new, unmasked = layer.read(self.cache, needs, announced)
            new_empty = layer.placement.is_empty(new)
            if unmasked is not None:
                hidden = np.zeros(window.shape, dtype=bool) if hidden is None else hidden
                hidden[inside] |= ~layer.placement.is_empty(unmasked)
            new = new.astype(self._dtype, copy=False)
            if origins is not None:
                origins.add(layer.number, inside, new, new_empty, merged[inside], empty[inside])
            self._merge(merged[inside], new, empty[inside], new_empty)
            empty[inside] &= new_empty
        if outside is not None:
            merged[outside] = self._plan.nodata
            empty |= outside
            hidden = None if hidden is None else hidden & ~outside
            if origins is not None:
                origins.clear(outside)
        masked = 0 if hidden is None else int(np.count_nonzero(hidden & empty))
        return _Merged(merged, empty, masked, 0 if outside is None else int(np.count_nonzero(outside)), origins)

    def _outside(self, window: Box) -> Mask | None:
        """Which pixels of a window are to be empty whatever the tiles hold; ``None``: none."""
        inside = None if self._area is None else self._area.inside(window)
        return None if inside is None else ~inside


def holds_classes(plan: MosaicPlan) -> bool:
    """Whether the pixels of a mosaic are classes: those of its tiles are, and merging keeps them so."""
    return role_of(plan.band) == "classes" and plan.options.merge_method not in ("sum", "count")


def _counted(classes: Pixels) -> NDArray[np.int64]:
    """The number of pixels per class, with 255 for everything that is not uint8."""
    if classes.dtype != np.uint8:
        classes = np.where((classes >= 0) & (classes < 255), classes, 255).astype(np.uint8)
    return np.bincount(classes, minlength=256)


class _Merged(NamedTuple):
    """A window's pixels, which of them are empty, how many for the mask's sake, how many lie outside the area; and where
    they came from, where that is asked."""

    pixels: Pixels
    empty: Mask
    masked: int
    outside: int
    origins: WindowOrigins | None


def _still_empty(part: Box, empty: Mask) -> Box:
    """The smallest rectangle that holds all empty pixels of ``part``, whose mask is ``empty``; falsy without any."""
    rows = np.flatnonzero(empty.any(axis=1))
    if not rows.size:
        return Box(part.top, part.top, part.left, part.left)
    cols = np.flatnonzero(empty[rows[0] : rows[-1] + 1].any(axis=0))
    return Box(
        part.top + int(rows[0]), part.top + int(rows[-1]) + 1, part.left + int(cols[0]), part.left + int(cols[-1]) + 1
    )
