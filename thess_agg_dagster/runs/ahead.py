"""What runs import where they use it, imported once in a process that forks runs: not in each of them.

Definitions do without numpy, rasterio and what makes mosaics, because a code server, a sensor and ``dagster definitions``
only look at them. A worker that had to import them would take longer than for a small timestamp.
"""

from __future__ import annotations

import gc
from importlib import import_module

#: What plans and makes timestamps and periods (it imports rasterio, numpy and PIL), and what Dagster opens an instance with.
PIXELS = (
    "thess_agg_dagster.period.build",
    "thess_agg_dagster.timestamp.refetch",
    "thess_agg_dagster.lake.remote",
    "upath.core",
)
# What the report draws and writes.
_REPORT = (
    "pandas",
    "matplotlib.figure",
    "thess_agg_dagster.products.stac",
    "thess_agg_dagster.products.series_index",
    "thess_agg_dagster.products.series_plot",
    "thess_agg_dagster.products.year",
)


def import_pixels() -> None:
    """Import what makes mosaics."""
    for name in PIXELS:
        import_module(name)


def import_the_rest() -> None:
    """Import what the report needs, too."""
    for name in _REPORT:
        import_module(name)
    gc.freeze()
