"""Where a lake is stored: in a folder, or a bucket of an object store (``s3://``, ``gs://``, ``az://``).

A path in a bucket is a ``upath.UPath``: it has the interface of ``pathlib.Path``, except for what only folders can do
(links, locks, renames), so it is typed as one; :func:`is_remote` tells them apart. A file that is only read may also be
elsewhere (:class:`RemoteFile`). Errors of a store are raised as ``OSError``, like those of a disk.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, Protocol, TextIO, TypeAlias, cast

from thess_agg_dagster.storage.errors import SystemFaultError, http_status

# Bytes that travel at once, up or down.
_PIECE = 8 * 2**20
# Bytes that are asked for where few are needed.
_CRUMBS = 4096
#: Requests that are made at once: they wait for answers most of the time.
REQUESTS = 8

# More than any raster has; than a table; than what stands beside a tile.
_MOST_BYTES, _MOST_OF_A_TABLE, _MOST_BESIDE_A_TILE = 2**40, 2**32, 2**26

NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class RemoteFile(Protocol):
    """A file at an address, which is only read: what is used of a path in an object store for that."""

    @property
    def name(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def parent(self) -> PurePath: ...
    def stat(self) -> Any: ...
    def open(self, mode: str = "rb", buffering: int = -1) -> IO[Any]: ...


#: A file that is read: in a folder, in a bucket, or elsewhere.
File: TypeAlias = Path | RemoteFile


def lake_path(text: str | Path) -> Path:
    """A path as users write it: ``/data/lake``, or ``s3://bucket/prefix``.

    Raises ``ImportError`` if the library of a store is not installed.
    """
    if "://" not in str(text):
        return Path(text).expanduser().absolute()
    from upath import UPath  # here, because few have an object store

    # Listings are never kept: others put tiles there.
    options: dict[str, Any] = {"use_listings_cache": False}
    scheme = str(text).partition("://")[0]
    if scheme in ("s3", "s3a"):
        options["default_block_size"] = _PIECE
    elif scheme in ("gs", "gcs"):
        # Its search for zonal buckets keeps a gRPC channel open, which does not survive the fork of a worker.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    elif scheme in ("az", "abfs", "abfss"):
        options["blocksize"] = _PIECE
    return cast(Path, UPath(str(text).rstrip("/"), **options))


def is_remote(path: File) -> bool:
    """Whether a file is in an object store, or elsewhere in a network."""
    return not isinstance(path, Path)


@contextmanager
def as_os_errors(path: File) -> Iterator[None]:
    """Convert the exceptions of object stores' libraries to ``OSError``."""
    try:
        yield
    except Exception as error:  # of botocore, azure, aiohttp, google.auth, ...
        if not is_remote(path):
            raise
        # gcsfs says it in words only.
        forbidden = http_status(error) == 403 or str(error).startswith("Forbidden: ")
        if forbidden and not isinstance(error, PermissionError):
            raise PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)}: {error}", str(path)) from error
        if isinstance(error, OSError | ValueError):
            raise
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}: {type(error).__name__}: {error}", str(path)) from error


def leads_out_of(path: File, folders: Sequence[Path]) -> bool:
    """Whether a path is a symbolic link out of all these folders. There are none in a bucket."""
    return isinstance(path, Path) and not any(
        path.resolve().is_relative_to(folder.resolve()) for folder in folders if not is_remote(folder)
    )


def in_parallel(folder: Path, threads: int | None) -> int | None:
    """How many files of a folder are read at once: in a bucket, more than there are threads to compute with."""
    return REQUESTS if is_remote(folder) else threads


class NotAFileError(OSError):
    """Not a regular file, outside the lake, or absurdly large. The text says which, and what to do."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


def open_file(path: File, most: int = _MOST_BYTES, within: Sequence[Path] = ()) -> BinaryIO:
    """Open a file of a lake for reading, after checking it; all files that others could have put there are opened here.

    Raises :class:`NotAFileError` if it is a pipe, a device or a socket (which would block, or never end), larger than
    ``most`` bytes, or a link out of all folders in ``within``; and ``OSError``.
    """
    if not isinstance(path, Path):
        return cast(BinaryIO, path.open("rb"))
    if within and leads_out_of(path, within):
        raise NotAFileError(
            path, "is a symbolic link out of the lake, which is not followed; put the file itself there"
        )
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for who writes into it
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise NotAFileError(path, "is a socket, not a regular file; remove it") from error
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise NotAFileError(path, "is a pipe or a device, not a regular file; remove it")
        if found.st_size > most:
            raise NotAFileError(
                path, f"has {found.st_size} bytes, more than the {most} that such a file may have; remove it"
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def first_bytes(path: File, count: int) -> bytes:
    """The first bytes of a file, asked for in one small request. Raises ``OSError``; ``FileNotFoundError`` also if it is a
    folder, and :class:`NotAFileError` if it is a pipe, say."""
    if isinstance(path, Path) and not is_remote(path):
        try:
            with open_file(path) as local:
                return local.read(count)
        except IsADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    with as_os_errors(path), path.open("rb", _CRUMBS) as file:
        return bytes(file.read(count))


def read_bytes(path: Path, most: int = _MOST_OF_A_TABLE, within: Sequence[Path] = ()) -> bytes:
    """The content of a small file. Raises ``OSError``; see :func:`open_file`."""
    if not is_remote(path):
        with open_file(path, most, within) as file:
            return file.read(most)  # also where it grows meanwhile
    with as_os_errors(path):
        remote = cast(Any, path)
        return cast(bytes, remote.fs.cat_file(remote.path))  # one request


def pieces_if_there(path: Path) -> Iterator[bytes]:
    """The content of a table, which may be large, piece by piece; nothing if it is missing. Raises ``OSError``."""
    with suppress(*NOT_THERE):
        if is_remote(path):
            yield read_bytes(path)
            return
        with open_file(path, _MOST_OF_A_TABLE) as file:
            while piece := file.read(2**20):
                yield piece


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """A UTF-8 text file, for the ``csv`` module. Raises ``OSError``, and ``UnicodeDecodeError`` during reading."""
    if is_remote(path):
        yield io.TextIOWrapper(io.BytesIO(read_bytes(path)), "utf-8-sig", errors, newline="")
    else:
        with io.TextIOWrapper(open_file(path, _MOST_OF_A_TABLE), "utf-8-sig", errors, newline="") as file:
            yield file


def read_if_there(path: Path, within: Sequence[Path] = ()) -> bytes | None:
    """The content of a small file next to a tile, or ``None`` if it is missing or not readable.

    Raises ``OSError``; see :func:`open_file`.
    """
    with suppress(*NOT_THERE):
        return read_bytes(path, _MOST_BESIDE_A_TILE, within)
    return None


def files_below(folder: Path, name: str, depths: Sequence[int] = (1,)) -> list[Path]:
    """The files of this name at these depths below a folder, sorted; in a bucket, from one listing. Raises ``OSError``."""
    if not is_remote(folder):
        return sorted(path for depth in depths for path in folder.glob(f"{'*/' * depth}{name}"))
    remote = cast(Any, folder)
    with suppress(FileNotFoundError), as_os_errors(folder):
        below = [path.removeprefix(f"{remote.path}/").split("/") for path in remote.fs.find(remote.path)]
        return sorted(folder.joinpath(*parts) for parts in below if parts[-1] == name and len(parts) - 1 in depths)
    return []


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it does not exist. Raises ``OSError``."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208 - there may be ten thousand
    remote = cast(Any, folder)
    with suppress(FileNotFoundError), as_os_errors(folder):
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in remote.fs.ls(remote.path, detail=False))
    return []


def upload(file: Path, target: Path) -> None:
    """Upload a local file to a bucket, where it appears complete. Raises ``OSError``."""
    with as_os_errors(target):
        remote = cast(Any, target)
        remote.fs.put_file(str(file), remote.path, **_pieces(remote.protocol))


def _pieces(protocol: str) -> dict[str, int]:
    """One small piece at a time, not ten of 50 MB, which is a default: several files travel beside each other."""
    if protocol in ("s3", "s3a"):
        return {"chunksize": _PIECE, "max_concurrency": 1}
    return {"chunksize": _PIECE} if protocol in ("gs", "gcs") else {"max_concurrency": 1}


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file in a local folder, or a copy where there can be none. Raises ``OSError``."""
    if not is_remote(source):
        with suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    with as_os_errors(source), source.open("rb") as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, 2**20)


def copy_object(source: Path, target: Path) -> None:
    """Copy an object, if it exists, within its bucket. Raises ``OSError``."""
    with suppress(FileNotFoundError), as_os_errors(source):
        remote = cast(Any, source)
        remote.fs.cp_file(remote.path, cast(Any, target).path)


@contextmanager
def local_copy(path: File) -> Iterator[Path]:
    """A temporary copy of an object in a bucket. Raises :class:`SystemFaultError` if the store does not deliver it."""
    with tempfile.NamedTemporaryFile(suffix=path.suffix) as copy:
        try:
            with path.open("rb") as source:
                shutil.copyfileobj(source, copy, _PIECE)
            copy.flush()
        except Exception as error:  # whatever the store's library raises
            raise SystemFaultError(path, error) from error
        yield Path(copy.name)
