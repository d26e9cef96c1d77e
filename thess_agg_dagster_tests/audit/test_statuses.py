"""Statuses: each stands once, with all that others make of it."""

from __future__ import annotations

import re
from typing import get_args

from thess_agg_dagster.audit.outcome import STATUSES, BandStatus, TimestampStatus
from thess_agg_dagster.mosaic.choices import ProblemKind
from thess_agg_dagster_tests.processes import ROOT


def names(kind: object) -> set[str]:
    return {name for each in get_args(kind) for name in (get_args(each) or (each,))}


def test_every_status_stands_in_the_table() -> None:
    assert set(STATUSES) == names(TimestampStatus) | names(BandStatus)


def test_what_is_wrong_with_tiles_other_tiles_may_mend() -> None:
    late = {name for name, status in STATUSES.items() if status.late_tiles}
    assert late == {"failed_missing_inputs", "failed_invalid_inputs", *get_args(ProblemKind)}


def test_the_docs_tell_of_each() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) ?\|$", (ROOT / "docs/LAKE.md").read_text(), re.M)
    told = {name: (meaning, mended) for name, meaning, mended in rows if name in STATUSES}
    for name, status in STATUSES.items():
        mended = "tiles that arrive later" if status.late_tiles else "a retry, if the system was at fault"
        assert told[name] == (status.meaning, mended if status.late_tiles or status.retry else "")
