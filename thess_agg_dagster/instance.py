"""The Dagster instance of a lake: where its runs and events are kept when ``DAGSTER_HOME`` is unset.

``python -m thess_agg_dagster.instance LAKE`` makes it and prints its folder.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path

import dagster as dg


def dagster_home(lake_root: Path) -> Path:
    """``DAGSTER_HOME``, or the folder ``.dagster`` of the lake, with our settings in it."""
    home = Path(os.environ.get("DAGSTER_HOME") or lake_root / ".dagster").absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        with as_file(files("thess_agg_dagster") / "dagster.yaml") as packaged:
            shutil.copyfile(packaged, settings)
    return home


def create_instance(lake_root: Path) -> Path:
    """Make the instance before anything opens it: several processes on a fresh one can break its database."""
    home = dagster_home(lake_root)
    os.environ["DAGSTER_HOME"] = str(home)
    dg.DagsterInstance.get().dispose()
    return home


if __name__ == "__main__":
    print(create_instance(Path(sys.argv[1])))
