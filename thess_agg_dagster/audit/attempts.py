"""Attempts read back from Dagster's event log, and kept.

An event is large (a picture, tables for the UI) and slow to read; the attempt in it is small, and never changes. So it is
read once, and then kept in a file; in memory, too, it is packed until somebody looks at it.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import dagster as dg

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, RecordedAttempt

_T = TypeVar("_T")

#: Metadata key under which an attempt stands on its event.
ATTEMPT = "attempt"

# As many are read as quickly as the cache is opened.
_FEW = 50
# SQLite takes a bounded number of variables in one statement; and events are large while they are read.
_PAGE = 1_000
# Who finds the cache in use for longer goes on without it.
_PATIENCE_SECONDS = 2


#: What an attempt is known by: the storage id of its event, which another event has in another event log, and a checksum.
Mark: TypeAlias = tuple[int, int]


class _Packed(NamedTuple):
    """An event of an asset by its storage id: where its attempt published, and the attempt, nothing where it holds none."""

    storage_id: int
    folder: str
    content: bytes


class Attempts(Mapping[str, RecordedAttempt]):
    """Attempts by partition key, each unpacked whenever it is looked at (some 0.1 ms): 1 kB each, instead of 20."""

    def __init__(self, packed: Mapping[str, _Packed]) -> None:
        self._packed = packed

    def __getitem__(self, key: str) -> RecordedAttempt:
        return _unpacked(self._packed[key])

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def folders(self) -> Mapping[str, str]:
        """Where each was published, according to its record."""
        return {key: packed.folder for key, packed in self._packed.items()}

    @property
    def storage_ids(self) -> Mapping[str, int]:
        return {key: packed.storage_id for key, packed in self._packed.items()}

    def mark(self, key: str) -> Mark:
        packed = self._packed[key]
        return packed.storage_id, zlib.crc32(packed.content)

    def or_later(self, others: Attempts) -> Attempts:
        """Of each partition the later attempt."""
        later = {
            key: packed
            for key, packed in others._packed.items()
            if key not in self or self._packed[key].storage_id < packed.storage_id
        }
        return Attempts({**self._packed, **later})


# How an instance is asked for events of a kind: ``fetch_materializations`` or ``fetch_observations``.
_Fetch: TypeAlias = Callable[..., Any]


def read_attempts(
    instance: dg.DagsterInstance, asset: dg.AssetKey, kind: dg.DagsterEventType, among: Collection[str] | None
) -> Attempts:
    """The latest event of a kind of each partition of an asset (all, or those in ``among``) that holds an attempt."""
    ids: dict[str, int] = {}
    for page in [None] if among is None else pages(list(among)):
        asked = None if page is None else set(page)
        ids |= instance.get_latest_storage_id_by_partition(asset, kind, asked)
    observed = kind == dg.DagsterEventType.ASSET_OBSERVATION
    fetch = instance.fetch_observations if observed else instance.fetch_materializations
    cache = AttemptCache.of(instance, len(ids))
    if cache is None:
        found = dict(_read(asset, list(ids.values()), fetch))
    else:
        found = _read_cached(cache, asset, kind, list(ids.values()), fetch)
        if among is None:  # what others have followed is not asked for again
            cache.remove(cache.ids(_name(asset, kind)) - found.keys())
    return Attempts({key: found[number] for key, number in ids.items() if number in found and found[number].content})


def _read(asset: dg.AssetKey, ids: Sequence[int], fetch: _Fetch) -> Iterator[tuple[int, _Packed]]:
    """Events from the event log."""
    for page in pages(ids):
        for record in fetch(dg.AssetRecordsFilter(asset, storage_ids=page), limit=_PAGE).records:
            yield record.storage_id, _packed(record)


def _read_cached(
    cache: AttemptCache, asset: dg.AssetKey, kind: dg.DagsterEventType, ids: Sequence[int], fetch: _Fetch
) -> dict[int, _Packed]:
    """The same, but from the event log only those that were not read before."""
    name = _name(asset, kind)
    found = cache.read(ids)
    # Of another event log (the database was replaced) there are other events under the same ids.
    if found and dict(_read(asset, [max(found)], fetch)) != {max(found): found[max(found)]}:
        cache.remove(cache.ids(name))
        found = {}
    for page in pages([number for number in ids if number not in found]):
        new = dict(_read(asset, page, fetch))
        cache.add(name, new.values())
        found |= new
    return found


def _name(asset: dg.AssetKey, kind: dg.DagsterEventType) -> str:
    return f"{asset.to_user_string()} {kind.value}"


class AttemptCache:
    """Events by kind and storage id, and what reports tell of them, in an SQLite database in ``DAGSTER_HOME``. Which of them
    still count, only the event log says.

    The file may be removed at any time; one that is damaged, or cannot be read or written, is as good as none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._in_vain = False

    @classmethod
    def of(cls, instance: dg.DagsterInstance, count: int) -> AttemptCache | None:
        """That of an instance; ``None`` where the instance keeps nothing, and for so few attempts that it would not help."""
        if instance.is_ephemeral or count <= _FEW:
            return None
        return cls(Path(instance.root_directory) / "thess_agg_dagster_attempts.db")

    def ids(self, kind: str) -> set[int]:
        """The events of a kind that are known."""
        rows = self._ask(lambda database: database.execute("select id from events where kind = ?", [kind]).fetchall())
        return {number for (number,) in rows or ()}

    def read(self, ids: Sequence[int]) -> dict[int, _Packed]:
        """Those of these events that are known."""

        def look(database: sqlite3.Connection) -> dict[int, _Packed]:
            found: dict[int, _Packed] = {}
            for page in pages(ids):
                marks = ",".join("?" * len(page))
                rows = database.execute(f"select id, folder, content from events where id in ({marks})", page)
                found |= {row[0]: _Packed(*row) for row in rows}
            return found

        return self._ask(look) or {}

    def add(self, kind: str, events: Iterable[_Packed]) -> None:
        insert = "insert or replace into events (id, folder, content, kind) values (?, ?, ?, ?)"
        rows = [(*each, kind) for each in events]
        self._ask(lambda database: database.executemany(insert, rows))

    def remove(self, ids: Iterable[int]) -> None:
        rows = [(number,) for number in ids]

        def forget(database: sqlite3.Connection) -> None:
            for table in ("events", "told"):
                database.executemany(f"delete from {table} where id = ?", rows)

        self._ask(forget)

    def told(self, made_with: str) -> dict[Mark, bytes]:
        """What reports keep of attempts, as long as it is made with the same."""
        ask = "select id, checksum, content from told where made_with = ?"
        rows = self._ask(lambda database: database.execute(ask, [made_with]).fetchall())
        return {(number, checksum): content for number, checksum, content in rows or ()}

    def tell(self, made_with: str, kept: Mapping[Mark, bytes]) -> None:
        insert = "insert or replace into told (id, checksum, made_with, content) values (?, ?, ?, ?)"
        rows = [(*mark, made_with, content) for mark, content in kept.items()]
        self._ask(lambda database: database.executemany(insert, rows))

    def _ask(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Do something in one transaction; ``None`` where that cannot be done, and from then on without a try: each may take
        seconds."""
        if self._in_vain:
            return None
        try:
            with closing(sqlite3.connect(self._path, timeout=_PATIENCE_SECONDS)) as database, database:
                database.execute(
                    "create table if not exists events"
                    " (id integer primary key, kind text not null, folder text not null, content blob not null)"
                )
                database.execute(
                    "create table if not exists told"
                    " (id integer primary key, checksum integer not null, made_with text not null, content blob not null)"
                )
                return work(database)
        except sqlite3.DatabaseError as error:
            # In use, a full disk, a folder that cannot be written; everything else is wrong with the file itself.
            if not isinstance(error, sqlite3.OperationalError) or error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)
            else:
                self._in_vain = True
            return None


def pages(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """What is asked of the event log, in parts."""
    for start in range(0, len(items), _PAGE):
        yield items[start : start + _PAGE]


def _packed(record: dg.EventLogRecord) -> _Packed:
    event = record.asset_materialization or _observation(record)
    value = event.metadata.get(ATTEMPT) if event else None
    if (
        not isinstance(value, dg.JsonMetadataValue)
        or not isinstance(value.data, dict)
        or not value.data.get("timestamp")
    ):
        # Of another origin, e.g. "mark as materialized" in the UI; or it does not even name its timestamp.
        return _Packed(record.storage_id, "", b"")
    content = json.dumps([record.run_id, record.timestamp, value.data]).encode()
    return _Packed(record.storage_id, str(value.data.get("output_folder") or ""), zlib.compress(content, 1))


def _observation(record: dg.EventLogRecord) -> dg.AssetObservation | None:
    event = record.event_log_entry.dagster_event
    return event.asset_observation_data.asset_observation if event and event.is_asset_observation else None


def _unpacked(packed: _Packed) -> RecordedAttempt:
    run_id, finished_at, data = json.loads(zlib.decompress(packed.content))
    return RecordedAttempt(_attempt_from(data), run_id, finished_at, packed.storage_id)


def _attempt_from(data: dict[str, Any]) -> Attempt:
    """An attempt from its record, whichever release wrote it."""
    bands = data.get("bands")
    records = [_known(BandRecord, {"band": "", "status": ""} | band) for band in bands or () if isinstance(band, dict)]
    return _known(Attempt, {"status": "", "message": "", "schema": 0} | data | {"bands": records})


def _known(kind: type[_T], data: Mapping[str, Any]) -> _T:
    names = _NAMES[kind]
    return kind(**(data if data.keys() <= names else {name: data[name] for name in data.keys() & names}))


# Asked for some 30 000 times by a report on 10 000 timestamps.
_NAMES: Mapping[type, frozenset[str]] = {
    kind: frozenset(each.name for each in fields(kind)) for kind in (Attempt, BandRecord)
}
