"""A fault at every system call on the lake: of a publish, of a table, of a tile that is fetched again.

Each is done once for every call that it makes below the lake's root, with that call failing (strace injects the error).
After each, what was there is untouched or the new stands whole, what became of it is told, and the next one leaves no
scratch behind. ``make soak`` does all of them; every twelfth runs in ``make test-all``.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.download_policy import DownloadPolicy
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import staged_file
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.timestamp.plan import plan_timestamp
from thess_agg_dagster.timestamp.refetch import Refetched, refetch
from thess_agg_dagster_tests.conftest import FIRST, scene
from thess_agg_dagster_tests.disk import Tree, calls_with_paths, traced, tree_of
from thess_agg_dagster_tests.rasters import noise, write_tile

pytestmark = pytest.mark.strace

_SAMPLE = 12
# What each call may fail with, beside EIO. (Interrupted calls are legal on network file systems.)
_ERRORS = {
    "write": ("ENOSPC", "EINTR"),
    "pwrite64": ("ENOSPC", "EINTR"),
    "openat": ("ENOSPC", "EINTR"),
    "fsync": ("ENOSPC", "EINTR"),
    "read": ("EINTR",),
    "pread64": ("EINTR",),
    "mkdir": ("ENOSPC",),
}


def faults(
    work: Callable[[], object], reset: Callable[[], object], root: Path, every: int
) -> Iterator[tuple[str, int]]:
    """Do ``work`` with one call failing, again and again, each time after ``reset``; yields which, and the exit status."""

    def with_the_same_names() -> None:
        tempfile._get_candidate_names = lambda: (f"x{number}" for number in count())  # type: ignore[attr-defined]
        work()

    reset()
    code, log = traced(with_the_same_names, "-y", "-e", "trace=%file,%desc")
    assert code == 0
    seen: Counter[tuple[str, str, str]] = Counter()
    cases: dict[tuple[str, str, int, str], None] = {}
    for thread, name, path in calls_with_paths(log, root):
        seen[thread, name, path] += 1
        for error in ("EIO", *_ERRORS.get(name, ())):
            cases[name, path, seen[thread, name, path], error] = None
    assert len(cases) > 20
    for name, path, when, error in list(cases)[::every]:
        reset()
        inject = ["-P", path, "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={when}"]
        code, _ = traced(with_the_same_names, *inject)
        yield f"{error} at {name} {path}, {when}.", code


@pytest.fixture(params=["sample", pytest.param("all", marks=pytest.mark.soak)])
def every(request: pytest.FixtureRequest) -> int:
    return 1 if request.param == "all" else _SAMPLE


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    """Two tiles."""
    found = DataLake(tmp_path / "lake")
    for tile in ("T34TFL", "T34TFK"):
        write_tile(found.tile(scene(FIRST, tile), "B04"), noise(len(tile), (64, 64)))
    return found


def scratch(lake: DataLake) -> list[Path]:
    """What is half-made."""
    return [path for path in lake.root.rglob("*") if path.parent.name == ".staging" or path.name.startswith(".B04")]


def test_a_publish(lake: DataLake, tmp_path: Path, every: int) -> None:
    told = tmp_path / "told"
    acquisition = Acquisition(FIRST, (scene(FIRST, "T34TFL"), scene(FIRST, "T34TFK")))

    def publish(method: str) -> None:
        params: dict[str, Any] = {"bands": ["B04"], "merge_method": method, "threads": 1, "stac": False}
        try:
            plan = plan_timestamp(acquisition, lake, TimestampsAggregationParams(**params))
            outcome = DataLakeIOManager(data_lake=str(lake.root)).publish(plan) if plan.mosaics else None
            found = (
                (outcome.attempt.status, outcome.attempt.message) if outcome else ("failed_plan", str(plan.problems))
            )
        except Exception as error:  # which the asset turns into an attempt with its text
            found = "exception", f"{type(error).__name__}: {error}"
        told.write_text(json.dumps(found))

    target = lake.timestamp_folder(FIRST)
    old: Tree = {}

    def reset() -> None:
        nonlocal old
        publish("first")
        old = tree_of(target)

    tried: Counter[str] = Counter()
    for what, code in faults(lambda: publish("max"), reset, lake.root, every):
        assert code == 0, what
        status, message = json.loads(told.read_text())
        now = tree_of(target)
        tried[status if now == old else f"{status}, new"] += 1
        if now != old:  # whole: all of it is there, and one attempt's
            manifest = json.loads((target / "manifest.json").read_text())
            assert manifest["parameters"] != json.loads(bytes(old["manifest.json"] or b""))["parameters"], what
            assert set(now) == set(old), what
            assert (target / "B04.tif").stat().st_size == manifest["outputs"][0]["bytes"], what
        else:
            assert status != "success", what
        assert status == "success" or message, what
        publish("first")
        assert json.loads(told.read_text())[0] == "success", what
        assert scratch(lake) == [], what
    print(f"\n{tried.total()} faults of a publish: {dict(tried)}")


def test_a_table(lake: DataLake, every: int) -> None:
    table = lake.audit_table("status")

    def write(text: str) -> None:
        with staged_file(table) as file:
            file.write_text(text)

    tried: Counter[str] = Counter()
    for what, code in faults(lambda: write("new"), lambda: write("old"), lake.root, every):
        assert table.read_text() in ("old", "new"), what
        assert code != 0 or table.read_text() == "new", what
        tried[table.read_text()] += 1
        write("old")
        assert [path.name for path in lake.tables_folder.iterdir()] == [table.name], what
    print(f"\n{tried.total()} faults of a table: {dict(tried)}")


def test_a_tile_that_is_fetched_again(lake: DataLake, tmp_path: Path, every: int) -> None:
    tile = lake.tile(scene(FIRST, "T34TFL"), "B04")
    good = tile.read_bytes()
    source = tmp_path / "archive" / "B04.tif"
    source.parent.mkdir()
    source.write_bytes(good)
    item = lake.scene_item(scene(FIRST, "T34TFL"))
    item.parent.mkdir()
    item.write_text(json.dumps({"assets": {"B04": {"href": source.as_uri()}}}))
    policy = DownloadPolicy(allowed=(source.parent.as_uri(),), connections=1, attempts=1)
    told = tmp_path / "told"
    broken = good[:-300]
    wanted = [(scene(FIRST, "T34TFL"), "B04")]

    def fetch() -> None:
        outcomes = refetch(wanted, lake, Downloader(policy), deep=True)
        told.write_text("; ".join("" if isinstance(each, Refetched) else each for each in outcomes.values()))

    def reset() -> None:
        for path in tile.parent.glob("B04.tif.*"):
            path.unlink()
        tile.write_bytes(broken)

    tried: Counter[str] = Counter()
    for what, code in faults(fetch, reset, lake.root, every):
        assert code == 0, what
        kept = [path.read_bytes() for path in tile.parent.glob("B04.tif.broken-*")]
        now = tile.read_bytes()
        assert now == broken or (now == good and broken in kept), what
        assert now == good or told.read_text() or not kept, what
        tried["new" if now == good else "old"] += 1
        tile.write_bytes(broken)  # whatever became of it
        fetch()
        assert tile.read_bytes() == good, what
        assert scratch(lake) == [], what
    print(f"\n{tried.total()} faults of a tile: {dict(tried)}")
