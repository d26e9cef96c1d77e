"""The project's own files: settings that must agree, a sample that must be true, a wheel that must install."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
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
from thess_agg_dagster.runs import try_out  # noqa: F401  (its commands)
from thess_agg_dagster.sample import AREA, TILES, make_sample_lake
from thess_agg_dagster_tests.processes import invoke

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


def test_who_loads_the_definitions_need_not_import_what_makes_mosaics() -> None:
    """A code server, a sensor, ``dagster definitions validate``: each would wait for as long as for Dagster itself."""
    code = """
        import sys
        import dagster
        before = set(sys.modules)
        import thess_agg_dagster.definitions
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        print(*(name for name in sys.modules if name.startswith("thess_agg_dagster.")))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    packages, ours = map(str.split, done)
    heavy = "numpy rasterio odc pandas matplotlib pystac pystac_client shapely pyproj PIL requests tenacity psutil"
    assert set(heavy.split()) & set(packages) == set()
    assert "thess_agg_dagster.timestamp.build" not in ours


def test_the_command_need_not_import_what_makes_mosaics() -> None:
    """There may be nothing to make; where there is, its workers import this meanwhile (``runs/test_workers.py``)."""
    code = "import sys, thess_agg_dagster.runs.catalogue_command, thess_agg_dagster.runs.try_out; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "rasterio", "odc", "pandas", "matplotlib", "PIL", "requests"} & set(done) == set()


def test_every_room_is_small() -> None:
    """Modules of at most 350 lines, functions of at most 50 beside their docstring."""
    large = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if len(text.splitlines()) > 350:
            large.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                told = node.body[0].end_lineno or 0 if ast.get_docstring(node) else node.body[0].lineno - 1
                if node.end_lineno - told + (node.body[0].lineno - node.lineno) > 50:
                    large.append(f"{path}: {node.name}")
    assert large == []


def test_both_dagster_yaml_hold_the_same_settings() -> None:
    """The root's adds only where state is kept."""
    root = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    packaged = yaml.safe_load((PACKAGE / "dagster.yaml").read_text())
    for key in ("storage", "local_artifact_storage"):
        assert "DATA_LAKE/.dagster" in str(root.pop(key))
    assert root == packaged


def test_both_workspaces_are_the_same() -> None:
    """That of `dagster dev` in this folder, and that of the command `ui`."""
    assert (ROOT / "workspace.yaml").read_text() == (PACKAGE / "workspace.yaml").read_text()


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


def test_what_dagster_shows_of_a_lake_is_not_read_from_the_environment() -> None:
    """Several lakes may be defined in one process: names for one of them are for who works on the lake of the environment."""
    named = re.compile(r"from thess_agg_dagster\.keys import (?!LakeKeys$)", re.M)
    found = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if named.search(path.read_text())}
    assert {path for path in found if path.parent != Path("runs")} == {Path("defs/environment.py")}


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


def test_a_sample_replaces_no_other_lake(tmp_path: Path) -> None:
    tile = tmp_path / "cache" / "s2" / "mine" / "B04.tif"
    tile.parent.mkdir(parents=True)
    tile.write_bytes(b"mine")
    (tmp_path / AREA).write_text("mine, too")
    result = invoke("demo", str(tmp_path))
    assert result.exit_code == 2
    assert "is a lake, but not a sample lake, and stays as it is; give a new folder" in " ".join(result.output.split())
    assert (tile.read_bytes(), (tmp_path / AREA).read_text()) == (b"mine", "mine, too")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Code, settings and the sample; no test, and nothing that lies about."""
    names = set(zipfile.ZipFile(wheel).namelist())
    release = f"thess_agg_dagster-{thess_agg_dagster.__version__}"
    assert wheel.name == f"{release}-py3-none-any.whl"
    info = {name for name in names if name.startswith(f"{release}.dist-info/")}
    code = {f"thess_agg_dagster/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    others = {"py.typed", "dagster.yaml", "workspace.yaml", "sample_time_serie.csv", "sample_scene.jp2"}
    assert names - info == code | {f"thess_agg_dagster/{name}" for name in others}
    assert {name.partition("/")[2] for name in info} >= {"METADATA", "entry_points.txt", "licenses/LICENSE"}


def test_an_installed_wheel_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """By its console script. Of this environment it has what we depend on."""
    target, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile",
         "--target", str(target), str(wheel)],
        check=True,
    )  # fmt: skip
    empty.mkdir()
    script = target / "bin" / "thess-agg-dagster"
    code = f"""if True:
        import atexit, runpy, sys
        atexit.register(lambda: print(*{{m.__file__ for n, m in sys.modules.items() if n.startswith("thess_agg_dagster")}}))
        sys.argv = ["thess-agg-dagster", "demo", "--help"]
        runpy.run_path({str(script)!r}, run_name="__main__")"""
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    usage, *_, imported = result.stdout.splitlines()
    assert usage.startswith("Usage: thess-agg-dagster demo")
    assert len(imported.split()) > 50
    assert all(path.startswith(f"{target}/thess_agg_dagster/") for path in imported.split())
    assert list(empty.iterdir()) == []


def test_what_is_imported_is_declared() -> None:
    """What others happen to bring along may be gone with their next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    declared = {_canonical(re.split(r"[^\w.-]", each)[0]) for each in asked}
    providers = packages_distributions()
    imported = {name.partition(".")[0] for path in PACKAGE.rglob("*.py") for name in _imported(path)}
    imported -= sys.stdlib_module_names | {"thess_agg_dagster"}
    here = {name: set(map(_canonical, providers[name])) for name in imported if name in providers}
    assert {"dagster", "rasterio"} <= set(here)
    assert {name for name, distributions in here.items() if not declared & distributions} == set()


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
