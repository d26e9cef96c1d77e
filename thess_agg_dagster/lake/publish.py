"""Publishing: what appears in the lake appears whole, and what was there stays until then."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux renameat2(2)
_RENAME_SWAP = 2  # macOS renamex_np(2)


@contextmanager
def staged_folder(target: Path, staging: Path) -> Iterator[Path]:
    """A new folder to fill; it becomes ``target`` when the block ends well, and vanishes otherwise.

    ``staging`` must be on the file system of ``target``. An older ``target`` is replaced in one step. Every staged
    folder is locked by the process that fills it; those whose process is gone are removed on the way.
    """
    with _locked(staging):
        _remove_abandoned(staging)
        folder = Path(tempfile.mkdtemp(dir=staging, prefix=f"{target.name}-"))
        lock = os.open(folder, os.O_RDONLY)
        _try_lock(lock)
    try:
        folder.chmod(0o755)
        yield folder
        with _locked(staging):
            _replace_folder(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A new file to fill; it becomes ``target`` when the block ends well, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    os.close(handle)
    file = Path(name)
    try:
        file.chmod(0o644)
        yield file
        os.replace(file, target)
    finally:
        file.unlink(missing_ok=True)


def remove_abandoned(staging: Path) -> None:
    """Remove staged folders whose process is gone; those of a living one stay."""
    if staging.is_dir():
        with _locked(staging):
            _remove_abandoned(staging)


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Hold the lock of the staging folder, which is made if need be and never removed."""
    staging.mkdir(parents=True, exist_ok=True)
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


def _remove_abandoned(staging: Path) -> None:
    for folder in staging.iterdir():
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
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
