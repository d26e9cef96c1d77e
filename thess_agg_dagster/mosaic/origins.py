"""Origins: which tile each pixel of a mosaic comes from, and how many tiles had a valid one.

Both are known while a window is merged, so ``source`` costs no extra reads; counting makes the engine read what is
hidden behind the first tile, too.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thess_agg_dagster.mosaic.bands import NOWHERE
from thess_agg_dagster.mosaic.blocks import Pixels
from thess_agg_dagster.mosaic.choices import MIXING
from thess_agg_dagster.mosaic.geotiff import Target, new_geotiff
from thess_agg_dagster.mosaic.grid import Box
from thess_agg_dagster.mosaic.placement import Mask
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.preview import Preview


def several(dtype: np.dtype[Any]) -> int:
    """The number that marks a pixel made from several tiles: the largest one."""
    return int(np.iinfo(dtype).max)


def source_dtype(plan: MosaicPlan) -> np.dtype[Any]:
    """uint8, unless there are more tiles than that can number."""
    return np.dtype("uint8" if max(layer.number for layer in plan.layers) < several(np.dtype("uint8")) else "uint16")


def count_dtype(plan: MosaicPlan) -> str:
    """uint8, unless there are more tiles than that can count."""
    return "uint8" if len(plan.layers) <= np.iinfo("uint8").max else "uint16"


@dataclass(frozen=True)
class OriginFiles:
    """Files that are written next to a mosaic, on its grid.

    ``source`` contains the number of the tile that each pixel comes from (:attr:`Layer.number`; 0: empty; the dtype's
    largest: several), ``observations`` how many tiles had a valid pixel there, or is ``None`` if they are not counted.
    ``tags`` is called once all pixels are written.
    """

    source: Path
    observations: Path | None = None
    tags: Callable[[], Mapping[str, str]] = dict


class Origins:
    """Both files in the making."""

    def __init__(self, plan: MosaicPlan, source: Target, observations: Target | None = None) -> None:
        self._method = plan.options.merge_method
        self._source = source
        self._observations = observations
        self._lock = threading.Lock()
        #: Pixels that came from each tile, by its number.
        self.counts: Counter[int] = Counter()
        #: The source as small as the mosaic's preview.
        self.preview = Preview(plan.grid, NOWHERE, source.dtype)

    @classmethod
    @contextmanager
    def writing(cls, plan: MosaicPlan, files: OriginFiles | None) -> Iterator[Origins | None]:
        """Opens the files; when it ends they are whole."""
        if files is None:
            yield None
            return
        # A source of 0 is empty, a count of 0 is a count.
        source = replace(plan, band="source", dtype=str(source_dtype(plan)), nodata=NOWHERE)
        observations = replace(plan, band="observations", dtype=count_dtype(plan), nodata=math.nan)
        with ExitStack() as stack:
            targets = [stack.enter_context(new_geotiff(files.source, source))]
            if files.observations is not None:
                targets.append(stack.enter_context(new_geotiff(files.observations, observations)))
            yield cls(plan, *targets)
            for target in targets:
                target.file.update_tags(**files.tags())

    def window(self, shape: tuple[int, int]) -> WindowOrigins:
        counted = None if self._observations is None else self._observations.dtype
        return WindowOrigins(shape, self._source.dtype, self._method, counted)

    def write(self, window: Box, found: WindowOrigins, cores: threading.Semaphore) -> None:
        pixels = found.pixels()
        with self._lock:
            self.counts.update(pixels)
        self.preview.show(window, found.source)
        self._source.write(window, found.source, found.source != NOWHERE, cores)
        if self._observations is not None and found.observations is not None:
            self._observations.write(window, found.observations, found.observations != 0, cores)


class WindowOrigins:
    """The origin of each pixel of a window, collected tile by tile."""

    def __init__(
        self, shape: tuple[int, int], dtype: np.dtype[Any], method: str, count_dtype: np.dtype[Any] | None
    ) -> None:
        self.source: Pixels = np.zeros(shape, dtype)
        self.observations: Pixels | None = None if count_dtype is None else np.zeros(shape, count_dtype)
        self._method = method
        self._numbers = {several(dtype)} if method in MIXING else set()

    def take(self, number: int, empty: Mask) -> None:
        """Assign the whole window to one tile."""
        # (Five to twenty times faster than assigning where a mask says so.)
        np.multiply(~empty, self.source.dtype.type(number), out=self.source)
        if self.observations is not None:
            self.observations += ~empty
        self._numbers.add(number)

    def add(
        self, number: int, part: tuple[slice, slice], new: Pixels, new_empty: Mask, old: Pixels, old_empty: Mask
    ) -> None:
        """Add a tile that is about to be merged into a part of the window, which contains ``old`` so far."""
        valid = ~new_empty
        if self.observations is not None:
            self.observations[part] += valid
        source = self.source[part]
        if self._method in MIXING:
            source[valid & ~old_empty] = several(source.dtype)
            wins = old_empty
        elif self._method == "min":
            wins = old_empty | (new < old)
        elif self._method == "max":
            wins = old_empty | (new > old)
        else:  # the first in merge order; for `last` that order is turned around
            wins = old_empty
        np.copyto(source, source.dtype.type(number), where=wins & valid)
        self._numbers.add(number)

    def clear(self, outside: Mask) -> None:
        """Discard everything outside the requested area."""
        self.source[outside] = NOWHERE
        if self.observations is not None:
            self.observations[outside] = 0

    def pixels(self) -> dict[int, int]:
        """Pixels of each tile's number."""
        return {number: int(np.count_nonzero(self.source == number)) for number in self._numbers}
