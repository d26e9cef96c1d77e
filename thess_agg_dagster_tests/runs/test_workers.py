"""Workers are forked from a copy of the command itself, which imports what makes mosaics while the command goes on."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys

from thess_agg_dagster.runs.batch import _start_worker
from thess_agg_dagster_tests.conftest import SmallLake

_SCRIPT = """
import multiprocessing, os, sys
from thess_agg_dagster.runs.ahead import PIXELS
from thess_agg_dagster.runs.private.workers import serve_workers

imported = []

def tell(queue):
    queue.put((os.getppid(), len(imported), [name for name in sys.modules if name not in known]))

def ask():
    context = multiprocessing.get_context("forkserver")
    queue = context.SimpleQueue()
    process = context.Process(target=tell, args=[queue])
    process.start()
    process.join(60)
    return queue.get()

if __name__ == "__main__":
    imported.append("in this process, before")
    known = set(sys.modules)
    serve_workers(PIXELS)
    server, seen, new = ask()
    assert server != os.getpid() and seen == 1
    ours = ("timestamp.plan", "timestamp.build", "timestamp.refetch", "period.plan", "period.build", "lake.remote")
    assert {*PIXELS, *(f"thess_agg_dagster.{name}" for name in ours), "rasterio", "numpy", "PIL.Image"} <= set(new)
    assert ask() == (server, 1, new)
    assert "rasterio" not in sys.modules
"""


def test_a_worker_has_what_this_process_has() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_worker_collects_garbage_though_its_server_does_not(small_lake: SmallLake) -> None:
    def work() -> None:
        gc.disable()
        _start_worker(dict(os.environ), small_lake.instance.get_ref())
        sys.exit(0 if gc.isenabled() else 3)

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
