"""What a process took: seconds and memory."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def seconds(command: Sequence[str], environment: Mapping[str, str] | None = None, quiet: bool = False) -> float:
    """How long a command runs. Raises ``CalledProcessError`` where it fails."""
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, capture_output=quiet)
    return time.perf_counter() - started


def peak_megabytes() -> float:
    """Peak memory of this process, or of the tool it ran. (VmHWM starts anew at exec; ru_maxrss does not.)"""
    tool = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return tool / 1000 if tool else own_peak_megabytes()


def own_peak_megabytes() -> float:
    """Peak memory of this process, whatever it ran."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1000
