"""Workers are forked from a copy of the command itself, which imports what makes mosaics while the command goes on."""

from __future__ import annotations

import subprocess
import sys

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
