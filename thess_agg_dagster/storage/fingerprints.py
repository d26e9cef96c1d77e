"""Fingerprints: short texts that show whether a file has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from thess_agg_dagster.storage.paths import NOT_THERE, REQUESTS, File, as_os_errors, is_remote, lake_path

#: How to look up the fingerprint of a file (or of the one with this path, as text), e.g. in a listing made earlier; ``None``: there
#: is no such file.
Fingerprints = Callable[[File | str], str | None]

# Folders whose listings are kept: those of a timestamp's scenes, mosaics and tables, and more.
_LISTINGS = 64

# What identifies a version of an object, by what the stores' libraries call it. In this order for ever: it is part of identities.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "last_modified", "LastModified")


def fingerprint_of(path: File | str) -> str | None:
    """A short text that changes when a file is replaced, or ``None`` if it does not exist.

    Size and modification time or, in a bucket, size and ETag. Raises ``OSError`` if a store does not answer.
    """
    path = lake_path(path) if isinstance(path, str) else path
    with suppress(*NOT_THERE), as_os_errors(path):
        found = path.stat()
        return _fingerprint(cast(Any, found).as_info()) if is_remote(path) else _of_stat(found)
    return None


def exact_fingerprint_of(path: Path) -> list[Any] | None:
    """Changes whenever a file is written or replaced, even if its modification time is preserved; ``None`` if it does
    not exist."""
    if is_remote(path):
        found = fingerprint_of(path)
        return None if found is None else [found, path.stat().st_mtime_ns]
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def etag_of(path: File) -> str | None:
    """The store's identifier for the bytes of an object, or ``None`` for a file in a folder. Raises ``OSError``."""
    if not is_remote(path):
        return None
    with as_os_errors(path):
        return _version(cast(Any, path.stat()).as_info())


def fingerprints_below(folders: Sequence[Path]) -> Fingerprints:
    """:func:`fingerprint_of` for the files in some folders; in a bucket, it uses one listing of each folder, made now,
    and asks once for any other file. Elsewhere a folder is listed when its first file is asked for."""
    folders = list(filter(is_remote, folders))
    if not folders:
        return _fingerprints_in_folders()

    def listing(folder: Path) -> dict[str, str]:
        remote = cast(Any, folder)
        with suppress(FileNotFoundError), as_os_errors(folder):
            objects = remote.fs.find(remote.path, detail=True)
            return {f"{remote.protocol}://{name}": _fingerprint(info) for name, info in objects.items()}
        return {}

    found: dict[str, str | None] = {}
    with ThreadPoolExecutor(REQUESTS) as pool:
        for each in pool.map(listing, folders):
            found |= each
    listed = tuple(f"{folder}/" for folder in folders)
    known = {str(folder) for folder in folders}

    def fingerprint(path: File | str) -> str | None:
        name = str(path)
        if name not in found and not name.startswith(listed) and name not in known:
            found[name] = fingerprint_of(path)
        return found.get(name)

    return fingerprint


def _fingerprints_in_folders() -> Fingerprints:
    """Most of what may lie beside a tile does not: a listing says so for less than a question per name."""

    @lru_cache(_LISTINGS)
    def names(folder: str) -> Collection[str] | None:
        """What is in a folder, or ``None`` if it may not be listed. Case is for the file system to judge."""
        try:
            return {entry.name.casefold() for entry in os.scandir(folder)}
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError:
            return None

    def fingerprint(path: File | str) -> str | None:
        if type(path) is not str and not isinstance(path, Path):
            return fingerprint_of(path)
        text = str(path)
        folder, _, name = text.rpartition("/")
        known = names(folder or "/")
        if known is not None and name.casefold() not in known:
            return None
        with suppress(*NOT_THERE):
            return _of_stat(os.stat(text))  # noqa: PTH116 - a path is made in longer than this takes
        return None

    return fingerprint


def _of_stat(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns}"


def _fingerprint(info: dict[str, Any]) -> str:
    return f"{info.get('size')} {_version(info)}"


def _version(info: dict[str, Any]) -> str:
    return next((str(info[name]).strip('"') for name in _VERSIONS if info.get(name)), "")


def is_fresh(path: File, seconds: float) -> bool:
    """Whether a file changed so recently that it may still be in the making. (What appears in a bucket is whole.)"""
    return not is_remote(path) and 0 <= time.time() - path.stat().st_ctime < seconds
