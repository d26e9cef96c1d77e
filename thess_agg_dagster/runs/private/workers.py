"""Worker processes that do not import everything anew. Python has no public way to choose how their server starts."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any


def serve_workers(modules: Sequence[str] = ()) -> None:
    """Have a copy of this process fork the workers that it will ask for (context ``forkserver``). The copy imports
    ``modules`` for them, while this process goes on.

    Otherwise a new Python is started for that, which imports what this one has imported: seconds. To be called first
    of all: threads, also those of GDAL, and open databases do not survive a fork.
    """
    server: Any = forkserver._forkserver
    resource_tracker.ensure_running()
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    # The server ends when nobody holds the other end of this pipe any more.
    alive, held = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        Path(address).chmod(0o600)
        listener.listen()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            try:
                os.close(held)
                forkserver.main(listener.fileno(), alive, preload=modules)
            finally:
                os._exit(0)
    os.close(alive)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, held, pid
