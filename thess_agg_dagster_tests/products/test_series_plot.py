"""The picture of the whole series."""

from __future__ import annotations

import numpy as np
import pandas as pd

from thess_agg_dagster.products.series_plot import first_look, series_at_a_glance
from thess_agg_dagster_tests.conftest import FIRST, SECOND
from thess_agg_dagster_tests.products.test_quicklook import from_markdown


def test_the_series_at_a_glance_has_a_cell_per_timestamp_and_band() -> None:
    status = pd.DataFrame({"timestamp": [FIRST, SECOND], "status": ["success", "failed_missing_inputs"]})
    rows = [
        (FIRST, "B04", "success", 0.9, None),
        (FIRST, "SCL", "success", 0.9, 0.2),
        (SECOND, "B04", "missing_input", None, None),
        (SECOND, "SCL", "skipped", None, None),
    ]
    columns = ["timestamp", "band", "status", "valid_share", "cloud_share"]
    report = pd.DataFrame(rows, columns=columns, dtype=object)
    picture = series_at_a_glance(status, report)
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    counts = {name: int((pixels == list(bytes.fromhex(colour))).all(axis=1).sum()) for name, colour in (
        ("success", "2e9e6b"), ("missing_input", "f28e2b"), ("skipped", "f0c987"), ("exception", "1a1a1a"),
    )}  # fmt: skip
    assert counts["success"] > 1.5 * counts["missing_input"] > 1000
    assert counts["skipped"] > 1000
    assert counts["exception"] < 100  # the legend has letters
    assert from_markdown(first_look(picture)).size == picture.size


def test_the_series_at_a_glance_of_nothing() -> None:
    status = pd.DataFrame({"timestamp": [], "status": []})
    report = pd.DataFrame(columns=["timestamp", "band", "status", "valid_share", "cloud_share"])
    assert series_at_a_glance(status, report).size[0] > 100
