"""Reducers: many observations of a pixel become one. Arrays in, arrays out.

A stack has the shape ``(times, ...)``, ``empty`` says which of it holds nothing; what comes of a pixel without
observations is not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thess_agg_dagster.mosaic.bands import NIR, RED

Stack = NDArray[Any]
Mask = NDArray[np.bool_]
Counts = NDArray[np.integer[Any]]

# A geometric median is looked for until it moves by less than this part of a digital number, so many times at most.
_CLOSE, _MOST_STEPS = 1e-3, 500


@lru_cache(maxsize=64)
def _network(count: int) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort: pairs to compare and swap, one after the other, that sort ``count`` values."""

    def pairs() -> Iterator[tuple[int, int]]:
        size = 1
        while size < count:
            step = size
            while step:
                for start in range(step % size, count - step, 2 * step):
                    for low in range(start, min(start + step, count - step)):
                        if low // (2 * size) == (low + step) // (2 * size):
                            yield low, low + step
                step //= 2
            size *= 2

    return tuple(pairs())


def sorted_in_time(stack: Stack) -> Stack:
    """Sorted along the first axis.

    Minimum and maximum of whole rows use all lanes of the processor and let other threads go on.
    """
    rows = list(stack.copy())
    spare = np.empty_like(rows[0])
    for low, high in _network(len(rows)):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return np.stack(rows)


def median(stack: Stack, empty: Mask) -> Stack:
    """The middle value; of two in the middle their mean, rounded half to even for integers."""
    count = _count(empty)
    # What is empty sorts behind all values.
    last = stack.dtype.type(np.inf if stack.dtype.kind == "f" else np.iinfo(stack.dtype).max)
    return _middle(sorted_in_time(np.where(empty, last, stack)), count)


def _middle(ordered: Stack, count: Counts) -> Stack:
    low, high = (
        np.take_along_axis(ordered, index[None], 0)[0] for index in (np.maximum(count - 1, 0) // 2, count // 2)
    )
    if ordered.dtype.kind == "f":
        return np.asarray((low + high) / ordered.dtype.type(2))
    total = low.astype(np.int64) + high
    half = total >> 1
    return np.asarray(half + (total & half & 1), ordered.dtype)


def mean(stack: Stack, empty: Mask) -> Stack:
    """The mean, rounded half to even for integers."""
    total = np.sum(stack, axis=0, dtype=np.float64, where=~empty)
    return as_dtype(total / np.maximum(_count(empty), 1), stack.dtype)


def most_frequent(stack: Stack, empty: Mask) -> Stack:
    """The value that occurs most often; of several the smallest. For classes: small numbers, none below 0."""
    found: Stack = np.zeros_like(stack[0])
    most = np.zeros(stack.shape[1:], np.int32)
    for value in np.flatnonzero(np.bincount(stack[~empty])):
        count = np.count_nonzero((stack == value) & ~empty, axis=0)
        np.copyto(found, stack.dtype.type(value), where=count > most)
        np.maximum(most, count, out=most, casting="unsafe")
    return found


def ndvi(red: Stack, nir: Stack, offset: float = 0) -> NDArray[np.float64]:
    """Normalized difference vegetation index; NaN where both are zero. ``offset`` is what reflectances carry."""
    near, far = nir.astype(np.float64) - offset, red.astype(np.float64) - offset
    with np.errstate(divide="ignore", invalid="ignore"):
        index: NDArray[np.float64] = (near - far) / (near + far)
    index[~np.isfinite(index)] = np.nan
    return index


def greenest(bands: Mapping[str, Stack], empty: Mask, offsets: Sequence[float]) -> Counts:
    """When NDVI (of B08 and B04) was largest; of several the first. ``offsets`` are what the reflectances of each time
    carry: with one, NDVI is nearer to zero, and times of several processing baselines cannot be compared. Without it, reflectances
    of zero and less count as the smallest, as ``harmonize`` has them."""
    carried = np.array(offsets, np.float64).reshape(-1, *[1] * (empty.ndim - 1))
    red, nir = (np.where(carried > 0, np.maximum(bands[band] - carried, 1), bands[band]) for band in (RED, NIR))
    index = ndvi(red, nir)
    index[empty | np.isnan(index)] = -np.inf
    when: Counts = np.argmax(index, axis=0)
    return when


def medoid(bands: Mapping[str, Stack], empty: Mask) -> Counts:
    """When the observation was that lies nearest to all others together (Euclidean, over all bands); of several the first."""
    points = [stack.astype(np.float64) for stack in bands.values()]
    total = np.zeros(empty.shape, np.float64)
    for one in range(len(empty)):
        for other in range(one):
            distance = np.sqrt(sum((point[one] - point[other]) ** 2 for point in points))
            distance[empty[one] | empty[other]] = 0
            total[one] += distance
            total[other] += distance
    total[empty] = np.inf
    nearest: Counts = np.argmin(total, axis=0)
    return nearest


def geomedian(bands: Mapping[str, Stack], empty: Mask) -> dict[str, Stack]:
    """The point with the smallest sum of distances to all observations (Euclidean, over all bands): Weiszfeld's way, with
    Vardi and Zhang's step off an observation that it meets."""
    shape = empty.shape[1:]
    seen = ~empty.reshape(len(empty), -1)
    points = np.stack([np.where(empty, 0, stack).reshape(seen.shape).astype(np.float64) for stack in bands.values()])
    with np.errstate(invalid="ignore"):
        found = points.sum(axis=1) / np.maximum(seen.sum(axis=0), 1)
    moving = np.flatnonzero(seen.sum(axis=0) > 1)
    for _ in range(_MOST_STEPS):
        if not moving.size:
            break
        here = found[:, moving]
        found[:, moving] = _nearer(points[:, :, moving], seen[:, moving], here)
        moving = moving[np.abs(found[:, moving] - here).max(axis=0) > _CLOSE]
    return {
        band: as_dtype(values.reshape(shape), stack.dtype)
        for (band, stack), values in zip(bands.items(), found, strict=True)
    }


def _nearer(points: NDArray[np.float64], seen: Mask, here: NDArray[np.float64]) -> NDArray[np.float64]:
    """One step; ``points`` is of the shape (bands, times, pixels), ``here`` (bands, pixels)."""
    away = points - here[:, None]
    distance = np.sqrt((away**2).sum(axis=0))
    met = seen & (distance < 1e-9)
    weight = np.where(seen & ~met, 1 / np.where(distance > 0, distance, 1), 0)
    total = np.maximum(weight.sum(axis=0), 1e-300)
    step = (away * weight).sum(axis=1) / total
    # On an observation the others have to pull harder than the one that is there.
    pull = np.sqrt((step**2).sum(axis=0)) * total
    keep: NDArray[np.float64] = np.where(
        met.any(axis=0), np.maximum(0, 1 - met.sum(axis=0) / np.maximum(pull, 1e-300)), 1
    )
    return np.asarray(here + keep * step)


def at(stack: Stack, when: Counts) -> Stack:
    """The observations of one time for each pixel."""
    found: Stack = np.take_along_axis(stack, when[None], 0)[0]
    return found


def as_dtype(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Stack:
    """Rounded half to even for integers."""
    return np.asarray(values if dtype.kind == "f" else np.rint(values), dtype)


def _count(empty: Mask) -> NDArray[np.intp]:
    count: NDArray[np.intp] = len(empty) - np.count_nonzero(empty, axis=0)
    return count


#: What reduces each band by itself.
BY_BAND: Mapping[str, Callable[[Stack, Mask], Stack]] = {"median": median, "mean": mean}
