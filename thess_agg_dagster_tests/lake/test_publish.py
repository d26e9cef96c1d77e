"""What appears in the lake appears whole, and what was there stays until then."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from thess_agg_dagster.lake import publish
from thess_agg_dagster.lake.publish import exchange, remove_abandoned, staged_file, staged_folder


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
