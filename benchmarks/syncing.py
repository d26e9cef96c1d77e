"""What it costs to have on the disk what is published: pairs in one run, with and without fsync.

``python -m benchmarks.syncing`` publishes three small bands, then three full-size ones (a mosaic's bytes, written as the
engine writes them: one after the other), and prints medians and the pairs' ratios.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from thess_agg_dagster.lake.publish import staged_folder

#: Files of a timestamp, in bytes: the sample's mosaics, and those of three full-size tiles of two zones.
CASES = {"small": [200_000, 200_000, 20_000, 60_000, 4_000], "full size": [420_000_000, 420_000_000, 9_000_000, 90_000]}
_PIECE = 2**22


def publish(folder: Path, sizes: list[int], piece: bytes) -> float:
    """Seconds for one timestamp that replaces another."""
    started = time.perf_counter()
    with staged_folder(folder / "timestamp", folder / ".staging", "manifest.json") as staged:
        for number, size in enumerate(sizes):
            with (staged / f"{number}.tif").open("wb") as file:
                for start in range(0, size, _PIECE):
                    file.write(piece[: min(_PIECE, size - start)])
    return time.perf_counter() - started


def pairs(folder: Path, sizes: list[int], count: int) -> list[tuple[float, float]]:
    """Seconds with and without syncing, old and new in turn; what is written without waits for its turn elsewhere."""
    piece, found = os.urandom(_PIECE), []
    without: Callable[[int], None] = lambda handle: None  # noqa: E731
    for _ in range(count):
        synced = publish(folder, sizes, piece)
        with patch("os.fsync", without):
            found.append((synced, publish(folder, sizes, piece)))
        os.sync()
    return found


def main() -> None:
    folder = Path(tempfile.mkdtemp(dir=".", prefix="syncing-"))
    try:
        for name, sizes in CASES.items():
            found = pairs(folder, sizes, 21 if name == "small" else 5)
            synced, quick = (statistics.median(side) for side in zip(*found, strict=True))
            print(f"{name}: {synced:.3f} s synced, {quick:.3f} s not; {synced - quick:+.3f} s a timestamp")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
