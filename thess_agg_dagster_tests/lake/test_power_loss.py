"""The power goes: after every prefix of a publish, and whatever of the rest the disk had, old or new stands there, whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rasterio
import xxhash

from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.download_policy import DownloadPolicy
from thess_agg_dagster.lake.publish import staged_file, staged_folder
from thess_agg_dagster.timestamp.refetch import Refetched, refetch
from thess_agg_dagster_tests.conftest import FIRST, SmallLake, scene
from thess_agg_dagster_tests.disk import CALLS, Disk, Sync, Tree, traced, tree_of, write_tree
from thess_agg_dagster_tests.rasters import noise

pytestmark = pytest.mark.strace


def recorded(root: Path, work: Callable[[], object]) -> Disk:
    """The folder as it stood, and what ``work`` did to it; what the model says of the end is what stands there."""
    before = tree_of(root)
    code, log = traced(work, "-e", f"trace={CALLS}")
    assert code == 0
    disk = Disk.recorded(root, before, log)
    assert disk.at_the_end() == tree_of(root)
    return disk


def part(tree: Tree, folder: str) -> Tree:
    """What a tree holds below a folder; nothing, where that is not there."""
    return {path.removeprefix(folder): data for path, data in tree.items() if path.startswith(folder)}


def distinct(disk: Disk, folder: str) -> tuple[int, list[Tree], list[Tree]]:
    """How many states were tried, what they hold below a folder (each once), and what they hold after the last call."""
    tried = 0
    seen: dict[int, Tree] = {}
    last: dict[int, Tree] = {}
    for length, tree in disk.states():
        tried += 1
        found = part(tree, folder)
        key = hash(tuple(sorted(found.items(), key=lambda each: each[0])))
        seen.setdefault(key, found)
        if length == len(disk.operations):
            last.setdefault(key, found)
    return tried, list(seen.values()), list(last.values())


def is_whole(tree: Tree, timestamp: str, folder: Path) -> bool:
    """The product's own reader opens every mosaic, and every checksum of the manifest holds."""
    lake = DataLakeIOManager(data_lake=str(folder))
    where = lake.lake.timestamp_folder(timestamp)
    write_tree(tree, where)
    for path in lake.mosaics(timestamp).paths.values():
        with rasterio.open(path) as mosaic:
            mosaic.read(1)
    manifest = json.loads((where / "manifest.json").read_text())
    return all(
        each["checksum"] == "xxh128:" + xxhash.xxh3_128((where / each["file"]).read_bytes()).hexdigest()
        for each in manifest["outputs"]
    )


@pytest.fixture
def ready(small_lake: SmallLake) -> SmallLake:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    small_lake.read_list()
    return small_lake


def test_a_timestamp_is_old_or_new(ready: SmallLake, tmp_path: Path) -> None:
    """First where there was none, then in place of another."""
    folder = f"data_raw/aggregated/{ready.lake.timestamp_folder(FIRST).name}/"
    old: Tree = {}
    ways: list[dict[str, Any]] = [{}, {"merge_method": "max", "stac": True, "format": "cog"}]
    for number, options in enumerate(ways):
        disk = recorded(ready.root, partial(ready.aggregate, FIRST, **options))
        new = part(tree_of(ready.root), folder)
        assert new != old
        tried, seen, last = distinct(disk, folder)
        print(f"\n{len(disk.operations)} operations of a timestamp, {tried} states, {len(seen)} different ones")
        assert all(each in ([old, new] if old else [{}, new]) for each in seen)
        assert last == [new]  # what was reported is on the disk
        assert len(seen) == 2
        assert is_whole(new, FIRST, tmp_path / f"rebuilt-{number}")
        old = new


def test_tables_are_old_or_new(ready: SmallLake) -> None:
    ready.aggregate(FIRST, stac=True)
    ready.tables()
    names = [path.name for path in ready.lake.tables_folder.iterdir()]
    before = part(tree_of(ready.root), "tables/")
    ready.aggregate(FIRST, stac=True, merge_method="max")
    disk = recorded(ready.root, ready.tables)
    after = part(tree_of(ready.root), "tables/")
    tried, seen, last = distinct(disk, "tables/")
    print(f"\n{len(disk.operations)} operations of a report, {tried} states, {len(seen)} different ones")
    assert all(each.get(name) in (before[name], after[name]) for each in seen for name in names)
    assert all({name: each[name] for name in names} == after for each in last)


def test_a_tile_is_old_or_new_and_the_broken_one_is_kept(ready: SmallLake, tmp_path: Path) -> None:
    scene_id = scene(FIRST, "T34TFL")
    tile = ready.lake.tile(scene_id, "B08")
    good = tile.read_bytes()
    source = tmp_path / "archive" / "B08.tif"
    source.parent.mkdir()
    source.write_bytes(good)
    broken = good[:-300]
    tile.write_bytes(broken)
    item = ready.lake.scene_item(scene_id)
    item.parent.mkdir()
    item.write_text(json.dumps({"assets": {"B08": {"href": source.as_uri()}}}))
    policy, lake = DownloadPolicy(allowed=(source.parent.as_uri(),)), ready.lake

    def fetch() -> None:
        (outcome,) = refetch([(scene_id, "B08")], lake, Downloader(policy), deep=True).values()
        assert isinstance(outcome, Refetched), outcome

    disk = recorded(ready.root, fetch)
    folder = f"cache/s2/{scene_id}/"
    tried, seen, last = distinct(disk, folder)
    print(f"\n{len(disk.operations)} operations of a tile, {tried} states, {len(seen)} different ones")
    for each in seen:
        kept = [data for path, data in each.items() if path.startswith("B08.tif.broken-")]
        assert each["B08.tif"] == broken or (each["B08.tif"] == good and kept == [broken])
        record = each.get("B08.tif.fetched.json")
        assert record is None or (isinstance(record, bytes) and json.loads(record)["bytes"] == len(good))
    assert all(each["B08.tif"] == good and "B08.tif.fetched.json" in each for each in last)


@pytest.mark.parametrize("which", ["folder", "file"])
def test_without_syncs_the_model_finds_halves(tmp_path: Path, which: str) -> None:
    """That it tells good from bad: the same calls, the syncs left out."""
    root = tmp_path / "lake"
    root.mkdir()

    def work() -> None:
        if which == "file":
            with staged_file(root / "all" / "table.csv") as file:
                file.write_bytes(bytes(noise(1, (10, 100))))
        else:
            with staged_folder(root / "all" / "day", root / "all" / ".staging", "manifest.json") as folder:
                (folder / "B04.tif").write_bytes(bytes(noise(1, (10, 100))))

    disk = recorded(root, work)
    new = part(tree_of(root), "all/")
    name = "table.csv" if which == "file" else "day/B04.tif"
    _, seen, last = distinct(disk, "all/")
    assert {each.get(name) for each in seen} == {None, new[name]}
    assert {each.get(name) for each in last} == {new[name]}
    disk.operations = [operation for operation in disk.operations if not isinstance(operation, Sync)]
    _, seen, last = distinct(disk, "all/")
    assert {b"", new[name], None} <= {each.get(name) for each in seen}
    assert {None, b""} & {each.get(name) for each in last}


def test_a_number_may_be_given_anew_before_its_close_has_ended() -> None:
    """As strace tells of threads on a busy machine; the sync of the new file was lost."""
    path = "".join(f"\\x{byte:02x}" for byte in b"/lake/a")
    lines = (
        "1 close(7 <unfinished ...>",
        f'2 openat(AT_FDCWD, "{path}", O_RDONLY) = 7',
        "1 <... close resumed>) = 0",
        "2 fsync(7) = 0",
    )
    disk = Disk.recorded(Path("/lake"), {"a": b"1"}, "\n".join(lines))
    assert [type(each) for each in disk.operations] == [Sync]
