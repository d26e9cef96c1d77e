"""Digests and metrics from standings written by hand, against what a person would say of them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from prometheus_client.openmetrics.exposition import escape_metric_name
from prometheus_client.parser import text_string_to_metric_families

from thess_agg_dagster.audit.digest import Memory, Standing, digest, news, standing_of, standing_of_period
from thess_agg_dagster.audit.metrics import exposition
from thess_agg_dagster.audit.outcome import STATUSES, Attempt, BandRecord
from thess_agg_dagster.audit.rows import rows_of

A, B, C = "2023-02-02 09:21:09+00:00", "2023-04-13 09:20:29+00:00", "2023-06-22 09:15:59+00:00"
MISSING = Standing(A, "failed_missing_inputs", "B04 of S2A_X: no such file; download the tile again", "run-1")
FINE = Standing(A, "success", run_id="run-2")


def told_after(*rounds: list[Standing]) -> Memory:
    memory: Memory = {}
    for day, standings in enumerate(rounds, 1):
        memory = news(standings, memory, f"2026-11-{day:02}").told
    return memory


def topics(standings: list[Standing], memory: Memory) -> dict[str, list[str]]:
    found = news(standings, memory, "2026-11-26")
    assert bool(found) == bool(set(found.topics) - {"still failing"})
    return {topic: [each.key for each in those] for topic, those in found.topics.items()}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([], [FINE, Standing(B, "not_run")], {}),
        ([], [MISSING], {"newly failed": [A]}),
        ([[MISSING]], [MISSING], {"still failing": [A]}),
        ([[MISSING]], [replace(MISSING, run_id="another run")], {"still failing": [A]}),
        ([[MISSING]], [replace(MISSING, message="B08")], {"failing otherwise": [A]}),
        ([[MISSING]], [replace(MISSING, status="exception")], {"failing otherwise": [A]}),
        ([[MISSING]], [FINE], {"recovered": [A]}),
        ([[MISSING], [FINE]], [FINE], {}),
        ([[MISSING], [FINE]], [MISSING], {"newly failed": [A]}),  # the same once more is news
        ([[MISSING]], [], {}),  # no longer listed
        ([[MISSING], []], [FINE], {}),
        ([[MISSING]], [replace(MISSING, key=B), MISSING], {"newly failed": [B], "still failing": [A]}),
        ([[FINE]], [replace(FINE, stale="a tile")], {"stale": [A]}),
        ([[replace(FINE, stale="a tile")]], [replace(FINE, stale="two tiles")], {}),
        ([[replace(FINE, stale="a tile")], [FINE]], [replace(FINE, stale="a tile")], {"stale": [A]}),
        ([], [replace(MISSING, stale="a tile")], {"newly failed": [A]}),  # of one that fails, that says enough
        ([], [replace(FINE, refetched=["X", "Y"])], {"refetched": [A]}),
        ([[replace(FINE, refetched=["X", "Y"])]], [replace(FINE, refetched=["Y", "X"])], {}),
        ([[replace(FINE, refetched=["X", "Y"])]], [replace(FINE, refetched=["X"])], {}),
        ([[replace(FINE, refetched=["X"])]], [replace(FINE, refetched=["X", "Y"])], {"refetched": [A]}),
        ([[MISSING]], [replace(FINE, refetched=["X"])], {"recovered": [A], "refetched": [A]}),
    ],
)
def test_what_is_news(before: list[list[Standing]], now: list[Standing], expected: dict[str, list[str]]) -> None:
    assert topics(now, told_after(*before)) == expected


def test_standings_are_read_from_the_rows() -> None:
    bands = [
        BandRecord(band, "success", refetched=list(tiles)) for band, tiles in (("a", "XY"), ("b", "YZ"), ("c", ""))
    ]
    made = rows_of(Attempt(A, "success", "", bands), {"run_id": "1"}, [])
    assert standing_of(made, "a tile") == Standing(A, "success", "", "1", "a tile", ("X", "Y", "Z"))
    failed = rows_of(Attempt(A, "exception", "why"), {"run_id": "1"}, ["a"])
    assert standing_of(failed) == Standing(A, "exception", "why", "1")
    period = {"period": "2023-04", "status": "failed_merge", "message": "full", "run_id": "4"}
    assert standing_of_period(period) == Standing("2023-04", "failed_merge", "full", "4")


def test_nothing_is_remembered_of_those_that_are_well() -> None:
    assert told_after([FINE, Standing(B, "not_run")]) == {}
    assert told_after([MISSING], [FINE]) == {}


def test_the_text_of_a_digest() -> None:
    before = told_after([replace(MISSING, key=C)])
    found = news(
        [
            replace(MISSING, message="B04 of S2A_X: no such file;\ndownload\x1b the tile again"),
            Standing(B, "success", stale="merge_method: default -> max"),
            replace(MISSING, key=C),
        ],
        before,
        "2026-11-26",
    )
    told = digest(found, "/data/lake", "/data/lake/tables", "http://ui.example.org:3000/")
    assert told.subject == "1 newly failed, 1 stale, 1 still failing in /data/lake"
    assert told.text.splitlines() == [
        "Newly failed (1): do what the reason says, then run the same command, or the job missing_or_failed, again",
        f"- {A}: tiles are missing: B04 of S2A_X: no such file; download  the tile again "
        "(http://ui.example.org:3000/runs/run-1)",
        "",
        "Stale (1): published, but inputs or parameters have changed; the command, or missing_or_failed, makes them again",
        f"- {B}: merge_method: default -> max",
        "",
        "Still failing (1): told before",
        f"- {C}: tiles are missing, since 2026-11-01",
        "",
        "Every outcome: /data/lake/tables/timestamps_aggregation_status.csv",
        "UI: http://ui.example.org:3000",
    ]
    assert "http" not in digest(found, "/data/lake", "/data/lake/tables").text


def test_a_digest_of_thousands_is_short() -> None:
    many = [Standing(f"2023-{number:05}", "exception", "x" * 5_000) for number in range(5_000)]
    told = digest(news(many, {}, "2026-11-26"), "/data/lake", "/data/lake/tables")
    assert told.subject == "5000 newly failed in /data/lake"
    assert "- and 4980 more" in told.text
    assert len(told.text) < 20_000


def test_a_digest_has_a_name_of_its_own_that_stays_if_it_is_sent_again() -> None:
    found = news([MISSING], {}, "2026-11-26")
    first, again, later = (digest(found, "lake", "tables", after=after) for after in ("1", "1", "2"))
    assert first.name == again.name != later.name


def test_metrics_are_what_prometheus_reads() -> None:
    lake = 'with "quotes", a \\ and\na line'
    standings = [
        MISSING, replace(MISSING, key=B, status="failed_by_aliens"),
        replace(FINE, key=C, stale="a tile", refetched=["X", "Y"]), replace(FINE, refetched=["Y"]),
    ]  # fmt: skip
    as_of = datetime(2026, 11, 26, 12, tzinfo=UTC)
    text = exposition(lake, standings, [Standing("2023-04", "success")], 7, True, as_of, 1)
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert all(each.type == "gauge" and each.documentation for each in families.values())
    found = {
        (sample.name, sample.labels.get("status", "")): sample.value
        for each in families.values()
        for sample in each.samples
    }
    assert all(sample.labels["lake"] == lake for each in families.values() for sample in each.samples)
    statuses = [status for status in STATUSES if ("thess_timestamps", status) in found]
    assert {"success", "not_run", "exception", "failed_missing_inputs", "failed_merge"} <= set(statuses)
    assert {name: value for name, value in found.items() if value} == {
        ("thess_timestamps", "failed_missing_inputs"): 1,
        ("thess_timestamps", "failed_by_aliens"): 1,
        ("thess_timestamps", "success"): 2,
        ("thess_timestamps_unlisted", ""): 7,
        ("thess_timestamps_stale", ""): 1,
        ("thess_tiles_refetched", ""): 2,
        ("thess_report_timestamp_seconds", ""): as_of.timestamp(),
        ("thess_newest_mosaic_timestamp_seconds", ""): datetime(2023, 6, 22, 9, 15, 59, tzinfo=UTC).timestamp(),
        ("thess_digest_faults", ""): 1,
        ("thess_periods", "success"): 1,
    }
    assert all(escape_metric_name(name) == name and math.isfinite(value) for (name, _), value in found.items())
    # What node_exporter asks for beyond the format: families in one piece, no times of samples, a last line that ends.
    samples = [line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len({*samples}) == sum(a != b for a, b in zip(["", *samples], samples, strict=False))
    assert text.endswith("\n")
    assert "\n\n" not in text


def test_what_is_not_known_is_not_in_the_metrics() -> None:
    text = exposition("lake", [MISSING], [], 0, False, datetime.now(UTC), 0)
    names = {each.name for each in text_string_to_metric_families(text)}
    assert not names & {"thess_timestamps_stale", "thess_newest_mosaic_timestamp_seconds", "thess_periods"}
