"""What appears in the lake appears whole, and what was there stays until then."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from upath import UPath

from thess_agg_dagster.lake import publish
from thess_agg_dagster.lake.publish import (
    alone,
    exchange,
    keep_aside,
    local_folder,
    remove_abandoned,
    staged_file,
    staged_folder,
)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def nothing_is_left(folder: Path, target: Path) -> bool:
    return sorted(folder.rglob("*")) == sorted([folder / ".staging", target, *target.iterdir()])


@pytest.fixture(params=["exchange", "two renames"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(publish, "exchange", lambda new, target: False)


@pytest.mark.usefixtures("_way")
def test_a_folder_appears_and_is_replaced_whole(tmp_path: Path) -> None:
    target, staging = tmp_path / "2023", tmp_path / ".staging"
    for text in ("old", "new"):
        with staged_folder(target, staging, "manifest.json") as folder:
            (folder / "B04.tif").write_text(text)
            (folder / f"only-{text}").write_text(text)
        assert contents(target) == {"B04.tif": text, f"only-{text}": text}
    assert nothing_is_left(tmp_path, target)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target, staging = tmp_path / "2023", tmp_path / ".staging"
    with staged_folder(target, staging, "manifest.json") as folder:
        (folder / "B04.tif").write_text("old")
    with pytest.raises(error), staged_folder(target, staging, "manifest.json") as folder:
        (folder / "B04.tif").write_text("half")
        raise error
    assert contents(target) == {"B04.tif": "old"}
    assert nothing_is_left(tmp_path, target)


def test_a_reader_always_finds_one_whole_set(tmp_path: Path) -> None:
    """While the folder is replaced 60 times, a reader that holds it open never misses a file or mixes two sets."""
    target, staging = tmp_path / "2023", tmp_path / ".staging"
    stop, reads = threading.Event(), 0
    faults: list[object] = []

    def publish_once(text: str) -> None:
        with staged_folder(target, staging, "manifest.json") as folder:
            for band in ("B04", "B08"):
                (folder / band).write_text(text)

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            handle = os.open(target, os.O_RDONLY)
            try:
                files = [os.open(band, os.O_RDONLY, dir_fd=handle) for band in ("B04", "B08")]
                found = {os.read(file, 100) for file in files}
                for file in files:
                    os.close(file)
                if len(found) != 1:
                    faults.append(found)
            except FileNotFoundError:
                # The set was replaced and removed between opening the folder and its files: the name must still be there.
                if not target.is_dir():
                    faults.append("missing")
            finally:
                os.close(handle)
            reads += 1

    publish_once("0")
    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        publish_once(str(number))
    stop.set()
    reader.join()
    assert faults == []
    assert reads > 100


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "is").read_text() == "b"
    assert (tmp_path / "b" / "is").read_text() == "a"


def test_exchange_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="No such file") as caught:
        exchange(tmp_path / "a", tmp_path / "missing")
    assert caught.value.errno == errno.ENOENT


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "tables" / "status.csv"
    with staged_file(target) as file:
        file.write_text("old")
    with pytest.raises(RuntimeError), staged_file(target) as file:
        file.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with staged_file(target) as file:
        file.write_text("new")
    assert contents(target.parent) == {"status.csv": "new"}
    assert target.stat().st_mode & 0o777 == 0o644


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    """A process is killed while it fills a staged folder; another one goes on filling its own."""
    staging = tmp_path / ".staging"
    script = (
        "import sys, time; from pathlib import Path; from thess_agg_dagster.lake.publish import staged_folder\n"
        "with staged_folder(Path(sys.argv[1]), Path(sys.argv[2]), 'manifest.json') as folder:\n"
        "    (folder / 'half').write_text('half'); print(folder, flush=True); time.sleep(60)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name), str(staging)], stdout=subprocess.PIPE, text=True
        )
        for name in ("dead", "alive")
    ]
    dead, alive = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
    try:
        processes[0].kill()
        processes[0].wait()
        assert dead.exists()
        with staged_folder(tmp_path / "another", staging, "manifest.json"):
            assert not dead.exists()
            assert (alive / "half").exists()
        remove_abandoned(staging)
        assert (alive / "half").exists()
    finally:
        processes[1].kill()
        processes[1].wait()
    remove_abandoned(staging)
    assert list(staging.iterdir()) == []


def test_many_publish_one_target_at_once(tmp_path: Path) -> None:
    """Whoever comes last wins, whole; nobody fails, nothing is left over."""
    target, staging = tmp_path / "2023", tmp_path / ".staging"
    errors: list[BaseException] = []

    def publish_often(name: str) -> None:
        try:
            for number in range(40):
                with staged_folder(target, staging, "manifest.json") as folder:
                    for band in ("B04", "B08"):
                        (folder / band).write_text(f"{name}{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publish_often, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(contents(target).values())) == 1
    assert nothing_is_left(tmp_path, target)


def test_many_begin_a_lake_at_once(tmp_path: Path) -> None:
    """None of them finds a folder there, and all make them."""
    together = threading.Barrier(8)

    def publish_one(number: int) -> None:
        for lake in range(10):
            root = tmp_path / str(lake) / "data_raw" / "aggregated"
            together.wait(20)
            try:
                with staged_folder(root / str(number), root / ".staging", "manifest.json") as folder:
                    (folder / "B04.tif").write_text(str(number))
            except BaseException:
                together.abort()
                raise

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish_one, range(8)))
    for lake in range(10):
        root = tmp_path / str(lake) / "data_raw" / "aggregated"
        assert [(root / str(number) / "B04.tif").read_text() for number in range(8)] == [str(n) for n in range(8)]


def test_what_is_published_may_be_read_by_everyone(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "2023", tmp_path / ".staging", "manifest.json"):
        pass
    assert stat.S_IMODE((tmp_path / "2023").stat().st_mode) == 0o755


def test_a_file_where_a_folder_is_to_be_stays(tmp_path: Path) -> None:
    (tmp_path / "2023").write_text("mine")
    with pytest.raises(NotADirectoryError), staged_folder(tmp_path / "2023", tmp_path / ".staging", "manifest.json"):
        pass
    assert (tmp_path / "2023").read_text() == "mine"
    assert list((tmp_path / ".staging").iterdir()) == []


def test_the_old_folder_comes_back_where_the_new_one_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that cannot exchange, somebody clears the staging folder between the two renames."""
    target, staging = tmp_path / "2023", tmp_path / ".staging"
    with staged_folder(target, staging, "manifest.json") as folder:
        (folder / "B04.tif").write_text("old")

    def cleared(new: Path, _: Path) -> bool:
        (new / "B04.tif").unlink()
        new.rmdir()
        return False

    monkeypatch.setattr(publish, "exchange", cleared)
    with pytest.raises(FileNotFoundError), staged_folder(target, staging, "manifest.json") as folder:
        (folder / "B04.tif").write_text("new")
    assert contents(target) == {"B04.tif": "old"}
    assert nothing_is_left(tmp_path, target)


def test_folders_named_from_where_one_stands_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(name).mkdir()
        (Path(name) / "is").write_text(name)
    assert exchange(Path("a"), Path("b"))
    assert Path("a/is").read_text() == "b"


def test_a_folder_and_one_in_it_cannot_be_exchanged(tmp_path: Path) -> None:
    """For which the system gives the same error as for a file system that cannot exchange at all."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert exchange(tmp_path / "a", tmp_path / "a" / "b") is False
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(("system", "exchanged"), [("darwin", True), ("aix", False), ("zos", False)])
def test_other_systems_exchange_in_their_way_or_not_at_all(
    system: str, exchanged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(As macOS documents renamex_np: RENAME_SWAP is 2. Its part is played by Linux's call of the same effect.)"""
    linux = ctypes.CDLL(None, use_errno=True)

    class Libc:
        """A C library that has macOS's function, and none of Linux's."""

        def __init__(self, name: None, use_errno: bool) -> None:
            assert use_errno

        @staticmethod
        def renamex_np(a: bytes, b: bytes, flags: int) -> int:
            assert flags == 2
            return int(linux.renameat2(-100, a, -100, b, 2))

    class Older:
        """One that has neither."""

        def __init__(self, name: None, use_errno: bool) -> None:
            pass

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    monkeypatch.setattr(ctypes, "CDLL", Libc)
    monkeypatch.setattr(sys, "platform", system)
    assert exchange(tmp_path / "a", tmp_path / "b") is exchanged
    assert (tmp_path / "a" / "is").read_text() == ("b" if exchanged else "a")
    monkeypatch.setattr(ctypes, "CDLL", Older)
    assert exchange(tmp_path / "a", tmp_path / "b") is False
    monkeypatch.setattr(sys, "platform", "linux")
    assert exchange(tmp_path / "a", tmp_path / "b") is False


@pytest.mark.parametrize(
    ("kind", "code", "published"),
    [
        ("folder", errno.EINVAL, True),  # some network file systems sync no folders
        ("folder", errno.EIO, False),
        ("folder", errno.ENOSPC, False),
        ("file", errno.EINVAL, False),
        ("file", errno.EIO, False),
    ],
)
def test_what_the_disk_does_not_take_is_not_published(
    kind: str, code: int, published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, staging = tmp_path / "2023", tmp_path / ".staging"
    with staged_folder(target, staging, "manifest.json") as folder:
        (folder / "B04.tif").write_text("old")
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (kind == "folder"):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    expected = nullcontext() if published else pytest.raises(OSError, match=os.strerror(code))
    with expected, staged_folder(target, staging, "manifest.json") as folder:
        (folder / "B04.tif").write_text("new")
    assert contents(target) == {"B04.tif": "new" if published else "old"}
    assert nothing_is_left(tmp_path, target)


def test_a_file_system_without_locks_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nobody can tell who is dead, so what is under construction stays."""

    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".staging" / "2023-others").mkdir(parents=True)
    with staged_folder(tmp_path / "2023", tmp_path / ".staging", "manifest.json") as folder:
        (folder / "B04.tif").write_text("new")
    with alone(tmp_path / "told.json"), staged_file(tmp_path / "told.json") as file:
        file.write_text("told")
    remove_abandoned(tmp_path / ".staging")
    assert contents(tmp_path / "2023") == {"B04.tif": "new"}
    assert (tmp_path / "told.json").read_text() == "told"
    assert [path.name for path in (tmp_path / ".staging").iterdir()] == ["2023-others"]


def test_a_staged_file_clears_up_after_its_own_kind_only(tmp_path: Path) -> None:
    """Its folder is full of what belongs to others, who hold no locks."""
    for name in (".a[1].csv-dead", ".a1.csv-dead", ".b.csv-dead", "a[1].csv-mine", "mosaics"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with staged_file(tmp_path / "a[1].csv") as file:
        file.write_text("new")
    names = [".a1.csv-dead", ".b.csv-dead", "a[1].csv", "a[1].csv-mine", "mosaics"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name / "half").exists() for name in names if name != "a[1].csv")


def test_what_is_no_folder_does_not_stop_the_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, a socket, and a link to what is gone lie among the leftovers."""
    staging = tmp_path / ".staging"
    staging.mkdir()
    for number in range(6):
        (staging / f"{number}-file").touch()
        (staging / f"{number}-dead").mkdir()
        (staging / f"{number}-link").symlink_to(tmp_path / "gone")
    monkeypatch.chdir(staging)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    remove_abandoned(staging)
    assert sorted(path.name for path in staging.iterdir()) == [
        *sorted(f"{number}-{kind}" for number in range(6) for kind in ("file", "link")),
        "socket",
    ]


def test_nothing_is_made_where_there_is_nothing_to_remove(tmp_path: Path) -> None:
    remove_abandoned(tmp_path / "lake" / ".staging")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [None, RuntimeError])
def test_whoever_holds_a_lock_is_alone(tmp_path: Path, end: type[Exception] | None) -> None:
    path, entered = tmp_path / "state" / "told.json", threading.Event()

    def second() -> None:
        with alone(path):
            entered.set()

    thread = threading.Thread(target=second)
    before = os.umask(0o022)
    try:
        with alone(path), alone(tmp_path / "state" / "another"):
            thread.start()
            assert not entered.wait(0.1)
            if end:
                raise end
    except RuntimeError:
        pass
    finally:
        os.umask(before)
    assert entered.wait(20)
    thread.join()
    assert sorted(each.name for each in path.parent.iterdir()) == [".another.lock", ".told.json.lock"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o644}


def test_a_kept_file_has_two_names(tmp_path: Path) -> None:
    (tmp_path / "B04.tif").write_text("broken")
    keep_aside(tmp_path / "B04.tif", "B04.tif.broken")
    with staged_file(tmp_path / "B04.tif") as file:
        file.write_text("good")
    keep_aside(tmp_path / "missing.tif", "missing.tif.broken")
    assert contents(tmp_path) == {"B04.tif": "good", "B04.tif.broken": "broken"}


# --- buckets (one in memory; what a real store does in between is test_bucket.py's) ---------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of a bucket; local files under construction are in ``tmp_path``."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return UPath(f"memory://bucket-{uuid.uuid4().hex}/lake")


def objects(bucket: Any) -> dict[str, str]:
    return {name.removeprefix(f"{bucket.path}/"): bucket.fs.cat(name).decode() for name in bucket.fs.find(bucket.path)}


def test_in_a_bucket_files_appear_when_they_are_whole(bucket: Any, tmp_path: Path) -> None:
    target = cast(Path, bucket / "tables" / "status.csv")
    with staged_file(target) as file:
        file.write_text("old")
        assert objects(bucket) == {}
    with pytest.raises(RuntimeError), staged_file(target) as file:
        file.write_text("half")
        raise RuntimeError
    assert objects(bucket) == {"tables/status.csv": "old"}
    keep_aside(target, "status.csv.broken")
    keep_aside(cast(Path, bucket / "missing"), "missing.broken")
    with staged_file(target) as file:
        file.write_text("new")
    assert objects(bucket) == {"tables/status.csv": "new", "tables/status.csv.broken": "old"}
    assert [list(scratch.iterdir()) for scratch in tmp_path.iterdir()] == [[]]


def test_in_a_bucket_a_manifest_is_put_next_to_the_folder_of_a_run(bucket: Any, tmp_path: Path) -> None:
    target = cast(Path, bucket / "2023" / "20230202T092109000000-0123456789ab")
    with staged_folder(target, cast(Path, bucket / ".staging"), "manifest.json") as folder:
        (folder / "B04.tif").write_text("pixels")
        (folder / "manifest.json").write_text("{}")
    assert objects(bucket) == {"2023/manifest.json": "{}", f"2023/{target.name}/B04.tif": "pixels"}
    assert [list(scratch.iterdir()) for scratch in tmp_path.iterdir()] == [[]]


def test_scratch_of_a_bucket_is_its_owners_alone(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    assert local_folder(tmp_path / "here") == tmp_path / "here"
    scratch = local_folder(bucket)
    assert scratch == tmp_path / f"thess-agg-dagster-{owner}" == local_folder(bucket / "below")
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    for another in (owner - 1, owner + 1):
        monkeypatch.setattr(os, "getuid", lambda another=another: another)
        with pytest.raises(PermissionError, match="belongs to another user; set TMPDIR") as caught:
            local_folder(bucket)
        assert caught.value.filename == str(tmp_path / f"thess-agg-dagster-{another}")
