"""Workers are forked from a copy of the command itself, without importing everything anew."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import multiprocessing, os
from thess_agg_dagster.runs.private.workers import serve_workers

imported = []

def tell(queue):
    queue.put((os.getppid(), len(imported)))

def ask():
    context = multiprocessing.get_context("forkserver")
    queue = context.SimpleQueue()
    process = context.Process(target=tell, args=[queue])
    process.start()
    process.join(60)
    return queue.get()

if __name__ == "__main__":
    imported.append("in this process, before")
    serve_workers()
    server, seen = ask()
    assert server != os.getpid() and seen == 1
    assert ask() == (server, 1)
"""


def test_a_worker_has_what_this_process_has() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
