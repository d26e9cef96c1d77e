"""Events of a run that is executed in this process, written together.

A run of a timestamp has two dozen events, and most of them come in groups, with nothing in between that takes time: each group
is one transaction of the run's database and one of the index. What can wait, waits for the next event, which follows at
once, for the end of the run, or for whoever reads. Whatever may take long (the engine, downloads) is preceded by an event that
does not wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import dagster as dg
from sqlalchemy.engine import Connection

_Answer = TypeVar("_Answer")

_PLANNED = (
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
)
_CAN_WAIT = (
    *_PLANNED,
    dg.DagsterEventType.LOGS_CAPTURED,
    dg.DagsterEventType.STEP_OUTPUT,
    dg.DagsterEventType.HANDLED_OUTPUT,
    dg.DagsterEventType.STEP_SUCCESS,
)
# What says no more than the events around it: that a run started, a step did, and both ended.
_SAY_NOTHING = (dg.DagsterEventType.RESOURCE_INIT_STARTED, dg.DagsterEventType.RESOURCE_INIT_SUCCESS)
_OF_STEPS = ("Executing steps in process", "Finished steps in process")


def says_nothing(event: dg.EventLogEntry) -> bool:
    """Whether other events of a run say the same, so that this one need not be kept."""
    if event.dagster_event_type == dg.DagsterEventType.ENGINE_EVENT:
        return event.user_message.startswith(_OF_STEPS)
    return event.dagster_event_type in _SAY_NOTHING


def can_wait(event: dg.EventLogEntry) -> bool:
    return event.dagster_event_type in _CAN_WAIT


class Together:
    """What waits of one run, and the transactions in which it is written."""

    def __init__(self, run_id: str, index: str, begin: Callable[[str], AbstractContextManager[Connection]]) -> None:
        self.run_id, self._index, self._begin = run_id, index, begin
        self.process = os.getpid()
        #: Held while events are added and written, so that they are written in their order.
        self.lock = threading.RLock()
        self._waiting: list[dg.EventLogEntry] = []
        self._writer: int | None = None
        self._open: dict[str, Connection] = {}
        self._known: dict[tuple[Any, ...], Any] = {}

    def add(self, event: dg.EventLogEntry) -> None:
        self._waiting.append(event)

    def ask_once(self, question: tuple[Any, ...], ask: Callable[[], _Answer]) -> _Answer:
        """The answer of a database, which stays until the run does more than evaluate checks."""
        if question not in self._known:
            self._known[question] = ask()
        answer: _Answer = self._known[question]
        return answer

    def forget(self, event: dg.EventLogEntry) -> None:
        if event.dagster_event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            self._known.clear()

    def take(self) -> list[dg.EventLogEntry]:
        taken, self._waiting = self._waiting, []
        return taken

    def concerns(self, shard: str) -> bool:
        """Whether something waits that is to be read in the database of a run, or in the index."""
        if shard == self._index:
            return any(event.dagster_event_type in _PLANNED for event in self._waiting)
        return shard == self.run_id and bool(self._waiting)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction for each database, all written at the end or, after an error, none. The run's own is first, as
        where Dagster writes an event."""
        with ExitStack() as transactions:
            # The last one to be entered is the first one to be written.
            self._open = {shard: transactions.enter_context(self._begin(shard)) for shard in (self._index, self.run_id)}
            self._writer = threading.get_ident()
            try:
                yield
            finally:
                self._writer, self._open = None, {}

    def transaction(self, shard: str) -> Connection | None:
        """The open transaction, for the thread that is writing."""
        return self._open.get(shard) if self._writer == threading.get_ident() else None
