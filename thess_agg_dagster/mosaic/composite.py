"""Composites: mosaics of many times on one grid become one, block by block.

Each thread takes a block, decodes it once per time, and reduces it in strips of rows. Memory is bounded whatever the
number of times: blocks that do not fit wait in a temporary file.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from thess_agg_dagster.mosaic import reducers
from thess_agg_dagster.mosaic.bands import NIR, RED, role_of
from thess_agg_dagster.mosaic.blocks import Pixels, TileReader
from thess_agg_dagster.mosaic.choices import COMPOSITE_METHODS
from thess_agg_dagster.mosaic.engine import WriteError, write_problem
from thess_agg_dagster.mosaic.geotiff import Target, new_geotiff, threads_of
from thess_agg_dagster.mosaic.grid import Box
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.placement import Mask
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.preview import Preview
from thess_agg_dagster.mosaic.threads import run_all
from thess_agg_dagster.mosaic.tiles import Tile, inspect_tile
from thess_agg_dagster.storage.gdal import gdal_env


class CompositeError(ValueError):
    """Mosaics that cannot be made into one composite."""


@dataclass(frozen=True)
class CompositeOptions:
    """How composites are made. Pixels of fewer observations than ``min_observations`` stay empty."""

    method: str = "median"
    min_observations: int = 2
    output: MosaicOptions = field(default_factory=MosaicOptions)


@dataclass(frozen=True)
class Series:
    """The mosaics of one band, in the order of their times, on one grid. ``offsets`` are the radiometric offsets that they
    still carry, in digital numbers; empty: none."""

    band: str
    tiles: tuple[Tile, ...]
    nodata: float
    offsets: tuple[float, ...] = ()

    @property
    def grid(self) -> GeoBox:
        return self.tiles[0].geobox

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(self.tiles[0].dtype)

    def is_empty(self, pixels: Pixels) -> Mask:
        if pixels.dtype.kind == "f":
            nothing: Mask = np.isnan(pixels)
            return nothing if math.isnan(self.nodata) else nothing | (pixels == self.nodata)
        return np.zeros(pixels.shape, bool) if math.isnan(self.nodata) else pixels == self.nodata


def open_mosaics(band: str, paths: Sequence[Path]) -> Series:
    """The mosaics of a band in the order of their times. Raises :class:`CompositeError` where they do not stack, ``TileError``
    where one cannot be read."""
    tiles = [inspect_tile(path) for path in paths]
    if not tiles:
        raise CompositeError(f"{band}: there are no mosaics to composite")
    first = tiles[0]
    for tile in tiles[1:]:
        for what, here, there in (
            ("grid", tile.geobox, first.geobox),
            ("dtype", tile.dtype, first.dtype),
            ("nodata", str(tile.nodata_tag), str(first.nodata_tag)),
            ("blocks", tile.block_shape, first.block_shape),
        ):
            if here != there:
                raise CompositeError(
                    f"{tile.path}: {what} differs from that of {first.path}; aggregate both with grid=fixed and the same "
                    "parameters"
                )
    return Series(band, tuple(tiles), math.nan if first.nodata_tag is None else first.nodata_tag)


@dataclass(frozen=True)
class CompositeStats:
    """Statistics of a composite. ``valid_share`` is relative to all pixels of the grid, 0 to 1; ``seconds`` is the time
    for all bands that were made together."""

    valid_share: float
    seconds: float
    bytes: int
    preview: Pixels


def write_composites(
    series: Sequence[Series],
    folder: Path,
    options: CompositeOptions,
    count: str | None = None,
    tags: Callable[[str], Mapping[str, str]] = lambda band: {},
) -> dict[str, CompositeStats]:
    """Make the composites of bands that share a grid, ``<band>.tif`` in ``folder``.

    Parameters
    ----------
    series
        Classes become the most frequent one, whatever the method.
    count
        Name of the file (without ``.tif``) that holds the number of observations of each pixel (of the first band; where
        the method looks at all bands together, of all).
    tags
        Metadata of a band's file, asked for when all pixels are written.

    Raises
    ------
    CompositeError
        The bands do not share a grid, or the method needs others.
    TileError, SystemFaultError
        A mosaic cannot be read.
    WriteError
        A composite cannot be written.
    """
    started = time.perf_counter()
    _check(series, options)
    plans = {each.band: _plan(each, options) for each in series}
    if count is not None:
        dtype = "uint8" if len(series[0].tiles) < 256 else "uint16"
        plans[count] = MosaicPlan(count, (), series[0].grid, dtype, math.nan, options.output)
    with gdal_env():
        try:
            with ExitStack() as stack:
                targets = {
                    name: stack.enter_context(new_geotiff(folder / f"{name}.tif", plan)) for name, plan in plans.items()
                }
                maker = _Maker(series, targets, options, count, folder)
                maker.run(threads_of(next(iter(plans.values()))))
                for name, target in targets.items():
                    target.file.update_tags(**tags(name))
        except (RasterioError, OSError) as error:
            raise WriteError(write_problem(folder / f"{series[0].band}.tif", plans[series[0].band], error)) from error
    seconds = time.perf_counter() - started
    rows, cols = series[0].grid.shape
    return {
        name: CompositeStats(
            maker.valid[name] / (int(rows) * int(cols)),
            seconds,
            (folder / f"{name}.tif").stat().st_size,
            maker.previews[name].pixels,
        )
        for name in plans
    }


def _plan(series: Series, options: CompositeOptions) -> MosaicPlan:
    return MosaicPlan(series.band, (), series.grid, str(series.dtype), series.nodata, options.output)


def _check(series: Sequence[Series], options: CompositeOptions) -> None:
    if options.method not in COMPOSITE_METHODS:
        raise CompositeError(
            f"{options.method!r} is not a method of composites; choose from {', '.join(COMPOSITE_METHODS)}"
        )
    for each in series[1:]:
        if each.grid != series[0].grid or len(each.tiles) != len(series[0].tiles):
            raise CompositeError(f"{each.band} and {series[0].band} do not share one grid and the same times")
    if options.method == "max_ndvi" and not {RED, NIR} <= {each.band for each in series}:
        raise CompositeError(f"max_ndvi needs {RED} and {NIR} on the grid of all bands; see match_band")


class _Maker:
    """Composites in the making."""

    def __init__(
        self,
        series: Sequence[Series],
        targets: Mapping[str, Target],
        options: CompositeOptions,
        count: str | None,
        scratch: Path,
    ) -> None:
        self._series = {each.band: each for each in series}
        self._targets = targets
        self._options = options
        self._sizes = options.output.sizes
        self._count = count
        self._scratch = scratch
        self._readers = {each.band: [TileReader(tile, self._sizes.chunk) for tile in each.tiles] for each in series}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.valid = dict.fromkeys(targets, 0)
        self.previews = {
            name: Preview(series[0].grid, self._series[name].nodata if name in self._series else 0, target.dtype)
            for name, target in targets.items()
        }

    def run(self, threads: int) -> None:
        self._cores = threading.Semaphore(threads)
        files = sum(map(len, self._readers.values()))
        self._keep_open = files * threads <= self._sizes.open_files
        reader = next(iter(self._readers.values()))[0]
        rows, cols = reader.tile.shape
        try:
            run_all(self._block, reader.chunks(Box(0, rows, 0, cols)), threads, "composite", self._stop)
        finally:
            for readers in self._readers.values():
                for each in readers:
                    each.close()

    def _block(self, chunk: tuple[int, int]) -> None:
        if self._stop.is_set():
            return
        box = next(iter(self._readers.values()))[0].box(chunk)
        out = {name: np.empty(box.shape, target.dtype) for name, target in self._targets.items()}
        shown = {name: np.empty(box.shape, bool) for name in out}
        with gdal_env():
            for rows, stacks in self._strips(chunk, box):
                for name, (pixels, valid) in self._reduced(stacks).items():
                    out[name][rows], shown[name][rows] = pixels, valid
        with self._lock:
            for name, valid in shown.items():
                self.valid[name] += int(np.count_nonzero(valid))
                self.previews[name].show(box, out[name])
        for name, target in self._targets.items():
            target.write(box, out[name], shown[name], self._cores)

    def _strips(self, chunk: tuple[int, int], box: Box) -> Iterator[tuple[slice, dict[str, Pixels]]]:
        """All times of a block, some rows at a time."""
        (height, width), step = box.shape, self._sizes.rows
        size = sum(len(each.tiles) * each.dtype.itemsize for each in self._series.values()) * height * width
        strips = [slice(top, min(top + step, height)) for top in range(0, height, step)]
        if size <= self._sizes.stack_bytes:
            stacks = {band: np.stack(list(self._decoded(band, chunk))) for band in self._series}
            for rows in strips:
                yield rows, {band: stack[:, rows] for band, stack in stacks.items()}
            return
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            starts: dict[str, int] = {}
            for band in self._series:
                starts[band] = file.tell()
                for pixels in self._decoded(band, chunk):
                    file.write(pixels.tobytes())
            file.flush()
            for rows in strips:
                yield rows, {band: self._parked(file.fileno(), band, starts[band], rows, box) for band in starts}

    def _parked(self, file: int, band: str, start: int, rows: slice, box: Box) -> Pixels:
        """Some rows of all times of a block, from the temporary file."""
        series, (height, width) = self._series[band], box.shape
        stack = np.empty((len(series.tiles), rows.stop - rows.start, width), series.dtype)
        row = width * series.dtype.itemsize
        for number, part in enumerate(stack):
            data = os.pread(file, part.nbytes, start + (number * height + rows.start) * row)
            part[...] = np.frombuffer(data, series.dtype).reshape(part.shape)
        return stack

    def _decoded(self, band: str, chunk: tuple[int, int]) -> Iterator[Pixels]:
        for reader in self._readers[band]:
            yield reader.decode(chunk)
            if not self._keep_open:
                reader.close()

    def _reduced(self, stacks: Mapping[str, Pixels]) -> dict[str, tuple[Pixels, Mask]]:
        """Pixels of every file, and which of them hold something."""
        empty = {band: self._series[band].is_empty(stack) for band, stack in stacks.items()}
        method = self._options.method
        if method not in reducers.BY_BAND and (joint := [band for band in stacks if role_of(band) != "classes"]):
            # An observation counts where all bands have it.
            nothing: Mask = np.logical_or.reduce([empty[band] for band in joint])
            empty.update(dict.fromkeys(joint, nothing))
            values = self._together({band: stacks[band] for band in joint}, nothing)
        else:
            values = {}
        found: dict[str, tuple[Pixels, Mask]] = {}
        for band, stack in stacks.items():
            if role_of(band) == "classes":
                values[band] = reducers.most_frequent(stack, empty[band])
            elif band not in values:
                values[band] = reducers.BY_BAND[method](stack, empty[band])
            count = len(stack) - np.count_nonzero(empty[band], axis=0)
            valid = count >= max(1, self._options.min_observations)
            pixels = values[band]
            pixels[~valid] = self._nothing(band)
            found[band] = pixels, valid
            if self._count is not None and self._count not in found:
                found[self._count] = count.astype(self._targets[self._count].dtype), count > 0
        return found

    def _together(self, stacks: Mapping[str, Pixels], empty: Mask) -> dict[str, Pixels]:
        if self._options.method == "geomedian":
            return reducers.geomedian(stacks, empty)
        if self._options.method == "medoid":
            when = reducers.medoid(stacks, empty)
        else:
            when = reducers.greenest(stacks, empty, self._series[RED].offsets or [0] * len(empty))
        return {band: reducers.at(stack, when) for band, stack in stacks.items()}

    def _nothing(self, band: str) -> float:
        nodata = self._series[band].nodata
        return 0 if math.isnan(nodata) and self._series[band].dtype.kind != "f" else nodata
