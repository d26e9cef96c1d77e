"""Memory of one Dagster with several lakes in YAML: ``python -m benchmarks.lakes 1 20``.

The lakes are empty: this is what each costs before there is anything to look at.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path

import psutil

from thess_agg_dagster_tests.lakes_project import environment_of, write_project
from thess_agg_dagster_tests.processes import run
from thess_agg_dagster_tests.runs.test_dagster_dev import Ui, dagster_dev_in

#: By what stands on their command lines.
PROCESSES = {"webserver": "dagster_webserver", "daemon": "dagster._daemon", "code server": "grpc"}
#: Twice as long as sensors wait between two looks, and more.
SECONDS = 90


def main(numbers: list[int]) -> None:
    print("| lakes | until the UI answers | " + " | ".join(PROCESSES) + " |")
    print("|---|---" + "|---" * len(PROCESSES) + "|")
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            print(row(number, Path(folder)), flush=True)


def row(number: int, folder: Path) -> str:
    names = [f"lake_{each}" for each in range(number)]
    project = write_project(folder / "project", **{name: {"name": name, "root": name} for name in names})
    home = folder / "home"
    home.mkdir()
    with as_file(files("thess_agg_dagster") / "dagster.yaml") as settings:
        shutil.copy(settings, home)
    run("thess_agg_dagster.runs.instance", str(folder / "lake"), DAGSTER_HOME=str(home))
    started = time.perf_counter()
    with dagster_dev_in(project, folder, environment_of(project, home)) as ui:
        up = time.perf_counter() - started
        time.sleep(SECONDS)
        used = [f"{megabytes(ui, name):.0f} MB" for name in PROCESSES.values()]
    return " | ".join([f"| {number}", f"{up:.1f} s", *used]) + " |"


def megabytes(ui: Ui, name: str) -> float:
    """Memory of the processes with a name, as far as they share it with nobody."""
    below = psutil.Process(ui.process.pid).children(recursive=True)
    return sum(each.memory_full_info().uss for each in below if name in " ".join(each.cmdline())) / 1e6


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or [1, 20])
