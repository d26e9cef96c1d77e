"""Two lakes in YAML in one ``dagster dev``: a real webserver and daemon, one code server, driven through GraphQL."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import dagster as dg
import yaml

from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.runs.instance import BATCH, CAUSE, UNFINISHED
from thess_agg_dagster.runs.warm import WARM
from thess_agg_dagster_tests.conftest import FIRST, SECOND, THIRD, SmallLake
from thess_agg_dagster_tests.lakes_project import MODULE, environment_of, write_project
from thess_agg_dagster_tests.processes import run
from thess_agg_dagster_tests.runs.test_dagster_dev import dagster_dev_in, waiting_processes

CRETE, THRACE = LakeKeys("crete"), LakeKeys("thrace")


def test_sensors_backfills_and_runs_find_their_lake(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    settings = yaml.safe_load(files("thess_agg_dagster").joinpath("dagster.yaml").read_text())
    settings["run_launcher"]["config"] = {"modules": [MODULE]}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    project = write_project(
        tmp_path / "project",
        crete={"name": "crete", "root": str(tmp_path / "crete"), "sensor_seconds": 5, "params": {"bands": ["B04"]}},
        thrace={
            "name": "thrace", "root": str(tmp_path / "thrace"), "sensor_seconds": 5, "timestamps_per_run": 2,
            "params": {"bands": ["SCL"]},
        },
    )  # fmt: skip
    environment = environment_of(project, home)
    run("thess_agg_dagster.runs.instance", str(tmp_path / "crete"), DAGSTER_HOME=str(home))  # its databases
    with dagster_dev_in(project, tmp_path, environment) as ui:
        crete, thrace = (SmallLake(tmp_path / name, ui.instance) for name in ("crete", "thrace"))
        # Lists that appear are launched by the sensors of each lake, and reported.
        crete.list_rows((FIRST, crete.add_timestamp(FIRST)))
        thrace.list_rows(*((key, thrace.add_timestamp(key)) for key in (FIRST, SECOND)))
        for lake, keys in ((crete, [FIRST]), (thrace, [FIRST, SECOND])):
            status = lake.lake.audit_table("status")
            ui.wait_until(lambda status=status, keys=keys: status.exists() and reported(status) == len(keys))  # type: ignore[misc]
        assert not crete.lake.timestamp_folder(SECOND).exists()
        assert bands(crete, FIRST) == ["B04"]
        assert bands(thrace, FIRST) == bands(thrace, SECOND) == ["SCL"]
        # A backfill of two timestamps in one run; each has a run of its own there, which can be re-executed.
        backfill = ui.backfill([FIRST, SECOND], THRACE.aggregated)
        ui.wait_until(lambda: len(ui.runs(dg.DagsterRunStatus.SUCCESS, tags={"dagster/backfill": backfill})) == 1)
        (whole,) = ui.runs(tags={"dagster/backfill": backfill})
        parts = ui.runs(dg.DagsterRunStatus.SUCCESS, tags={"thess_agg_dagster/parent_run": whole.run_id})
        assert {part.tags["dagster/partition"] for part in parts} == {FIRST, SECOND}
        again = ui.reexecute(parts[0].run_id)
        ui.wait_until(lambda: ui.status(again) == dg.DagsterRunStatus.SUCCESS)
        # A job of one lake.
        thrace.list_rows(*((key, thrace.add_timestamp(key)) for key in (FIRST, SECOND, THIRD)))
        ui.launch("crete_verify_published", location="lakes")
        ui.wait_until(lambda: thrace.lake.timestamp_folder(THIRD).exists() and not ui.runs(*UNFINISHED))
        # All were forked from one process.
        launched = [run for run in ui.runs() if run.tags.get(CAUSE) != BATCH]
        assert all(run.tags.get(WARM) == run.run_id for run in launched)
        assert {run.status for run in ui.runs()} == {dg.DagsterRunStatus.SUCCESS}
        assert len(waiting_processes(ui)) == 1


def reported(status: Path) -> int:
    return status.read_text().count("success")


def bands(lake: SmallLake, timestamp: str) -> list[str]:
    return sorted(path.stem for path in lake.lake.timestamp_folder(timestamp).glob("*.tif"))
