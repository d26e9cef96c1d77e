"""Threads: pieces of work in a pool, until they are done or one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def run_all(work: Callable[[T], None], items: Iterable[T], threads: int, name: str, stop: threading.Event) -> None:
    """Call ``work`` on each item, in order, on so many threads.

    Raises what the first call to fail raised. ``stop`` is set on the way out: calls that are under way end early, those that have
    not begun never do.
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
