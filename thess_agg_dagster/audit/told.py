"""What a report has told of attempts before. An attempt never changes, so neither do its rows: to read their lines takes a tenth
of the time that it takes to read the attempt and to make them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial

import dagster as dg

from thess_agg_dagster import __version__
from thess_agg_dagster.audit.attempts import AttemptCache, Attempts, Mark
from thess_agg_dagster.audit.rows import COLUMNS, Common, Mosaic, Row, TimestampRows
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
                return _unpacked(self._kept[mark], partial(_rest_of, make, timestamp))
        rows = make(timestamp).with_lines()
        if self._cache:
            content = json.dumps([rows.status, json.dumps(rows.common), rows.lines])
            self._new[mark] = zlib.compress(content.encode(), 1)
        return rows

    def keep(self) -> None:
        """Keep what was made."""
        if self._cache and self._new:
            self._cache.tell(self._made_with, self._new)


def _unpacked(content: bytes, make: Callable[[], tuple[Row, Sequence[Row]]]) -> TimestampRows:
    status, common, lines = json.loads(zlib.decompress(content))
    return TimestampRows(status, _common(common), make, lines)


@lru_cache(maxsize=64)
def _common(content: str) -> Common:
    """It is the same of thousands of timestamps."""
    parameters, mosaics, refetched = json.loads(content)
    return Common(parameters, tuple(Mosaic(*each) for each in mosaics), tuple(refetched))


def _rest_of(make: Callable[[str], TimestampRows], timestamp: str) -> tuple[Row, Sequence[Row]]:
    rows = make(timestamp)
    return rows.summary, rows.band_report
