"""Periods: the months and quarters that composites are made of, ``2023-04`` and ``2023-Q2``, in UTC."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from thess_agg_dagster.lake.time_serie import instant_of

MONTH, QUARTER = "month", "quarter"
#: The kinds of periods.
KINDS = (MONTH, QUARTER)

_PERIOD = re.compile(r"(\d{4})-(?:(0[1-9]|1[0-2])|Q([1-4]))", re.ASCII)


@lru_cache(maxsize=2**18)
def period_of(timestamp: str, kind: str) -> str:
    """The month or the quarter that a timestamp lies in."""
    instant = instant_of(timestamp)
    return (
        f"{instant.year:04}-{instant.month:02}" if kind == MONTH else f"{instant.year:04}-Q{(instant.month + 2) // 3}"
    )


def periods_of(timestamps: Iterable[str], kinds: Iterable[str]) -> dict[str, list[str]]:
    """The timestamps of each period that has some, all in order of time."""
    ordered = sorted(timestamps, key=instant_of)
    found: dict[str, list[str]] = {}
    for kind in kinds:
        for timestamp in ordered:
            found.setdefault(period_of(timestamp, kind), []).append(timestamp)
    return dict(sorted(found.items()))


def kind_of(period: str) -> str:
    """``month`` or ``quarter``. Raises ``ValueError`` for what is no period."""
    return QUARTER if _parts(period)[1] is None else MONTH


def quarter_of(month: str) -> str:
    """The quarter that a month lies in. Raises ``ValueError`` for what is no month."""
    year, number, _ = _parts(month)
    if number is None:
        raise ValueError(f"{month!r} is no month")
    return f"{year}-Q{(number + 2) // 3}"


def span_of(period: str) -> tuple[datetime, datetime]:
    """The first and the last second of a period, in UTC. Raises ``ValueError`` for what is no period."""
    year, month, quarter = _parts(period)
    first, last = (month, month) if month is not None else (3 * (quarter or 1) - 2, 3 * (quarter or 1))
    days = monthrange(int(year), last)[1]
    return datetime(int(year), first, 1, tzinfo=UTC), datetime(int(year), last, days, 23, 59, 59, tzinfo=UTC)


def _parts(period: str) -> tuple[str, int | None, int | None]:
    found = _PERIOD.fullmatch(period)
    if found is None:
        raise ValueError(f"{period[:80]!r} is no period; those are as 2023-04 and 2023-Q2")
    return found[1], int(found[2]) if found[2] else None, int(found[3]) if found[3] else None
