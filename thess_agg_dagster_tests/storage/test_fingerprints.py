"""Fingerprints of many files of folders, which are told from listings, are those of the files one by one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from thess_agg_dagster.storage.fingerprints import Fingerprints, fingerprint_of, fingerprints_below


def a_file(path: Path) -> None:
    path.write_text("pixels")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def a_link_to_a_file(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("pixels elsewhere")
    path.symlink_to(target)


def in_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("not a folder")


def without_its_folder(path: Path) -> None:
    path.parent.rmdir()


def nothing(path: Path) -> None:
    """Nothing is there."""


WAYS = [a_file, a_link_to_nothing, a_link_to_a_file, in_a_file, without_its_folder, nothing, Path.mkdir, os.mkfifo]


@pytest.mark.parametrize("way", WAYS)
def test_a_listing_tells_what_a_file_tells(way: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    way(path := tmp_path / "scene" / "B04.tif")
    found = fingerprints_below([tmp_path])
    for asked in (path, path.with_name("B04.tif.md5"), path.with_name("b04.tif"), path.parent, path / "in it"):
        assert found(asked) == fingerprint_of(asked)


def test_a_folder_is_listed_once_for_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    found = fingerprints_below([tmp_path])
    assert found(tmp_path / "there") == fingerprint_of(tmp_path / "there")

    def must_not(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", must_not)
        patch.setattr(os, "stat", must_not)
        assert [found(tmp_path / name) for name in ("missing", "there.md5")] == [None, None]


def test_a_file_that_is_replaced_is_told_at_once(tmp_path: Path) -> None:
    (path := tmp_path / "B04.tif").write_text("pixels")
    found = fingerprints_below([tmp_path])
    before = found(path)
    path.write_text("other pixels")
    assert found(path) == fingerprint_of(path) != before
    path.unlink()
    assert found(path) is None


def test_what_may_not_be_listed_is_asked_for(tmp_path: Path) -> None:
    """A folder with the right to enter it, but not to read its names; root has every right."""
    (path := tmp_path / "B04.tif").touch()

    def forbidden(folder: str) -> list[str]:
        raise PermissionError(folder)

    found: Fingerprints = fingerprints_below([tmp_path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", forbidden)
        assert found(path) == fingerprint_of(path) is not None
        assert found(path.with_name("missing")) is None


def test_a_file_system_that_takes_no_notice_of_case(tmp_path: Path) -> None:
    """``b04.tif`` is found as ``B04.tif`` where the file system finds it so."""
    (path := tmp_path / "b04.tif").touch()
    expected, stat = fingerprint_of(path), os.stat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", lambda asked, **options: stat(str(asked).replace("B04", "b04"), **options))
        assert fingerprints_below([tmp_path])(tmp_path / "B04.tif") == expected
