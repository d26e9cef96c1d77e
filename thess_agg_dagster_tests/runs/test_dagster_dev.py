"""``dagster dev`` as a data engineer uses it: a real webserver and daemon, driven through GraphQL.

One for all tests of this file: it takes longer to start than they take.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest

from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.runs.instance import PROCESS_TAG, UNFINISHED
from thess_agg_dagster.runs.warm import WARM
from thess_agg_dagster_tests.conftest import BANDS, FIRST, SECOND, SmallLake
from thess_agg_dagster_tests.processes import ROOT, clean_environment, free_port, invoke, run
from thess_agg_dagster_tests.services import Client


class Ui(Client):
    """A running ``dagster dev`` in a project, whose Dagster instance and log are in a folder."""

    def __init__(self, root: Path, project: Path, environment: dict[str, str]) -> None:
        self.root = root
        port = free_port()
        self.log = root / "dagster-dev.log"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dagster", "dev", "-p", str(port)],
                cwd=project, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.instance = dg.DagsterInstance.from_config(environment["DAGSTER_HOME"])
        self.url = f"http://127.0.0.1:{port}"

    def logs(self) -> str:
        return self.log.read_text()[-3000:]

    def check(self) -> None:
        assert self.process.poll() is None, self.logs()

    def backfill_runs(self, *found: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
        return [run for run in self.runs(*found) if "dagster/backfill" in run.tags]

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.instance.dispose()


@contextmanager
def dagster_dev_in(project: Path, root: Path, environment: dict[str, str]) -> Iterator[Ui]:
    opened = Ui(root, project, environment)
    try:
        opened.wait_until(opened.is_up)
        yield opened
    finally:
        opened.close()


@contextmanager
def dagster_dev(root: Path) -> Iterator[Ui]:
    """On the lake in a folder."""
    home = run("thess_agg_dagster.runs.instance", str(root)).stdout.strip()
    environment = clean_environment() | {"DATA_LAKE": str(root), "DAGSTER_HOME": home, "THESS_SENSOR_SECONDS": "5"}
    with dagster_dev_in(ROOT, root, environment) as opened:
        yield opened


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with dagster_dev(tmp_path_factory.mktemp("lake")) as opened:
        yield opened


@pytest.fixture
def small_lake(ui: Ui) -> SmallLake:
    return SmallLake(ui.root, ui.instance)


def test_a_backfill_beside_the_command(small_lake: SmallLake, ui: Ui) -> None:
    keys = [f"2024-01-01 00:00:{second:02d}" for second in range(4)]
    small_lake.list_rows(*((key, small_lake.add_timestamp(key)) for key in keys))  # a sensor may run them, too
    command = ("--data-lake", str(small_lake.root), "--bands", "B04")
    assert invoke(*command, "--timestamps", keys[0]).exit_code == 0
    (by_command,) = (
        run
        for run in ui.runs(dg.DagsterRunStatus.SUCCESS, tags={"dagster/partition": keys[0]})
        if "dagster/sensor_name" not in run.tags
    )

    # A backfill from the UI, and the command over the same timestamps while it is at work.
    backfill = ui.backfill(keys)
    ui.wait_until(lambda: bool(ui.runs(dg.DagsterRunStatus.STARTED)))
    beside = invoke(*command, "--force", "--bands", ",".join(BANDS))
    assert beside.exit_code == 0, beside.output
    ui.wait_until(lambda: len(ui.runs(dg.DagsterRunStatus.SUCCESS, tags={"dagster/backfill": backfill})) == len(keys))
    ui.wait_until(lambda: not ui.runs(*UNFINISHED))  # sensors ran some of them, too
    for key in keys:
        assert sorted(path.stem for path in small_lake.lake.timestamp_folder(key).glob("*.tif")) == list(BANDS)
    made = ui.instance.fetch_materializations(AGGREGATED, limit=100).records
    successes = [run for run in ui.runs(dg.DagsterRunStatus.SUCCESS) if "dagster/partition" in run.tags]
    assert len(made) == len(successes) >= 1 + 2 * len(keys)  # not one event lost
    assert list(small_lake.lake.staging.iterdir()) == []

    # All in one process that waited for them, and not one of its own each.
    assert all(run.tags[WARM] == run.run_id for run in ui.backfill_runs(dg.DagsterRunStatus.SUCCESS))
    (waiting,) = waiting_processes(ui)

    # "Re-execute" on a run of the command: again, with its parameters.
    def succeeded(run_id: str) -> bool:
        assert ui.status(run_id) != dg.DagsterRunStatus.FAILURE
        return ui.status(run_id) == dg.DagsterRunStatus.SUCCESS

    waiting.kill()  # there will be another
    again = ui.reexecute(by_command.run_id)
    ui.wait_until(lambda: succeeded(again))
    (executed,) = (run for run in ui.runs() if run.run_id == again)
    assert executed.run_config["resources"]["params"]["config"]["bands"] == ["B04"]
    # A mosaic is gone, so the job has its timestamp made once more, by the queue; and that run can be re-executed, too.
    small_lake.lake.mosaic(keys[0], "B08").unlink()
    job = ui.launch("missing_or_failed")
    tags = {"thess_agg_dagster/parent_run": job, "thess_agg_dagster/cause": "missing or failed"}
    partition = {"dagster/partition": keys[0]}
    ui.wait_until(lambda: bool(ui.runs(dg.DagsterRunStatus.SUCCESS, tags=tags | partition)))
    (launched,) = ui.runs(tags=tags | partition)
    assert not [run for run in ui.runs(tags=tags) if run.tags.get("dagster/partition", keys[0]) != keys[0]]
    assert len(list(small_lake.lake.timestamp_folder(keys[0]).glob("*.tif"))) == len(BANDS)
    last = ui.reexecute(launched.run_id)
    ui.wait_until(lambda: succeeded(last))
    # The report follows by itself.
    ui.wait_until(lambda: last in small_lake.lake.audit_table("status").read_text())
    assert "locked" not in ui.log.read_text()


def waiting_processes(ui: Ui) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(ui.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # one that has ended meanwhile
            if "thess_agg_dagster.runs.warm" in each.cmdline():
                found.append((each, each.ppid()))
    pids = {each.pid for each, _ in found}
    return [each for each, parent in found if parent not in pids]


def test_terminate(small_lake: SmallLake, ui: Ui) -> None:
    """A run that decodes for tens of seconds is told to stop in the UI: it does, at once, and leaves the truth."""
    small_lake.list_rows((FIRST, small_lake.add_slow_timestamp(FIRST, (4000, 3000))))  # and a sensor launches it
    ui.wait_until(lambda: small_lake.lake.staging.is_dir() and any(small_lake.lake.staging.iterdir()))
    (started,) = ui.runs(dg.DagsterRunStatus.STARTED, tags={"dagster/partition": FIRST})
    assert ui.terminate(started.run_id) == "TerminateRunSuccess"
    ui.wait_until(lambda: bool(ui.runs(dg.DagsterRunStatus.CANCELED)), seconds=30)
    assert list(small_lake.lake.staging.iterdir()) == []
    assert not small_lake.lake.timestamp_folder(FIRST).exists()

    # The report follows by itself, and says so.
    status = small_lake.lake.audit_table("status")
    ui.wait_until(lambda: status.exists() and "exception" in status.read_text())
    (row,) = small_lake.tables_on_disk()["status"].query("timestamp == @FIRST").to_dict("records")
    assert row["run_id"] == started.run_id
    assert "stopped" in row["message"]


def test_a_run_that_is_killed(small_lake: SmallLake, ui: Ui) -> None:
    """As where memory ran out: the run ends, and says why, as soon as its process is gone."""
    small_lake.list_rows((SECOND, small_lake.add_slow_timestamp(SECOND, (4000, 3000))))  # and a sensor launches it
    staging = small_lake.lake.staging
    ui.wait_until(lambda: staging.is_dir() and any(staging.iterdir()))
    (started,) = ui.runs(dg.DagsterRunStatus.STARTED, tags={"dagster/partition": SECOND})
    os.kill(int(started.tags[PROCESS_TAG].split(":")[-2]), signal.SIGKILL)
    ui.wait_until(lambda: ui.status(started.run_id) == dg.DagsterRunStatus.FAILURE, seconds=30)
    assert any("was killed" in entry.message for entry in ui.instance.all_logs(started.run_id))
    ui.wait_until(lambda: "failed" in small_lake.lake.audit_table("status").read_text())
