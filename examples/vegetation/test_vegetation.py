"""The project's own test: on the sample lake, its assets' numbers against numpy's, and both code locations side by side."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import rasterio

from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.sample import make_sample_lake

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """The sample lake at 300 m, aggregated by the command, with composites of its months."""
    root = tmp_path_factory.mktemp("vegetation") / "lake"
    make_sample_lake(root, 300)
    options = ["--grid", "fixed", "--aoi", str(root / "aoi.geojson"), "--composites", "month"]
    options += ["--min-observations", "1", "--ndvi", "float32"]
    command = [sys.executable, "-m", "thess_agg_dagster", "--data-lake", str(root), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "THESS_"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # one timestamp of the sample lacks a scene
    return DataLake(root)


@pytest.fixture
def project(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("DATA_LAKE", str(lake.root))
    monkeypatch.setenv("DAGSTER_HOME", str(lake.root / ".dagster"))
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("vegetation.definitions")
    for name in ("vegetation", "vegetation.definitions"):
        del sys.modules[name]


@pytest.fixture
def instance(project: object) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as opened:
        yield opened


def green_shares(lake: DataLake) -> dict[str, float]:
    found = {}
    for timestamp, published in lake.all_published():
        with rasterio.open(published.mosaic("SCL")) as file:
            pixels = file.read(1)
        found[timestamp] = (pixels[pixels > 0] == 4).mean()
    return found


def materialized(project: Any, asset: str, instance: dg.DagsterInstance, key: str | None = None) -> dict[str, Any]:
    job = project.defs.resolve_implicit_global_asset_job_def()
    run = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(asset)], partition_key=key)
    (event,) = run.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_numbers(project: Any, instance: dg.DagsterInstance, lake: DataLake) -> None:
    shares = green_shares(lake)
    assert len(shares) == 5
    keys = {instant[:10]: instant for instant in instance.get_dynamic_partitions("timestamp")}
    day, share = next(iter(shares.items()))
    assert materialized(project, "green_share", instance, keys[day[:10]])["share"] == pytest.approx(share)
    best = materialized(project, "greenest", instance)
    assert (best["timestamp"][:10], best["of"]) == (max(shares, key=shares.__getitem__)[:10], 5)
    months = materialized(project, "season", instance)["ndvi"]
    assert len(months) == 5
    for month, mean in months.items():
        with rasterio.open(lake.composites.published(month).mosaic("NDVI")) as file:
            assert mean == pytest.approx(np.nanmean(file.read(1)), abs=1e-4)


def test_a_timestamp_published_anew_asks_for_its_own_share(project: Any, instance: dg.DagsterInstance) -> None:
    """Eager automation across code locations, as the daemon evaluates it."""
    first = dg.evaluate_automation_conditions(project.defs, instance)
    key = instance.get_dynamic_partitions("timestamp")[0]
    instance.report_runless_asset_event(dg.AssetMaterialization(AGGREGATED, partition=key))
    then = dg.evaluate_automation_conditions(project.defs, instance, cursor=first.cursor)
    assert then.get_requested_partitions(dg.AssetKey("green_share")) == {key}


def test_both_code_locations_load(project: object) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("dagster"), "definitions", "validate", "-w", "workspace.yaml"],
        cwd=HERE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Validation successful for code location vegetation" in done.stdout + done.stderr
