"""Sizes of the pieces that mosaics and composites are made in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How much is worked on at once. The sizes decide speed and memory, and never a pixel; only ``block`` shows in the file.

    The defaults are measured. Tests make them so small that a few hundred pixels cross all of them. Raises ``ValueError``
    unless windows are whole blocks: each block of the file is written once, by one thread.
    """

    #: Pixels a side of the internal tiles of the files written.
    block: int = 512
    #: Pixels a side of a window of the mosaic: a multiple of ``block``, small enough to skip what is hidden. (2048 is as
    #: fast and takes 50 MB more.)
    window: int = 1536
    #: Windows side by side in one strip.
    strip: int = 12
    #: Bytes of decoded pixels that wait in memory for their next window.
    cache_bytes: int = 24 * 2**20
    #: Pixels a side: blocks of a tile smaller than this are decoded several at a time (one call costs as much as 64x64
    #: pixels do).
    chunk: int = 512
    #: Pixels of a tile: a part of the grid that is reduced from more is read in pieces, so that it takes no more memory.
    piece: int = 800 * 800
    #: Rows of a composite that are reduced at once: what they take stays in a core's cache.
    rows: int = 64
    #: Bytes of one block at all times of a composite that a thread keeps in memory.
    stack_bytes: int = 40 * 2**20
    #: Files of a composite that are kept open; beyond that each is opened anew for every block.
    open_files: int = 256

    def __post_init__(self) -> None:
        if self.window % self.block:
            raise ValueError(f"window={self.window} is not a multiple of block={self.block}")
