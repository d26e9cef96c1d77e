"""Tells receivers what they have not been told, and remembers it, in a file beside the tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from thess_agg_dagster.audit.digest import Standing, digest, news
from thess_agg_dagster.audit.receivers import Receiver, ReceiverError, receivers
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import alone, staged_file
from thess_agg_dagster.storage.errors import first_line
from thess_agg_dagster.storage.paths import read_if_there


def is_asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether anybody is to be told."""
    return bool(environment.get("THESS_WEBHOOK_URL", "").strip() or environment.get("THESS_MAIL_TO", "").strip())


def tell(
    standings: Sequence[Standing], lake: DataLake, as_of: datetime, environment: Mapping[str, str] = os.environ
) -> tuple[list[str], list[str]]:
    """Send every configured receiver a digest of what it has not been told; nothing, where there is no such thing.

    Returns what was told to whom, and what went wrong: no receiver harms another, or the caller. What one was told is
    noted as soon as it has taken it; a process that dies in between has it told once more, and so does a receiver that
    takes a digest but does not say so. ``as_of`` is when the report began to read what ``standings`` say; one that is
    older than what a receiver knows tells it nothing.
    """
    found, faults = receivers(environment)
    told: list[str] = []
    if not found:
        return told, faults
    try:
        with alone(lake.told):  # of two reports at once, the second finds what the first has told
            for receiver in found:
                _tell_one(receiver, standings, lake, as_of, environment, told, faults)
    except OSError as error:
        faults.append(
            f"{lake.told}: cannot be read ({first_line(error)}), so nobody is told; the next report tries again"
        )
    return told, faults


def _tell_one(
    receiver: Receiver,
    standings: Iterable[Standing],
    lake: DataLake,
    as_of: datetime,
    environment: Mapping[str, str],
    told: list[str],
    faults: list[str],
) -> None:
    memory = _read(lake, faults)
    known = memory.get(receiver.name, {})
    at = str(known.get("at", ""))
    if _spelled(as_of) < at <= _spelled(datetime.now(UTC)):
        return
    before = known.get("timestamps", {})
    found = news(standings, before, f"{as_of:%Y-%m-%d}")
    if found:
        message = digest(
            found, str(lake.root), str(lake.tables_folder), environment.get("THESS_UI_URL", "").strip() or None, at
        )
        try:
            doubt = receiver.send(message)
        except ReceiverError as error:
            faults.append(f"{error}; told again with the next report")
            return
        told.append(f"{receiver.name}: {found.counts}")
        if doubt:
            faults.append(doubt)
    if found or found.told != before:
        memory[receiver.name] = {"at": _spelled(as_of), "timestamps": found.told}
        try:
            with staged_file(lake.told) as file:
                file.write_text(json.dumps(memory, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as error:
            faults.append(
                f"{lake.told}: cannot be written ({first_line(error)}), so the next report tells {receiver.name} the same; "
                "check disk space, quota and permissions"
            )


def _spelled(time: datetime) -> str:
    """A time as text that sorts."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _read(lake: DataLake, faults: list[str]) -> dict[str, dict[str, Any]]:
    """What each receiver was told; nothing, if nobody was, or the file is damaged. Raises ``OSError``."""
    data = read_if_there(lake.told)
    if data is None:
        return {}
    try:
        found = json.loads(data)
        if all(all(isinstance(each, dict) for each in known["timestamps"].values()) for known in found.values()):
            return dict(found)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    faults.append(f"{lake.told}: is damaged, so all that stands is told again; nothing is to be done")
    return {}
