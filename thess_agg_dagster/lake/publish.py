"""Publishing: new files appear completely or not at all; until then, the old ones stay.

Folders are published by a rename, buckets by an upload from a local scratch folder. This survives power cuts: a file's
bytes and a folder's names are synced to disk before the rename that publishes them, and the rename before success is
reported.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from thess_agg_dagster.lake.bucket import publish_run
from thess_agg_dagster.storage.paths import copy_object, is_remote, upload

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux renameat2(2)
_RENAME_SWAP = 2  # macOS renamex_np(2)
# Files that are synced at once: they wait for the disk, which takes what waits together.
_SYNCS = 8


@contextmanager
def staged_folder(target: Path, staging: Path, last: str, replaces: str | None = None) -> Iterator[Path]:
    """A new local folder to fill; it becomes ``target`` if the block succeeds, and is removed otherwise.

    ``staging`` must be on the file system of ``target``, unless that is in a bucket. An older ``target`` is replaced in
    one step. A bucket has no such step; there, ``target`` is a folder of this run's own, and the file called ``last``
    is put next to it and replaces its version ``replaces``: see :mod:`~thess_agg_dagster.lake.bucket`. Every staged
    folder is locked by the process that fills it; those of dead processes are removed along the way. Raises ``OSError``
    and, in a bucket, :class:`ChangedError` if another run has published in the meantime.
    """
    staging = local_folder(staging)
    with _own_folder(staging, f"{target.name}-") as folder:
        yield folder
        if is_remote(target):
            publish_run(folder, target, last, replaces)
            return
        with ThreadPoolExecutor(_SYNCS) as pool:
            list(pool.map(sync, folder.iterdir()))
        sync(folder)
        with _locked(staging):
            _replace_folder(folder, target)
            sync(target.parent)
            sync(staging)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A new local file to fill; it becomes ``target`` if the block succeeds, and is removed otherwise."""
    with _own_folder(local_folder(target.parent), f".{target.name}-") as folder:
        file = folder / target.name
        file.touch()
        yield file
        if is_remote(target):
            upload(file, target)
            return
        file.chmod(0o644)
        sync(file)
        os.replace(file, target)
        sync(target.parent)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file's lock, for as long as it is read, acted upon and replaced; others on this machine wait. Raises
    ``OSError``."""
    folder = local_folder(path.parent)
    _make_folder(folder)
    handle = os.open(folder / f".{path.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_abandoned(staging: Path) -> None:
    """Remove the staged folders of dead processes; those of living ones stay."""
    staging = local_folder(staging)
    if staging.is_dir():
        with _locked(staging):
            _remove_abandoned(staging, "")


def keep_aside(path: Path, name: str) -> None:
    """Give an existing file a second name in the same folder. Raises ``OSError``."""
    if is_remote(path):
        copy_object(path, path.with_name(name))
    else:
        with suppress(FileNotFoundError):
            os.link(path, path.with_name(name))
            sync(path)  # somebody else wrote it, and may not have
            sync(path.parent)


def local_folder(folder: Path) -> Path:
    """The local folder for files under construction: the folder itself or, for a bucket, one for temporary files.

    Raises ``PermissionError`` if that belongs to another user, who could change what is uploaded.
    """
    if not is_remote(folder):
        return folder
    own = Path(tempfile.gettempdir()) / f"thess-agg-dagster-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to another user; set TMPDIR to a folder of your own", str(own))
    return own


@contextmanager
def _own_folder(staging: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``staging``, locked by this process, that vanishes with the block."""
    with _locked(staging):
        _remove_abandoned(staging, prefix if prefix.startswith(".") else "")
        folder = Path(tempfile.mkdtemp(dir=staging, prefix=prefix))
        lock = os.open(folder, os.O_RDONLY)
        _try_lock(lock)
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Hold the lock of the staging folder, which is made if need be and never removed."""
    _make_folder(staging)
    handle = os.open(staging, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another process, or a file system without locks: then nothing is ever abandoned
        return False
    return True


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each name of them on the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's names, are on the disk. Raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":  # where fsync leaves it to the drive
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        else:
            os.fsync(handle)
    except OSError as error:
        # Some network file systems sync no folders: their server has done so already.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _remove_abandoned(staging: Path, prefix: str) -> None:
    for folder in staging.glob(f"{glob.escape(prefix)}*"):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # its owner removes it right now
        try:
            if _try_lock(handle):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _replace_folder(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; where ``target`` exists, exchange the two (the old one is then at ``new``)."""
    try:
        os.rename(new, target)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if exchange(new, target):
        return
    # A file system that cannot exchange leaves a moment without the folder: the old one waits beside the new.
    old = new.with_name(f"{new.name}.old")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    os.rename(old, new)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two paths atomically. False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(a), os.fsencode(b)
    if sys.platform.startswith("linux") and hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(first, second, _RENAME_SWAP)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))
