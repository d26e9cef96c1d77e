"""Checksums: of files that are read and written, and those that others published for a tile.

Ours are XXH3 with 128 bits, written as ``xxh128:<hex>``: they detect damaged and truncated files, not forged ones, and
cost about as much as reading memory. (``xxh128sum -c`` verifies them on the command line.) Published ones are verified
with whatever algorithm they use. A tile in an object store is not read completely for our checksum: its ETag is used
instead.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from thess_agg_dagster.lake.catalogue import item_asset, manifest_value, read_item
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.storage.fingerprints import Fingerprints, etag_of, fingerprint_of
from thess_agg_dagster.storage.paths import File, as_os_errors, open_file, read_if_there

OURS = "xxh128"
_CHUNK = 2**20

_ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", OURS)
# Multihash: code of the algorithm and length of the digest in bytes, as hexadecimal varints, then the digest.
_MULTIHASH = {"1220": "sha256", "1340": "sha512", "1114": "sha1", "d50110": "md5", "2030": "sha384"}
# A bare digest tells its algorithm by its length.
_BARE = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
_DIGITS = {algorithm: digits for digits, algorithm in _BARE.items()} | {OURS: 32}
_HEX = re.compile(r"[0-9a-fA-F]+", re.ASCII)


@dataclass(frozen=True)
class Checksum:
    """An algorithm and its digest in lower-case hexadecimal, ``sha256:9f86...``."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def checksum_of(path: File, algorithm: str = OURS) -> Checksum:
    """The checksum of a file, read in pieces. Raises ``OSError``."""
    hasher = xxhash.xxh3_128() if algorithm == OURS else hashlib.new(algorithm, usedforsecurity=False)
    with as_os_errors(path), open_file(path) as file:
        while piece := file.read(_CHUNK):
            hasher.update(piece)
    return Checksum(algorithm, hasher.hexdigest())


def parse_checksum(text: str) -> Checksum | None:
    """A checksum in a common notation: ``sha256:<hex>``, a multihash, or a bare digest; ``None`` for anything else."""
    text = text.strip()
    name, colon, digest = text.partition(":")
    if colon:
        name = name.lower().replace("-", "")
        known = name in _ALGORITHMS and _HEX.fullmatch(digest) and len(digest) == _DIGITS[name]
        return Checksum(name, digest.lower()) if known else None
    if not _HEX.fullmatch(text):
        return None
    text = text.lower()
    for prefix, algorithm in _MULTIHASH.items():
        if text.startswith(prefix) and _BARE.get(len(text) - len(prefix)) == algorithm:
            return Checksum(algorithm, text[len(prefix) :])
    return Checksum(_BARE[len(text)], text) if len(text) in _BARE else None


class ChecksumError(ValueError):
    """A published checksum that cannot be parsed."""


#: How a file next to a tile that may contain its checksum is called: as the tile, and this.
CHECKSUM_SUFFIXES = (".sha256", ".md5")


def parse_checksum_file(data: bytes, name: str) -> Checksum | None:
    """What a checksum file says of the file ``name``, or, where it has a single line, of whichever it names.

    As ``sha256sum`` writes it (``<hex>  <name>``, with ``\\`` before an escaped name), ``sha256sum --tag``, BSD and
    OpenSSL (``SHA256 (<name>) = <hex>``), or a checksum alone; in UTF-8 or, with a byte order mark, UTF-16. ``None`` for
    anything else.
    """
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    lines = [line.strip() for line in data.decode(encoding, errors="replace").splitlines()]
    found = [_parse_line(line) for line in lines if line and not line.startswith("#")]
    if len(found) > 1:
        found = [(checksum, named) for checksum, named in found if named.rpartition("/")[2] == name]
    return found[0][0] if len(found) == 1 else None


_TAGGED = re.compile(r"\\?(?:SHA2-)?([A-Za-z0-9-]+) ?\((.*)\) ?= ?([0-9a-fA-F]+)", re.ASCII)


def _parse_line(line: str) -> tuple[Checksum | None, str]:
    """The checksum on a line, and the file name next to it."""
    if tagged := _TAGGED.fullmatch(line):
        algorithm = tagged[1] if tagged[1].lower().startswith(("md", "sha", "xx")) else f"sha{tagged[1]}"
        return parse_checksum(f"{algorithm}:{tagged[3]}"), tagged[2]
    digest, _, named = line.removeprefix("\\").partition(" ")
    return parse_checksum(digest), named.strip().removeprefix("*")


def expected_checksum(
    lake: DataLake, scene_id: str, band: str, fingerprints: Fingerprints = fingerprint_of
) -> tuple[Checksum, str] | None:
    """The published checksum of a tile and where it was found, or ``None`` if there is none.

    ``fingerprints`` tells which files exist; with a listing, a bucket gets no request per file that might exist. Raises
    :class:`ChecksumError` if it cannot be parsed: a tile is never used unverified.
    """
    tile = lake.tile(scene_id, band)
    # 1. A file beside the tile.
    for sibling in filter(fingerprints, (tile.with_name(tile.name + suffix) for suffix in CHECKSUM_SUFFIXES)):
        data = read_if_there(sibling, lake.folders)
        if data is not None:
            found = parse_checksum_file(data, tile.name)
            return _understood(found, data[:80].decode(errors="replace"), sibling), str(sibling)
    # 2. The manifest of the selected assets: `checksum_b04`, or `checksum` in rows with a `band`.
    if given := manifest_value(lake, "checksum", scene_id, band, fingerprints):
        return _understood(parse_checksum(given), given, lake.assets_manifest), str(lake.assets_manifest)
    # 3. The scene's STAC item.
    item = lake.scene_item(scene_id)
    if fingerprints(item) and (
        found := parse_checksum(str(item_asset(read_item(item, lake.folders), band).get("file:checksum", "")))
    ):
        return found, str(item)
    return None


def _understood(found: Checksum | None, given: str, where: Path) -> Checksum:
    if found is None:
        raise ChecksumError(
            f"the checksum in {where} cannot be parsed ({given[:80]!r}); correct it, e.g. with sha256sum, or remove it"
        )
    return found


class ChangedError(Exception):
    """A file changed while it was in use."""


class BackgroundChecksums:
    """Checksums of files, computed on a separate thread while other threads read the files, so that the bytes are read
    from disk once.

    Files in an object store get ``etag:<ETag>``. A context manager; leaving it does not wait for pending checksums.
    """

    def __init__(self, paths: Iterable[File]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._fingerprints = {path: fingerprint_of(path) for path in paths}
        self._found = {path: self._pool.submit(_etag_or_checksum, path) for path in self._fingerprints}

    def __enter__(self) -> BackgroundChecksums:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def of(self, path: File) -> Checksum:
        """A file's checksum. Raises ``OSError``, and :class:`ChangedError` if the file has changed since the beginning."""
        found = self._found[path].result()
        if fingerprint_of(path) != self._fingerprints[path]:
            raise ChangedError(f"{path}: changed while it was read; run it again")
        return found


def _etag_or_checksum(path: File) -> Checksum:
    etag = etag_of(path)
    return checksum_of(path) if etag is None else Checksum("etag", etag)
