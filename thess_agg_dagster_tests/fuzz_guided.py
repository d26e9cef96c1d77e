"""The list's reader under atheris, which looks for inputs that reach new lines of code.

``python -m thess_agg_dagster_tests.fuzz_guided -runs=N [CORPUS]``; needs ``pip install .[soak]``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie

from thess_agg_dagster.lake.layout import is_plain_name

_FOLDER = tempfile.TemporaryDirectory()
_PATH = Path(_FOLDER.name) / "time_serie.csv"


def read_one(data: bytes) -> None:
    """Rows with harmless names, or the product's own error."""
    _PATH.write_bytes(b"acq_datetime,tile_ids\n" + data if data[:1] < b"\x80" else data)
    try:
        series = read_time_serie(_PATH)
    except TimeSerieError:
        return
    for key, acquisition in series.acquisitions.items():
        assert "/" not in key
        assert all(is_plain_name(scene_id) for scene_id in acquisition.scene_ids)


if __name__ == "__main__":
    atheris.Setup([*sys.argv, "-max_len=400"], read_one)
    atheris.Fuzz()
