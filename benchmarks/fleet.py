"""``python -m benchmarks.fleet``: a fleet with one worker and with two, the UI and the command, in one run.

The same timestamps of three small tiles, so that what is around the engine shows. Every process has one thread and one
timestamp at a time. Ways are run in turn, round after round; numbers are medians of the rounds.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.orchestration import make_lake, python
from benchmarks.run import commit
from thess_agg_dagster.keys import TIME_SERIE
from thess_agg_dagster.runs.fleet import ONLY_LAKE
from thess_agg_dagster.runs.instance import UNFINISHED
from thess_agg_dagster_tests.runs.test_dagster_dev import dagster_dev
from thess_agg_dagster_tests.services import Client, Fleet, Service, fleet

TIMESTAMPS = 16
ROUNDS = 2
HERE = Path(__file__).parent


class Figures:
    """Seconds of each way, round by round."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.before: dict[str, list[float]] = defaultdict(list)
        self.startup: dict[str, list[float]] = defaultdict(list)

    def backfill(self, way: str, client: Client, keys: list[str]) -> None:
        """From the first run in the queue to the end of the last; what passes before that (Dagster's daemon looks for
        backfills every half minute); and how long a run takes to begin once it is launched."""
        clicked = time.time()
        tags = {"dagster/backfill": client.backfill(keys)}
        client.wait_until(lambda: len(client.runs(dg.DagsterRunStatus.SUCCESS, tags=tags)) == len(keys), 600)
        times: list[Any] = [client.instance.get_run_stats(run.run_id) for run in client.runs(tags=tags)]
        first = min(each.enqueued_time for each in times)
        self.wall[way].append(max(each.end_time for each in times) - first)
        self.before[way].append(first - clicked)
        self.startup[way] += [each.start_time - each.launch_time for each in times]

    def table(self) -> str:
        lines = ["| | seconds | seconds a timestamp | a run begins after | before the first |", "|---|---|---|---|---|"]
        for way, found in self.wall.items():
            wall = statistics.median(found)
            begins = f"{statistics.median(self.startup[way]):.2f} s" if way in self.startup else ""
            before = f"{statistics.median(self.before[way]):.1f} s" if way in self.before else ""
            lines.append(f"| {way} | {wall:.1f} | {wall / TIMESTAMPS:.2f} | {begins} | {before} |")
        return "\n".join(lines)


SENSORS = ("time_serie_sensor", "late_tiles_sensor", "changed_inputs_sensor", "report_sensor")


def read_list(client: Client) -> None:
    run_id = client.materialize(TIME_SERIE)
    client.wait_until(lambda: client.status(run_id) == dg.DagsterRunStatus.SUCCESS)


def ready_worker(services: Fleet, name: str, environment: Mapping[str, str]) -> Service:
    worker = services.start_worker(name, environment)
    services.wait_until(lambda: " ready." in worker.log.read_text())
    return worker


def measure(folder: Path) -> Figures:
    figures = Figures()
    lake = make_lake(folder / "lake", TIMESTAMPS)
    keys = [line.split(",")[0] for line in lake.time_serie.read_text().splitlines()[1:]]
    environment = {"DATA_LAKE": str(lake.root), "THESS_THREADS": "1"}
    os.environ |= {"THESS_THREADS": "1", "THESS_MAX_CONCURRENT_RUNS": "2"}

    def command(workers: int) -> None:
        way = f"`python -m thess_agg_dagster`, {workers} worker{'s' * (workers > 1)}, with its start and its report"
        arguments = ("--data-lake", str(lake.root), "--force", "--max-workers", str(workers))
        figures.wall[way].append(python("-m", "thess_agg_dagster", *arguments))

    def ui() -> None:
        with dagster_dev(lake.root) as opened:
            time.sleep(8)  # each has had its first tick: it is between two that it can be stopped
            for sensor in SENSORS:
                opened.stop_sensor(sensor)
            read_list(opened)
            opened.wait_until(lambda: not opened.runs(*UNFINISHED), 900)  # what was launched until then
            figures.backfill("a backfill in `dagster dev`, two runs at a time", opened, keys)

    with fleet(folder / "fleet") as services:
        services.start_dagster("workspace.yaml", {ONLY_LAKE: environment}, SENSORS)
        ready_worker(services, "one", environment)
        read_list(services)

        def one() -> None:
            figures.backfill("a fleet, one worker of one process", services, keys)

        def two() -> None:
            number = len(figures.wall["a fleet, two workers of one process"])
            second = ready_worker(services, f"two-{number}", environment)  # a log of its own each time
            figures.backfill("a fleet, two workers of one process", services, keys)
            services.stop(second)

        ways: list[Callable[[], None]] = [one, two, ui, lambda: command(1), lambda: command(2)]
        for number in range(ROUNDS):
            for way in ways:
                way()
            print(f"round {number + 1}\n{figures.table()}", flush=True)
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    text = (
        f"# A fleet on one machine\n\n`make bench-fleet`: {TIMESTAMPS} timestamps of three small tiles, two zones, three "
        f"bands, one thread a process; medians of {ROUNDS} rounds of one run, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, Dagster {dg.__version__}, at commit {commit()}. Postgres, Redis, code server, webserver and daemon of the "
        f"fleet are on the same cores. Before the first run of a backfill Dagster's daemon has to notice it: it looks every "
        f"half minute; then it hands out about one run a second, however many workers there are.\n\n{figures.table()}\n"
    )
    (HERE / "FLEET.md").write_text(text)


if __name__ == "__main__":
    main()
