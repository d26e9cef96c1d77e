"""Threads: run work in a pool until all of it is done or something fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def run_all(work: Callable[[T], None], items: Iterable[T], threads: int, name: str, stop: threading.Event) -> None:
    """Call ``work`` on each item, in order, on this many threads.

    Raises the first exception. ``stop`` is set before returning, so that running calls can end early; calls that have
    not begun are cancelled.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
