"""The audit's numbers in Prometheus' text format, for the textfile collector of node_exporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import get_args

from thess_agg_dagster.audit.digest import Standing
from thess_agg_dagster.audit.outcome import TimestampStatus
from thess_agg_dagster.lake.time_serie import instant_of

# Labels (without the lake, which all have) and value.
_Samples = Sequence[tuple[Mapping[str, str], float]]


def exposition(
    lake: str,
    timestamps: Sequence[Standing],
    periods: Sequence[Standing],
    unlisted: int,
    stale_known: bool,
    as_of: datetime,
    faults: int,
) -> str:
    """All metrics of a lake, each with HELP and TYPE.

    ``unlisted`` are the timestamps that are no longer listed; unless ``stale_known``, nothing is said of how many are
    stale. ``faults`` is the number of problems with digests. A status without timestamps has the value 0, so that no
    series ends.
    """
    published = [instant_of(each.key).timestamp() for each in timestamps if each.status == "success"]
    fetched = {tile for each in timestamps for tile in each.refetched}
    families: list[tuple[str, str, _Samples]] = [
        ("thess_timestamps", "Listed timestamps, by the status of their latest attempt.", _by_status(timestamps)),
        ("thess_timestamps_unlisted", "Timestamps no longer in time_serie.csv.", [({}, unlisted)]),
        ("thess_tiles_refetched", "Tiles in use that were downloaded again.", [({}, len(fetched))]),
        (
            "thess_report_timestamp_seconds",
            "When these numbers were taken, in seconds since 1970.",
            [({}, as_of.timestamp())],
        ),
        ("thess_digest_faults", "Problems with digests at this report.", [({}, faults)]),
    ]
    if stale_known:
        stale = sum(bool(each.stale) for each in timestamps)
        families.append(
            ("thess_timestamps_stale", "Published timestamps whose inputs or parameters have changed.", [({}, stale)])
        )
    if published:
        families.append(
            (
                "thess_newest_mosaic_timestamp_seconds",
                "Acquisition time of the newest published timestamp, in seconds since 1970.",
                [({}, max(published))],
            )
        )
    if periods:
        families.append(("thess_periods", "Periods of composites, by status.", _by_status(periods)))
    return "".join(_family(name, meaning, samples, lake) for name, meaning, samples in families)


def _by_status(standings: Iterable[Standing]) -> _Samples:
    counts = dict.fromkeys(get_args(TimestampStatus), 0) | Counter(each.status for each in standings)
    return [({"status": status}, count) for status, count in counts.items()]


def _family(name: str, meaning: str, samples: _Samples, lake: str) -> str:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        named = ",".join(f'{label}="{_escaped(text)}"' for label, text in ({"lake": lake} | dict(labels)).items())
        lines.append(f"{name}{{{named}}} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
