"""The project's own files: settings that must agree, a sample that must be true, a wheel that must install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import rasterio
import yaml

import thess_agg_dagster
from thess_agg_dagster.definitions import defs
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import read_time_serie
from thess_agg_dagster.sample import TILES, make_sample_lake

ROOT = Path(__file__).parent.parent
PACKAGE = Path(thess_agg_dagster.__file__).parent


def test_the_definitions_load() -> None:
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {
        "catalogue",
        "time_serie",
        "cache/s2",
        "data_raw/aggregated",
        "data_raw/aggregated_by_period",
        "data_raw/composites",
        "timestamps_aggregation",
        "published_mosaics",
    }


def test_both_dagster_yaml_hold_the_same_settings() -> None:
    """The root's adds only where state is kept."""
    root = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    packaged = yaml.safe_load((PACKAGE / "dagster.yaml").read_text())
    for key in ("storage", "local_artifact_storage"):
        assert "DATA_LAKE/.dagster" in str(root.pop(key))
    assert root == packaged


def test_a_fleet_has_the_same_settings() -> None:
    """But for what makes it a fleet."""
    alone = yaml.safe_load((PACKAGE / "dagster.yaml").read_text())
    many = yaml.safe_load((ROOT / "deploy" / "fleet" / "dagster.yaml").read_text())
    assert set(many) - set(alone) == {"storage", "run_retries"}
    assert {name for name in alone if alone[name] != many[name]} == {"run_coordinator", "run_launcher"}


@pytest.mark.parametrize(("given", "limit"), [("7", 7), ("", os.cpu_count()), ("many", None), ("0", None)])
def test_the_run_queue_takes_its_limit_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, limit: int | None
) -> None:
    shutil.copyfile(PACKAGE / "dagster.yaml", tmp_path / "dagster.yaml")
    monkeypatch.setenv("THESS_MAX_CONCURRENT_RUNS", given)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        if limit is None:
            with pytest.raises(ValueError, match=f"THESS_MAX_CONCURRENT_RUNS='{given}' is not a number of runs"):
                _ = instance.run_coordinator
        else:
            config = instance.get_concurrency_config().run_queue_config
            assert config is not None
            assert config.max_concurrent_runs == limit


def test_floors_import_only_downwards() -> None:
    """The contracts stand in pyproject.toml; import-linter reads every import, those inside functions too."""
    found = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def test_one_package_alone_names_what_is_private_in_dagster() -> None:
    """Contracts cannot tell parts of other packages apart."""
    private = re.compile(r"^\s*(from|import) dagster\w*\._", re.M)
    found = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if private.search(path.read_text())]
    assert {path.parent for path in found} == {Path("runs/private")}


def test_no_registry_is_named() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert all("==" in line for line in text.split())


def test_the_sample_lake(tmp_path: Path) -> None:
    make_sample_lake(tmp_path, pixel=900)
    lake = DataLake(tmp_path)
    series = read_time_serie(lake.time_serie)
    assert series.refused == ()
    assert {len(a.scene_ids) for a in series.acquisitions.values()} == {3, 4}
    zones, drivers, missing = set(), set(), []
    for acquisition in series.acquisitions.values():
        for scene_id in acquisition.scene_ids:
            path = lake.tile(scene_id, "B04")
            if not path.exists():
                missing.append(scene_id)
                continue
            with rasterio.open(path) as tile:
                epsg, left, top = TILES[scene_id.split("_")[5]]
                assert tile.crs.to_epsg() == epsg
                assert (tile.bounds.left, tile.bounds.top) == (left, top)
                assert tile.bounds.right - left == 109_800
                pixels = tile.read(1)
                zones.add(epsg)
                drivers.add(tile.driver)
                if "34TF" in scene_id:  # the western edge of the swath: empty on a slant
                    edge = (pixels > 0).argmax(axis=1)
                    assert np.ptp(edge) > 5
            with rasterio.open(lake.tile(scene_id, "SCL")) as tile:
                assert tile.res == (1800, 1800)
    assert (zones, drivers) == ({32634, 32635}, {"GTiff", "JP2OpenJPEG"})
    assert len(missing) == 1


def test_a_wheel_builds_with_all_it_needs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"thess_agg_dagster/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    assert shipped <= names
    assert {
        f"thess_agg_dagster/{name}" for name in ("dagster.yaml", "sample_time_serie.csv", "sample_scene.jp2")
    } <= names
    assert not any(name.startswith("thess_agg_dagster_tests") for name in names)
    # Installed elsewhere, it runs from an empty folder.
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
    )
    result = subprocess.run(
        [sys.executable, "-c", "import thess_agg_dagster.__main__ as m; print(m.__file__)"],
        cwd=tmp_path, env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert str(target) in result.stdout, result.stderr
