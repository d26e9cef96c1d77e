"""The commands that tests and benchmarks run: environment, ports, and the tables that they leave."""

from __future__ import annotations

import io
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
from click.testing import CliRunner, Result

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.runs.command import main

ROOT = Path(__file__).parent.parent


def clean_environment() -> dict[str, str]:
    """This process's environment without what the product reads from it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("THESS_", "DAGSTER_", "DATA_LAKE"))}


def free_port() -> int:
    """A port below those that outgoing connections get: it stays free while a server restarts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = clean_environment()
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=300
    )


def invoke(*arguments: str, **environment: str) -> Result:
    """The command in this process, its workers in theirs: seconds less than a start of Python, for what it decides and
    does; how a process starts and ends is for :func:`run`."""
    return CliRunner().invoke(main, arguments, env=environment)


def status_table(lake: DataLake) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(lake.audit_table("status").read_bytes()), dtype=str, keep_default_na=False)


def statuses(lake: DataLake) -> dict[str, str]:
    table = status_table(lake)
    return dict(zip(table["timestamp"], table["status"], strict=True))
