"""Tiles that stay where they are: read by range requests from allowed hosts, never copied."""

from __future__ import annotations

import errno
import io
import os
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from thess_agg_dagster.lake.download import Downloader, HttpTransfer
from thess_agg_dagster.lake.download_policy import DownloadError, shown

# What is asked for at least: headers are read in crumbs, blocks at once.
_CRUMBS = 4096


class _Range(HttpTransfer):
    """Some bytes of a file, kept in memory."""

    def __init__(self, downloader: Downloader, href: str, start: int, stop: int) -> None:
        super().__init__(downloader, href, Path(os.devnull), lambda _: None)
        self.start, self.stop = start, stop
        self.data, self.size, self.etag = b"", 0, ""

    def _go_on(self) -> None:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={self.start}-{self.stop - 1}"}
        with self._open(headers) as answer:
            if answer.status_code == 404:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shown(self.href))
            if answer.status_code == 200:
                raise DownloadError(
                    f"{shown(self.href)}: the server does not support range requests; do not use tiles=remote with it"
                )
            span, _, size = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if answer.status_code != 206 or not (size.isdigit() and span.startswith(f"{self.start}-")):
                self._refuse(answer)
            self.size = int(size)
            self.etag = (answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "").strip('"')
            self.data = answer.content
        if len(self.data) != min(self.stop, self.size) - self.start:
            raise self.cut(self.start + len(self.data))


@dataclass(frozen=True)
class RemoteStat:
    """What a server says about a file, under the names used by the libraries of object stores."""

    st_size: int
    etag: str

    def as_info(self) -> dict[str, Any]:
        return {"size": self.st_size, "ETag": self.etag}


class RemoteTile:
    """A tile at its address, under the name that it would have in the lake.

    A :class:`~thess_agg_dagster.storage.paths.RemoteFile`, with an opener for rasterio. Network errors are raised as
    ``OSError``.
    """

    def __init__(self, place: Path, href: str, downloader: Downloader) -> None:
        self._place, self._href, self._downloader = place, href, downloader
        self._lock = threading.Lock()
        self._etag: str | None = None
        self._size = 0
        self._crumbs: dict[int, bytes] = {}

    @property
    def name(self) -> str:
        return self._place.name

    @property
    def stem(self) -> str:
        return self._place.stem

    @property
    def suffix(self) -> str:
        return self._place.suffix

    @property
    def parent(self) -> PurePosixPath:
        return PurePosixPath(self._place.parent)

    def __str__(self) -> str:
        return shown(self._href)

    def __hash__(self) -> int:
        return hash(self._href)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteTile) and self._href == other._href

    def stat(self) -> RemoteStat:
        """Sends a new request each time."""
        found = self._ask(0, _CRUMBS)
        with self._lock:
            if found.etag != self._etag:
                self._crumbs.clear()
            self._etag, self._size = found.etag, found.size
            self._crumbs[0] = found.data
        return RemoteStat(found.size, found.etag)

    def open(self, mode: str = "rb", buffering: int = -1) -> BinaryIO:
        return io.BufferedReader(self.opener(), _CRUMBS)

    def opener(self, *_: Any, **__: Any) -> RangeFile:
        """The opener that rasterio reads the tile with."""
        if self._etag is None:
            self.stat()
        return RangeFile(self, self._size)

    def part(self, start: int, stop: int) -> bytes:
        """A range of bytes. Small pieces are requested once and kept."""
        if stop - start > _CRUMBS:
            return self._same(start, stop)
        first = start // _CRUMBS * _CRUMBS
        found = b""
        for at in range(first, stop, _CRUMBS):
            with self._lock:
                crumb = self._crumbs.get(at)
            if crumb is None:
                crumb = self._same(at, min(at + _CRUMBS, self._size))
                with self._lock:
                    self._crumbs[at] = crumb
            found += crumb
        return found[start - first : stop - first]

    def _same(self, start: int, stop: int) -> bytes:
        found = self._ask(start, stop)
        if found.etag != self._etag:
            raise OSError(errno.ESTALE, "changed on the server while it was read; run it again", str(self))
        return found.data

    def _ask(self, start: int, stop: int) -> _Range:
        asked = _Range(self._downloader, self._href, start, stop)
        try:
            self._downloader.run(asked)
        except DownloadError as error:
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}: {error}", str(self)) from None
        return asked


class RangeFile(io.RawIOBase):
    """A remote tile as an open file."""

    def __init__(self, tile: RemoteTile, size: int) -> None:
        self._tile, self._size, self._at = tile, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._tile.part(self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
