"""What one Dagster with several lakes in YAML takes: ``python -m benchmarks.lakes 1 20``.

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

from thess_agg_dagster_tests.lakes_project import environment_of, write_lake, write_project
from thess_agg_dagster_tests.processes import run
from thess_agg_dagster_tests.runs.test_dagster_dev import Ui, dagster_dev_in

#: By what stands on their command lines.
PROCESSES = {"webserver": "dagster_webserver", "daemon": "dagster._daemon", "code server": "grpc"}
#: Twice as long as sensors wait between two looks, and more.
SECONDS = 90


def main(numbers: list[int]) -> None:
    print("| lakes | until the UI answers | " + " | ".join(PROCESSES) + " | ticks | CPU |")
    print("|---|---" + "|---" * len(PROCESSES) + "|---|---|")
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            print(row(number, Path(folder)), flush=True)


def row(number: int, folder: Path) -> str:
    project = write_project(folder / "project")
    for name in (f"lake_{each}" for each in range(number)):
        write_lake(project, name, {"name": name, "root": name})
    home = folder / "home"
    home.mkdir()
    with as_file(files("thess_agg_dagster") / "dagster.yaml") as settings:
        shutil.copy(settings, home)
    run("thess_agg_dagster.runs.instance", str(folder / "lake"), DAGSTER_HOME=str(home))
    started = time.perf_counter()
    with dagster_dev_in(project, folder, environment_of(project, home)) as ui:
        up = time.perf_counter() - started
        ticks, seconds = ticks_of(ui), cpu_seconds(ui)
        time.sleep(SECONDS)
        used = [f"{megabytes(ui, name):.0f} MB" for name in PROCESSES.values()]
        used.append(f"{(ticks_of(ui) - ticks) / SECONDS:.1f} a second")
        used.append(f"{(cpu_seconds(ui) - seconds) / SECONDS:.0%} of a core")
    return " | ".join([f"| {number}", f"{up:.1f} s", *used]) + " |"


def ticks_of(ui: Ui) -> int:
    """How often sensors have looked so far."""
    states = ui.instance.all_instigator_state()
    return sum(len(ui.instance.get_ticks(state.instigator_origin_id, state.selector_id)) for state in states)


def cpu_seconds(ui: Ui) -> float:
    """Of all processes."""
    below = psutil.Process(ui.process.pid).children(recursive=True)
    return sum(sum(each.cpu_times()[:2]) for each in below)


def megabytes(ui: Ui, name: str) -> float:
    """Memory of the processes with a name, as far as they share it with nobody."""
    below = psutil.Process(ui.process.pid).children(recursive=True)
    return sum(each.memory_full_info().uss for each in below if name in " ".join(each.cmdline())) / 1e6


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or [1, 20])
