"""Publishing: what appears in the lake appears whole, and what was there stays until then."""

from __future__ import annotations

import ctypes
import errno
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

    ``staging`` must be on the file system of ``target``. An older ``target`` is replaced in one step.
    """
    staging.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=staging, prefix=f"{target.name}-"))
    folder.chmod(0o755)
    try:
        yield folder
        _replace_folder(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_if_empty(staging)


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


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # another timestamp is staged there
        folder.rmdir()
