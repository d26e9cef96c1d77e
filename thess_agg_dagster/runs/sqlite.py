"""Dagster's SQLite storage, without the work that it repeats for each event, for processes that aggregate timestamps.

The databases, their locations and contents are Dagster's own: either storage can open an instance, even at the same
time, and its ``dagster.yaml`` does not mention this one. For each statement, Dagster opens and closes a database and
compiles the statement again; for each run's database, it looks through its migrations, a hundred modules. The run of a
timestamp with small tiles has 26 events, for which this took two thirds of the time. Here connections stay open, a run's
database begins as a copy of an empty one, and one that has been begun is opened as it is. Events of a run that this process
executes are written in groups, see :mod:`thess_agg_dagster.runs.together`. Ticks of sensors use it, too.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import QueuePool

from thess_agg_dagster.lake.publish import sync
from thess_agg_dagster.runs.private import ConfigurableClassData, InstanceRef
from thess_agg_dagster.runs.private.sqlite import (
    INDEX_SHARD_NAME,
    SQLITE_BUSY_TIMEOUT_SECONDS,
    DagsterSqliteStorage,
    SqliteEventLogStorage,
    SqliteRunStorage,
    SqliteScheduleStorage,
)
from thess_agg_dagster.runs.together import Together, can_wait, says_nothing

# How a run ends.
_ENDS = (dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED)


class _Engines:
    """Open databases, by their address; those that were used last are kept. A process that was forked opens its own."""

    _MOST = 16

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        #: With the file that each was opened on.
        self._engines: OrderedDict[str, tuple[int | None, Engine]] = OrderedDict()

    def engine(self, address: str) -> Engine:
        if self._process != os.getpid():
            self._process, self._lock, self._engines = os.getpid(), threading.Lock(), OrderedDict()
        with self._lock:
            return self._engine(address)

    def _engine(self, address: str) -> Engine:
        file = _file_of(address)
        before, engine = self._engines.pop(address, (None, None))
        if engine and before not in (None, file):  # another one is in its place
            engine.dispose()
            engine = None
        engine = engine or _new_engine(address)
        self._engines[address] = file, engine
        while len(self._engines) > self._MOST:
            self._engines.popitem(last=False)[1][1].dispose()
        return engine

    def close(self) -> None:
        if self._process == os.getpid():
            for _, engine in self._engines.values():
                engine.dispose()
        self._engines.clear()


def _new_engine(address: str) -> Engine:
    """One connection is kept; a thread that comes beside gets one for itself."""
    engine = sqlalchemy.create_engine(
        address,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=-1,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )
    sqlalchemy.event.listen(engine, "connect", _do_not_wait_for_the_disk)
    return engine


def _file_of(address: str) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(address.removeprefix("sqlite:///")).st_ino  # noqa: PTH116 - asked for each question
    return None


def _do_not_wait_for_the_disk(connection: sqlite3.Connection, _record: object) -> None:
    """The databases have write-ahead logs, so that a power cut costs the last transactions at most, never a database. A run
    has a hundred of them; :func:`_sync_logs` waits for the disk once, at its end."""
    connection.execute("PRAGMA synchronous = NORMAL")


def _sync_logs(*databases: Path) -> None:
    """Have the disk hold what was written to databases until now."""
    for database in databases:
        with contextlib.suppress(FileNotFoundError):  # all of it is in the database, and synced
            sync(database.with_name(f"{database.name}-wal"))


class _Runs(SqliteRunStorage):
    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> _Runs:
        begun = _address_of(Path(base_dir, "runs.db"))
        return cls(begun, inst_data) if begun else super().from_local(base_dir, inst_data)

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(conn_string, inst_data)
        self._engines = _Engines()

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._engines.engine(self._conn_string).begin() as connection:
            yield connection

    def dispose(self) -> None:
        super().dispose()
        self._engines.close()


class _Schedules(SqliteScheduleStorage):
    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> SqliteScheduleStorage:
        begun = _address_of(Path(base_dir, "schedules.db"))
        return cls(begun, inst_data) if begun else super().from_local(base_dir, inst_data)


class _EventLog(SqliteEventLogStorage):
    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines = _Engines()
        self._tables: set[str] = set()
        self._executed: Together | None = None
        super().__init__(base_dir, inst_data)

    @property
    def _together(self) -> Together | None:
        """Of the run that is executed here. (A process that was forked from a run executes none.)"""
        return self._executed if self._executed and self._executed.process == os.getpid() else None

    @contextmanager
    def written_together(self, run_id: str) -> Iterator[None]:
        """Write events of a run in groups, until the run has ended."""
        if self._together:  # a run that executes others: they are written as they come
            yield
            return
        self._executed = together = Together(run_id, INDEX_SHARD_NAME, self._begin)
        try:
            yield
        finally:
            self._write_waiting(together)
            self._executed = None

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        together = self._together
        if together and (connection := together.transaction(shard)):
            yield connection
            return
        if together and together.concerns(shard):
            self._write_waiting(together)  # whoever reads is to see it
        with self._db_lock, self._begin(shard) as connection:
            yield connection

    @contextmanager
    def _begin(self, shard: str) -> Iterator[Connection]:
        if shard not in self._initialized_dbs:
            self._initialize(shard)
            self._initialized_dbs.add(shard)
        with self._engines.engine(self.conn_string_for_shard(shard)).begin() as connection:
            yield connection

    def _write_waiting(self, together: Together) -> None:
        with together.lock:
            if not (events := together.take()):
                return
            try:
                with self._db_lock, together.writing():
                    for event in events:
                        super().store_event(event)
            except Exception:
                # One of them cannot be written: the others are, and it is told by itself.
                for event in events:
                    super().store_event(event)
            self._tell(events[-1])

    def store_event(self, event: dg.EventLogEntry) -> None:
        together = self._together
        if together is None or event.run_id != together.run_id:
            super().store_event(event)
            self._tell(event)
        elif not says_nothing(event):
            with together.lock:
                together.add(event)
                if not can_wait(event):
                    together.forget(event)
                    self._write_waiting(together)

    def _tell(self, event: dg.EventLogEntry) -> None:
        """Tell of a run's events up to this one, which are in the database, and have the disk hold the last."""
        # The UI follows a run by what happens to this file, whose changes wait beside it as long as it is open.
        database = Path(self.path_for_shard(event.run_id))
        os.utime(database)
        if event.dagster_event_type in _ENDS:
            _sync_logs(database, Path(self.path_for_shard(INDEX_SHARD_NAME)), database.parent.parent / "runs.db")

    def fetch_materializations(
        self,
        records_filter: dg.AssetKey | dg.AssetRecordsFilter,
        limit: int,
        cursor: str | None = None,
        ascending: bool = False,
    ) -> dg.EventRecordsResult:
        """Each check of a partition asks twice for the materialization that it is of."""
        ask = partial(super().fetch_materializations, records_filter, limit, cursor, ascending)
        together = self._together
        return together.ask_once((str(records_filter), cursor, ascending), ask) if together and limit == 1 else ask()

    def has_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> bool:
        """So it does whether the partition is there."""
        ask = partial(super().has_dynamic_partition, partitions_def_name, partition_key)
        return self._together.ask_once((partitions_def_name, partition_key), ask) if self._together else ask()

    def has_table(self, table_name: str) -> bool:
        """Dagster asks whenever it looks for a partition or a check. A table that is there stays."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def wipe(self) -> None:
        self._engines.close()  # the files are removed
        super().wipe()

    def dispose(self) -> None:
        super().dispose()
        self._engines.close()

    def _initialize(self, shard: str) -> None:
        database = Path(self.path_for_shard(shard))
        if not database.exists():
            self._copy_empty(database)
        if not _has_revision(database):
            # An empty one in the making by another process, or one of a Dagster before it was stamped: Dagster knows.
            self._initdb(self._engines.engine(self.conn_string_for_shard(shard)))

    def _copy_empty(self, database: Path) -> None:
        """Begin a database: whole or not at all, and never in the place of one that another process began."""
        empty = database.with_name(f"empty-{dg.__version__}")
        with tempfile.TemporaryDirectory(dir=database.parent, prefix=".empty-") as scratch:
            copy = Path(scratch, "copy")
            if not empty.exists():
                engine = sqlalchemy.create_engine(f"sqlite:///{copy}")
                self._initdb(engine)
                engine.dispose()
                os.replace(copy, empty)
            copy.write_bytes(empty.read_bytes())
            # Another process was first, or the disk has no hard links: then Dagster makes it in its place.
            with contextlib.suppress(OSError):
                os.link(copy, database)


def _has_revision(database: Path) -> bool:
    with contextlib.closing(sqlite3.connect(database, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)) as connection:
        try:
            return bool(connection.execute("SELECT version_num FROM alembic_version").fetchone())
        except sqlite3.OperationalError:
            return False


def _address_of(database: Path) -> str | None:
    """The address of a database that has been begun, so that nobody need look through the migrations to begin it."""
    return f"sqlite:///{database.absolute()}" if database.exists() and _has_revision(database) else None


class SqliteStorage(DagsterSqliteStorage):
    """Dagster's own SQLite storage of runs, events and sensors in a folder, ``base_dir``."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self.base_dir = base_dir
        self._inst_data = inst_data
        history = Path(base_dir, "history")
        self._run_storage: SqliteRunStorage = _Runs.from_local(str(history), inst_data)
        self._event_log_storage: SqliteEventLogStorage = _EventLog(str(history / "runs"), inst_data)
        self._schedule_storage = _Schedules.from_local(str(Path(base_dir, "schedules")), inst_data)
        super(DagsterSqliteStorage, self).__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Any) -> SqliteStorage:
        return cls.from_local(inst_data=inst_data, **config_value)


def kept_open(instance: InstanceRef) -> InstanceRef:
    """The same instance, with its databases kept open if they are Dagster's own SQLite."""
    storage = instance.storage_data
    if storage is None or storage.class_name != DagsterSqliteStorage.__name__:
        return instance
    return instance._replace(storage_data=ConfigurableClassData(__name__, SqliteStorage.__name__, storage.config_yaml))


def written_together(instance: dg.DagsterInstance, run_id: str) -> AbstractContextManager[None]:
    """Write the events of a run that this process executes in groups, if its databases are kept open."""
    storage = instance.event_log_storage
    return storage.written_together(run_id) if isinstance(storage, _EventLog) else contextlib.nullcontext()
