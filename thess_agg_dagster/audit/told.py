"""The rows of attempts that a report has told of before. An attempt never changes, so neither do its rows: to read them takes a fifth
of the time that it takes to read the attempt and to make them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress

import dagster as dg

from thess_agg_dagster import __version__
from thess_agg_dagster.audit.attempts import AttemptCache, Attempts, Mark
from thess_agg_dagster.audit.rows import COLUMNS, TimestampRows
from thess_agg_dagster.lake.layout import DataLake


class ToldRows:
    """Kept beside the attempts (:class:`AttemptCache`), and as good as none after an upgrade, or for a lake that was moved."""

    def __init__(self, instance: dg.DagsterInstance, recorded: Attempts, lake: DataLake, bands: Sequence[str]) -> None:
        self._recorded = recorded
        made_with = json.dumps([__version__, repr(lake), list(bands), *map(list, COLUMNS.values())])
        self._made_with = hashlib.sha256(made_with.encode()).hexdigest()
        self._cache = AttemptCache.of(instance, len(recorded))
        self._kept = self._cache.told(self._made_with) if self._cache else {}
        self._new: dict[Mark, bytes] = {}

    def of(self, timestamp: str, make: Callable[[str], TimestampRows]) -> TimestampRows:
        """The rows of the latest attempt of a timestamp: kept ones, or else those that ``make`` makes."""
        mark = self._recorded.mark(timestamp)
        if mark in self._kept:
            with suppress(zlib.error, ValueError, TypeError):
                return TimestampRows(*json.loads(zlib.decompress(self._kept[mark])))
        rows = make(timestamp).with_lines()
        if self._cache:
            self._new[mark] = zlib.compress(json.dumps(rows).encode(), 1)
        return rows

    def keep(self) -> None:
        """Keep what was made."""
        if self._cache and self._new:
            self._cache.tell(self._made_with, self._new)
