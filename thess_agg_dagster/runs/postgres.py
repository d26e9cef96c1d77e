"""Connections to Postgres, for processes that ask it much: they are kept, and a database that restarts is waited for."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any

import dagster as dg
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, Pool
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_fixed

# Who asks waits this long for a database that restarts; Dagster itself gives it one second.
_DATABASE_SECONDS = 600


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Have an instance keep its connections to Postgres.

    Dagster opens one for each question, of which the daemon has 50 a second: most of the server's work. Its webserver keeps
    them, in a way that any long-lived instance can use.
    """
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        kept = not isinstance(connection.engine.pool, NullPool)
    if not kept:  # as the webserver's are, with limits of its own
        instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3600, max_overflow=20)


@event.listens_for(Pool, "checkout")
def _find_broken_connections(connection: Any, record: ConnectionPoolEntry, _: object) -> None:
    """A kept connection may have broken since (the database restarted), which its first question would find."""
    if not record.info.pop("new", False):
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute("SELECT 1")
        except Exception as error:
            raise DisconnectionError from error  # a new one is made


@event.listens_for(Pool, "connect")
def _is_new(_: object, record: ConnectionPoolEntry) -> None:
    record.info["new"] = True


@event.listens_for(Engine, "do_connect")
def _wait_for_the_database(dialect: Any, _record: object, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if dialect.name != "postgresql":
        return None
    patient = Retrying(
        retry=retry_if_exception_type(dialect.loaded_dbapi.OperationalError),
        stop=stop_after_delay(_DATABASE_SECONDS),
        wait=wait_fixed(1),
        before_sleep=before_sleep_log(logging.getLogger(__name__), logging.WARNING),
        reraise=True,
    )
    return patient(dialect.connect, *arguments, **options)
