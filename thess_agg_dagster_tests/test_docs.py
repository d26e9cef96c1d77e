"""What README and docs tell a user to type is typed, as printed. (Those of docs/SERIES.md: ``products/test_series.py``.)"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import rasterio

from thess_agg_dagster_tests.conftest import FIRST, SECOND, THIRD, SmallLake, scene
from thess_agg_dagster_tests.processes import ROOT, clean_environment, run, statuses
from thess_agg_dagster_tests.rasters import read
from thess_agg_dagster_tests.services import Client

SUCCESS = dg.DagsterRunStatus.SUCCESS


def blocks(page: str, language: str = "sh") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@contextmanager
def typed(block: str, lake: SmallLake) -> Iterator[subprocess.Popen[str]]:
    """A shell that runs a block in the project's folder, on this lake; what it has started ends with the test."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    output = (lake.root.parent / "output").open("a")
    shell = subprocess.Popen(
        ["bash", "-euc", block.replace("/data/lake", str(lake.root))],
        cwd=ROOT, env=clean_environment() | {"PATH": path}, stdout=output, stderr=output, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield shell
    finally:
        print((lake.root.parent / "output").read_text())
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGINT)
            try:
                shell.wait(60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
        output.close()


def test_the_commands_of_the_readme(small_lake: SmallLake) -> None:
    make, command = blocks("README.md")
    assert subprocess.run(["make", "--dry-run", *re.findall(r"^make (\w+)", make, re.M)], cwd=ROOT).returncode == 0
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    with typed(command, small_lake) as shell:
        assert shell.wait(120) == 0
    assert statuses(small_lake.lake) == {FIRST: "success"}


def test_the_commands_of_docs_downloads(small_lake: SmallLake) -> None:
    """On a lake that has all of its tiles, so that none is asked for."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    for block in blocks("docs/DOWNLOADS.md"):
        with typed(block, small_lake) as shell:
            assert shell.wait(120) == 0
    assert statuses(small_lake.lake) == {FIRST: "success"}


def test_the_commands_of_docs_dagster_from_a_list_to_the_ui(small_lake: SmallLake) -> None:
    """The UI as it opens, and a range of timestamps from a second terminal, beside it."""
    rows = [(key, small_lake.add_timestamp(key)) for key in (FIRST, THIRD)]
    small_lake.list_rows(*rows)
    lines, more, _ = blocks("docs/DAGSTER.md")  # (of lakes in YAML: ``defs/test_component.py``)
    log = small_lake.root.parent / "output"
    with typed(lines, small_lake):
        ui = Client()
        ui.wait_until(lambda: "Serving dagster-webserver on http" in log.read_text())
        (ui.url,) = re.findall(r"Serving dagster-webserver on (http://\S+)", log.read_text())
        ui.wait_until(ui.is_up)
        assert statuses(small_lake.lake)[FIRST] == "success"
        exports = lines.splitlines()[0]
        with typed(f"{exports}\n{more}", small_lake) as second:
            assert second.wait(400) == 0
        with dg.DagsterInstance.from_config(str(small_lake.root / ".dagster")) as ui.instance:
            ui.wait_until(
                lambda: (
                    {run.tags["dagster/partition"] for run in ui.runs(SUCCESS) if "dagster/backfill" in run.tags}
                    == {FIRST, THIRD}
                )
            )
            # The range was one run, of two timestamps with a run each.
            (range_run,) = ui.runs(SUCCESS, tags={"dagster/asset_partition_range_start": FIRST})
            parts = ui.runs(SUCCESS, tags={"thess_agg_dagster/parent_run": range_run.run_id})
            assert {run.tags["dagster/partition"] for run in parts} == {FIRST, THIRD}


def test_the_assets_of_docs_dagster_in_a_code_location_of_their_own(
    small_lake: SmallLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of somebody else's, in a folder of its own; Dagster's command line materializes one of its assets."""
    rows = [(key, small_lake.add_timestamp(key)) for key in (FIRST, SECOND, THIRD)]
    small_lake.list_rows(*rows)
    small_lake.read_list()
    for key in (FIRST, THIRD):
        small_lake.aggregate(key)
    (code,) = blocks("docs/DAGSTER.md", "python")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vegetation_of_docs.py").write_text(code)

    def value(asset: str) -> Any:
        event = small_lake.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return next(iter(event.asset_materialization.metadata.values())).value

    red, nir = (
        np.ma.masked_equal(read(small_lake.lake.mosaic(FIRST, band)), 0).astype(float) for band in ("B04", "B08")
    )
    command = (
        "dagster",
        "asset",
        "materialize",
        "-f",
        "vegetation_of_docs.py",
        "--select",
        "ndvi",
        "--partition",
        FIRST,
    )
    home = small_lake.instance.root_directory
    done = run(*command, cwd=elsewhere, DATA_LAKE=str(small_lake.root), DAGSTER_HOME=home)
    assert done.returncode == 0, done.stderr
    assert value("ndvi") == pytest.approx(((nir - red) / (nir + red)).mean())

    monkeypatch.setenv("DATA_LAKE", str(small_lake.root))
    monkeypatch.syspath_prepend(str(elsewhere))
    job = import_module("vegetation_of_docs").defs.resolve_implicit_global_asset_job_def()

    def materialize(asset: str, partition: str | None = None) -> None:
        job.execute_in_process(
            instance=small_lake.instance, asset_selection=[dg.AssetKey(asset)], partition_key=partition
        )

    with pytest.raises(FileNotFoundError, match="materialize data_raw/aggregated"):
        materialize("ndvi", SECOND)
    scl = {key: np.ma.masked_equal(read(small_lake.lake.mosaic(key, "SCL")), 0) for key in (FIRST, THIRD)}
    materialize("clear_days")
    assert value("clear_days") == [key for key in (FIRST, THIRD) if (scl[key] == 4).mean() > 0.5]


def test_the_script_of_docs_lake(small_lake: SmallLake, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = small_lake.add_timestamp(FIRST)
    first = small_lake.lake.tile(scenes[0], "B04")
    small_lake.list_rows((FIRST, scenes), (SECOND, [scene(SECOND, "T35TKF")]))
    (code,) = blocks("docs/LAKE.md", "python")
    exec(code.replace("/data/lake", str(small_lake.root)), {})
    out = capsys.readouterr().out
    assert f"{FIRST} {small_lake.lake.mosaic(FIRST, 'B04')}" in out
    assert f"{SECOND}\n  {small_lake.lake.tile(scene(SECOND, 'T35TKF'), 'B04')}: no such file" in out
    with rasterio.open(small_lake.lake.mosaic(FIRST, "B04")) as mosaic, rasterio.open(first) as tile:
        pixels = tile.read(1)
        found = mosaic.read(1, window=mosaic.window(*tile.bounds).round_offsets().round_lengths())
    np.testing.assert_array_equal(found[pixels > 0], pixels[pixels > 0])  # the first tile arrives bit for bit
