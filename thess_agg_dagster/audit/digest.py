"""Digests: what a receiver has not been told yet of how the timestamps of a lake stand, as one short text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote

from thess_agg_dagster.audit.outcome import STATUSES
from thess_agg_dagster.audit.rows import Row, TimestampRows

#: What there is to tell of a timestamp, in the order in which it is told.
Topic: TypeAlias = Literal["newly failed", "failing otherwise", "recovered", "stale", "refetched", "still failing"]

_ADVICE: Mapping[Topic, str] = {
    "newly failed": "do what the reason says, then run the same command, or the job missing_or_failed, again",
    "failing otherwise": "these failed before, for another reason",
    "recovered": "published; nothing to do",
    "stale": "published, but inputs or parameters have changed; the command, or missing_or_failed, makes them again",
    "refetched": "tiles that were missing or broken have been downloaded; nothing to do",
    "still failing": "told before",
}
# Lines of each topic, and characters of each line: the rest is in the tables.
_MOST_LINES, _MOST_CHARACTERS = 20, 500


@dataclass(frozen=True)
class Standing:
    """How a timestamp (or a period) stands when the report is written.

    ``stale`` says what has changed since it was published, ``refetched`` names the tiles that were downloaded again.
    """

    key: str
    status: str
    message: str = ""
    run_id: str = ""
    stale: str = ""
    refetched: Sequence[str] = ()

    @property
    def failed(self) -> bool:
        return self.status not in ("success", "not_run")


def standing_of(rows: TimestampRows, stale: str = "") -> Standing:
    """How a timestamp stands according to its rows in the audit tables. ``stale`` says what has changed."""
    row = rows.status
    return Standing(row["timestamp"], row["status"], row["message"], row["run_id"], stale, rows.common.refetched)


def standing_of_period(row: Row) -> Standing:
    """How a period stands according to its row. (Its key is no timestamp's.)"""
    return Standing(row["period"], row["status"], row["message"], row["run_id"])


#: What a receiver was told of each timestamp of which there is something to remember; as JSON can say it.
Memory: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class News:
    """What a receiver is to be told, by topic, and what it will have been told then. ``since`` is the day on which it was
    told first that a timestamp fails."""

    told: Memory
    topics: Mapping[Topic, Sequence[Standing]] = field(default_factory=dict)
    since: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> str:
        """``2 newly failed, 1 recovered, 3 still failing``."""
        return ", ".join(f"{len(found)} {topic}" for topic, found in self.topics.items())

    def __bool__(self) -> bool:
        """Whether anything is worth a message: what was told before is not."""
        return any(topic != "still failing" for topic in self.topics)


def news(standings: Iterable[Standing], told: Memory, today: str) -> News:
    """What has changed since a receiver was told. ``today`` is a date as text.

    A failure is told once for each reason, staleness once until the timestamp is made again, a downloaded tile once. A
    timestamp that is no longer listed is forgotten.
    """
    topics: dict[Topic, list[Standing]] = {topic: [] for topic in get_args(Topic)}
    memory: dict[str, dict[str, Any]] = {}
    for each in sorted(standings, key=lambda standing: standing.key):
        before, now = told.get(each.key, {}), {}
        if each.failed:
            now = {"failed": _hashed(f"{each.status} {each.message}"), "since": before.get("since", today)}
            topics[_topic_of_failure(before.get("failed"), now["failed"])].append(each)
        elif each.status == "success" and "failed" in before:
            topics["recovered"].append(each)
        if each.stale and not each.failed:
            now["stale"] = True
            if not before.get("stale"):
                topics["stale"].append(each)
        if each.refetched:
            now["refetched"] = sorted(map(_hashed, each.refetched))
            if set(now["refetched"]) - set(before.get("refetched", ())):
                topics["refetched"].append(each)
        if now:
            memory[each.key] = now
    since = {key: str(known["since"]) for key, known in memory.items() if "since" in known}
    return News(memory, {topic: found for topic, found in topics.items() if found}, since)


def _topic_of_failure(before: object, now: str) -> Topic:
    if before is None:
        return "newly failed"
    return "still failing" if before == now else "failing otherwise"


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Digest:
    """A message in plain text. ``name`` tells it from others, and is the same if it has to be sent again."""

    subject: str
    text: str
    name: str


def digest(found: News, lake: str, tables: str, ui: str | None = None, after: str = "") -> Digest:
    """The message with some news.

    ``tables`` is the folder of the tables, ``ui`` the address of Dagster's UI, if that is known, and ``after`` when the
    receiver was told last.
    """
    subject, lines = f"{found.counts} in {lake}", []
    for topic, standings in found.topics.items():
        lines += [f"{topic.capitalize()} ({len(standings)}): {_ADVICE[topic]}"]
        lines += [f"- {_line(topic, each, found.since, ui)}" for each in standings[:_MOST_LINES]]
        if (more := len(standings) - _MOST_LINES) > 0:
            lines += [f"- and {more} more"]
        lines += [""]
    lines += [f"Every outcome: {tables}/timestamps_aggregation_status.csv"]
    if ui:
        lines += [f"UI: {ui.rstrip('/')}"]
    text = "\n".join(lines) + "\n"
    name = hashlib.sha256(f"{after}\n{subject}\n{text}".encode()).hexdigest()[:32]
    return Digest(subject, text, name)


def _line(topic: Topic, each: Standing, since: Mapping[str, str], ui: str | None) -> str:
    if topic == "recovered":
        return each.key
    if topic == "stale":
        return f"{each.key}: {_short(each.stale)}"
    if topic == "refetched":
        return f"{each.key}: {_short('; '.join(each.refetched))}"
    known = STATUSES.get(each.status)  # type: ignore[call-overload]
    told = f"{each.key}: {known.meaning if known else each.status}"
    if topic == "still failing":
        return f"{told}, since {since[each.key]}"
    run = f" ({ui.rstrip('/')}/runs/{quote(each.run_id)})" if ui and each.run_id else ""
    return f"{told}: {_short(each.message)}{run}"


def _short(message: str) -> str:
    """A message in one line, without control characters, cut where it is long."""
    line = "".join(letter if letter.isprintable() else " " for letter in message)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 4]} ..."
