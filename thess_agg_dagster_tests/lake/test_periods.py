"""Periods against pandas, which knows calendars."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thess_agg_dagster.lake.periods import KINDS, MONTH, QUARTER, kind_of, period_of, periods_of, quarter_of, span_of


@given(st.datetimes(min_value=pd.Timestamp(1700, 1, 1), max_value=pd.Timestamp(2200, 1, 1)))
def test_as_pandas_has_them(instant: pd.Timestamp) -> None:
    month, quarter = (pd.Period(instant, kind) for kind in ("M", "Q"))
    text = instant.isoformat()
    assert period_of(text, MONTH) == str(month)
    assert period_of(text, QUARTER) == str(quarter).replace("Q", "-Q")
    assert quarter_of(str(month)) == period_of(text, QUARTER)
    for kind, period in zip(KINDS, (month, quarter), strict=True):
        key = period_of(text, kind)
        assert kind_of(key) == kind
        start, end = (edge.replace(tzinfo=None) for edge in span_of(key))
        assert (start, end) == (period.start_time, period.end_time.floor("s"))


def test_the_instant_decides() -> None:
    late, early = "2023-03-31T23:30:00-02:00", "2023-04-01 01:00:00+00:00"
    assert periods_of([late, "2023-06-30T23:59:59.9", early], KINDS) == {
        "2023-04": [early, late], "2023-06": ["2023-06-30T23:59:59.9"], "2023-Q2": [early, late, "2023-06-30T23:59:59.9"],
    }  # fmt: skip
    assert span_of("9999-Q4")[1].year == 9999


@pytest.mark.parametrize("text", ["2023", "2023-13", "2023-Q5", "2023-04-01", "../2023-04", ""])
def test_what_is_no_period(text: str) -> None:
    with pytest.raises(ValueError, match="is no period"):
        span_of(text)
