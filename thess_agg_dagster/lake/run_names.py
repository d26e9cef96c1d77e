"""Names of runs; in a bucket, each run stores its files of a timestamp under its name."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta

# When it began, so that names sort by time, and something that no other run has.
_RUN = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{8}", re.ASCII)
_TIME = "%Y%m%dT%H%M%SZ"


def run_name(begun: datetime | None = None) -> str:
    """A unique name: ``20230202T092109Z-1f0c22ab``."""
    return f"{begun or datetime.now(UTC):{_TIME}}-{secrets.token_hex(4)}"


def is_run(name: str) -> bool:
    """Whether a folder's name is that of a run."""
    return _RUN.fullmatch(name) is not None


def began_long_before(name: str, other: str) -> bool:
    """Whether a run began more than a day before another one, by their names."""
    first, second = (datetime.strptime(each.partition("-")[0], _TIME) for each in (name, other))
    return second - first > timedelta(days=1)
