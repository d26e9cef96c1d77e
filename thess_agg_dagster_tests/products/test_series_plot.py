"""The picture of the whole series."""

from __future__ import annotations

import numpy as np

from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.audit.rows import rows_of
from thess_agg_dagster.products.series_plot import first_look, series_at_a_glance
from thess_agg_dagster_tests.conftest import FIRST, SECOND
from thess_agg_dagster_tests.products.test_quicklook import from_markdown


def test_the_series_at_a_glance_has_a_cell_per_timestamp_and_band() -> None:
    made = [
        BandRecord("B04", "success", valid_share=0.9),
        BandRecord("SCL", "success", valid_share=0.9, cloud_share=0.2),
    ]
    failed = [BandRecord("B04", "missing_input"), BandRecord("SCL", "skipped")]
    attempts = [Attempt(FIRST, "success", "", made), Attempt(SECOND, "failed_missing_inputs", "", failed)]
    rows = [rows_of(attempt, {}, []) for attempt in attempts]
    picture = series_at_a_glance(rows)
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    counts = {name: int((pixels == list(bytes.fromhex(colour))).all(axis=1).sum()) for name, colour in (
        ("success", "2e9e6b"), ("missing_input", "f28e2b"), ("skipped", "f0c987"), ("exception", "1a1a1a"),
    )}  # fmt: skip
    assert counts["success"] > 1.5 * counts["missing_input"] > 1000
    assert counts["skipped"] > 1000
    assert counts["exception"] < 100  # the legend has letters
    assert from_markdown(first_look(picture)).size == picture.size


def test_the_series_at_a_glance_of_nothing() -> None:
    assert series_at_a_glance([]).size[0] > 100
