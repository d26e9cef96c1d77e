"""Source blocks: each is decoded once, and kept as long as a window still needs it.

Decoding is most of the cost of a mosaic (JPEG 2000: 12 MB/s per core), and windows of the target grid never follow the
blocks of every tile. So every window announces the blocks it will read; a block is decoded by the first window that
needs it and dropped after the last. Blocks that have to wait longer than memory allows wait on disk.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from thess_agg_dagster.mosaic.grid import Box
from thess_agg_dagster.mosaic.sizes import Sizes
from thess_agg_dagster.mosaic.tiles import Problem, Tile, TileError, open_tile
from thess_agg_dagster.storage.errors import SystemFaultError, first_line, is_transient
from thess_agg_dagster.storage.gdal import gdal_env, may_misjudge
from thess_agg_dagster.storage.paths import File, local_copy

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Pixels = NDArray[Any]

# Chunks of a file in a network that one thread asks for at once.
_FETCHES = 4


class TileReader:
    """Decodes chunks of one tile: whole blocks of the file, or several at once if they are smaller than ``chunk`` a side.

    A dataset handle serves one thread at a time, so handles are borrowed from a pool that grows to the number of
    threads decoding at once.
    """

    def __init__(self, tile: Tile, chunk: int = Sizes.chunk) -> None:
        self.tile = tile
        rows, cols = tile.block_shape
        cols *= math.ceil(min(chunk, tile.shape[1]) / cols)
        # Strips as wide as the tile are taken few at a time, so that a chunk stays near a million pixels.
        rows *= max(1, min(chunk, 2**20 // cols) // rows)
        self.chunk_shape = rows, cols
        # With the context that each was opened in: rasterio keeps an opener's files there, and closes them only there.
        self._handles: LifoQueue[tuple[DatasetReader, Context]] = LifoQueue()
        self._source: File = tile.path
        self._copies = ExitStack()
        self._copying = threading.Lock()

    def chunks(self, box: Box) -> Iterator[tuple[int, int]]:
        """Indices ``(row, col)`` of the chunks that a rectangle of the tile touches."""
        rows, cols = self.chunk_shape
        for row in range(box.top // rows, (box.bottom - 1) // rows + 1):
            for col in range(box.left // cols, (box.right - 1) // cols + 1):
                yield row, col

    def box(self, chunk: tuple[int, int]) -> Box:
        """The rectangle of the tile that a chunk covers."""
        rows, cols = self.chunk_shape
        top, left = chunk[0] * rows, chunk[1] * cols
        return Box(top, min(top + rows, self.tile.shape[0]), left, min(left + cols, self.tile.shape[1]))

    def decode(self, chunk: tuple[int, int]) -> Pixels:
        """Decode one chunk.

        Raises :class:`TileError` (``unreadable_input``) if the file is damaged, :class:`SystemFaultError` if the system
        is at fault.
        """
        box = self.box(chunk)
        path = self.tile.path
        source = self._source
        try:
            try:
                handle, context = self._handles.get_nowait()
            except Empty:
                context = copy_context()
                handle = context.run(open_tile, source, self.tile.driver, self.tile.overview)
            pixels: Pixels = handle.read(1, window=Window(box.left, box.top, box.shape[1], box.shape[0]))
        except (RasterioError, OSError) as error:
            if may_misjudge(source):
                with self._copying:  # and the copy is read from here on
                    if self._source is source:
                        self._source = self._copies.enter_context(local_copy(path))
                return self.decode(chunk)
            if is_transient(error):
                raise SystemFaultError(path, error) from error
            cause = error.__cause__ or error
            reason = (
                f"pixels from row {box.top}, column {box.left} cannot be read ({first_line(cause)}); "
                "the file is truncated or damaged, download the tile again"
            )
            raise TileError(Problem("unreadable_input", reason, path)) from error
        self._handles.put((handle, context))
        return pixels

    def close(self) -> None:
        while not self._handles.empty():
            handle, context = self._handles.get_nowait()
            context.run(handle.close)
        self._copies.close()


@dataclass
class _Block:
    readers: int = 0
    decoding: Future[None] | None = None
    pixels: Pixels | None = None
    parked_at: int | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("uint8"))


class BlockCache:
    """Decoded chunks of several tiles, shared by all threads.

    Call :meth:`announce` for every read to come, then exactly one :meth:`read` or :meth:`skip` for each.

    Parameters
    ----------
    readers
        One per tile; a tile is named by its position.
    max_bytes
        Bytes of decoded pixels kept in memory. Past that, the oldest are parked in a temporary file.
    scratch
        Folder for that file (it has no name and vanishes with the process).
    cores
        Held while decoding and given back while waiting for a chunk that another thread decodes.
    """

    def __init__(
        self, readers: Sequence[TileReader], max_bytes: int, scratch: Path, cores: threading.Semaphore
    ) -> None:
        self._readers = readers
        self._max_bytes = max_bytes
        self._cores = cores
        self._lock = threading.Lock()
        self._blocks: dict[tuple[int, int, int], _Block] = {}
        self._in_memory: dict[tuple[int, int, int], None] = {}  # oldest first
        self._needed = [0] * len(readers)  # chunks that some window still has to read, by tile
        self._bytes = 0
        self._parking = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed in close()
        self._parked_bytes = 0
        self.decoded = 0  # chunks decoded so far

    def announce(self, tile: int, box: Box) -> None:
        for chunk in self._readers[tile].chunks(box):
            key = (tile, *chunk)
            if key not in self._blocks:
                self._blocks[key] = _Block()
                self._needed[tile] += 1
            self._blocks[key].readers += 1

    def skip(self, tile: int, box: Box) -> None:
        """Cancel an announced read, because its pixels are not needed after all."""
        for chunk in self._readers[tile].chunks(box):
            self._release((tile, *chunk))

    def read(self, tile: int, box: Box, announced: Box | None = None) -> Pixels:
        """The pixels of a rectangle of a tile, which the caller must not change.

        ``announced`` is what was announced, where that was more than ``box``. Raises :class:`TileError` where a block is
        damaged.
        """
        reader = self._readers[tile]
        chunks = list(reader.chunks(box))
        for chunk in set(reader.chunks(announced or box)).difference(chunks):
            self._release((tile, *chunk))
        if len(chunks) == 1:
            pixels = self._get(tile, chunks[0])
            self._release((tile, *chunks[0]))
            return pixels[box.within(reader.box(chunks[0])).slices]
        out: Pixels = np.empty(box.shape, reader.tile.dtype)
        if may_misjudge(reader.tile.path):
            self._fetch(tile, chunks)
        # What nobody decodes yet comes first, so that no thread waits while there is work.
        chunks.sort(key=lambda chunk: self._blocks[(tile, *chunk)].decoding is not None)
        for chunk in chunks:
            whole_chunk = reader.box(chunk)
            shared = box.overlap(whole_chunk)
            pixels = self._get(tile, chunk)
            out[shared.within(box).slices] = pixels[shared.within(whole_chunk).slices]
            self._release((tile, *chunk))
        return out

    def close(self) -> None:
        self._parking.close()

    def _fetch(self, tile: int, chunks: Sequence[tuple[int, int]]) -> None:
        """Decode chunks of a file in a network, several at a time: most of the time is spent waiting for answers."""

        def decode(chunk: tuple[int, int]) -> None:
            with gdal_env():
                self._decode(tile, chunk)

        with ThreadPoolExecutor(_FETCHES) as pool:
            list(pool.map(decode, chunks))

    def _decode(self, tile: int, chunk: tuple[int, int]) -> Pixels | None:
        """The pixels of a chunk, or ``None`` if another thread decodes it, or has done so."""
        key = (tile, *chunk)
        block = self._blocks[key]
        with self._lock:
            if block.decoding is not None:
                return None
            block.decoding = Future()
        try:
            pixels = self._readers[tile].decode(chunk)
            with self._lock:
                self.decoded += 1
                self._keep(key, block, pixels)
        except BaseException as error:
            block.decoding.set_exception(error)  # or those who wait for it would wait for ever
            raise
        block.decoding.set_result(None)
        return pixels

    def _get(self, tile: int, chunk: tuple[int, int]) -> Pixels:
        pixels = self._decode(tile, chunk)
        if pixels is not None:
            return pixels
        block = self._blocks[(tile, *chunk)]
        assert block.decoding is not None
        if not block.decoding.done():
            self._cores.release()
            try:
                block.decoding.exception()
            finally:
                self._cores.acquire()
        block.decoding.result()
        with self._lock:
            if block.pixels is not None:
                return block.pixels
            assert block.parked_at is not None
        shape = self._readers[tile].box(chunk).shape
        raw = os.pread(self._parking.fileno(), math.prod(shape) * block.dtype.itemsize, block.parked_at)
        return np.frombuffer(raw, block.dtype).reshape(shape)

    def _keep(self, key: tuple[int, int, int], block: _Block, pixels: Pixels) -> None:
        block.pixels = pixels
        block.dtype = pixels.dtype
        self._in_memory[key] = None
        self._bytes += pixels.nbytes
        while self._bytes > self._max_bytes and len(self._in_memory) > 1:
            oldest = next(iter(self._in_memory))
            self._park(oldest, self._blocks[oldest])

    def _park(self, key: tuple[int, int, int], block: _Block) -> None:
        assert block.pixels is not None
        raw = np.ascontiguousarray(block.pixels)
        if os.pwrite(self._parking.fileno(), raw.data, self._parked_bytes) != raw.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        block.parked_at = self._parked_bytes
        self._parked_bytes += raw.nbytes
        self._drop(key, block)

    def _drop(self, key: tuple[int, int, int], block: _Block) -> None:
        if block.pixels is not None:
            self._bytes -= block.pixels.nbytes
            block.pixels = None
            del self._in_memory[key]

    def _release(self, key: tuple[int, int, int]) -> None:
        with self._lock:
            block = self._blocks[key]
            block.readers -= 1
            if block.readers == 0:
                self._drop(key, block)
                del self._blocks[key]
                self._needed[key[0]] -= 1
                if self._needed[key[0]] == 0:
                    self._readers[key[0]].close()  # an open file is a few megabytes
