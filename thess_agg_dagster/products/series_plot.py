"""The time series at a glance: one picture of all timestamps and bands."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thess_agg_dagster.audit.outcome import STATUSES
from thess_agg_dagster.audit.rows import TimestampRows
from thess_agg_dagster.products.quicklook import as_markdown

Values = NDArray[np.float64]

# Of a status that another release knows.
_OTHER_COLOUR = "#6b7a8f"
#: Beyond this many timestamps a picture has more columns than pixels.
MOST_COLUMNS = 600


def _colours(seen: Collection[str]) -> dict[str, str]:
    """The colours of the statuses that were seen, the known ones first."""
    known = {name: status.colour for name, status in STATUSES.items() if name in seen}
    return known | {name: _OTHER_COLOUR for name in seen if name not in known}


def series_at_a_glance(rows: Sequence[TimestampRows]) -> Image.Image:
    """One cell per timestamp and band, coloured by status; below, coverage and clouds over time."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    keys = [each.status["timestamp"] for each in rows]
    bands = sorted({row["band"] for each in rows for row in each.band_report})
    cells, valid, clouds, seen = _cells(rows, bands)
    width = min(14.0, max(7.0, 2 + 0.35 * len(keys)))
    figure = Figure(figsize=(width, 2.9 + 0.3 * len(bands)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[0.3 * len(bands) + 0.4, 1.5])
    above.imshow(cells, aspect="auto", interpolation="nearest")
    above.set_yticks(range(len(bands)), bands)
    for side in above.spines.values():
        side.set_visible(False)
    if len(keys) <= 60:
        # (The lines of a grid would be ticks: each is an object that takes as long as to draw ten of these.)
        above.vlines(np.arange(len(keys) + 1) - 0.5, -0.5, len(cells) - 0.5, color="white", linewidth=2)
        above.hlines(np.arange(len(bands) + 1) - 0.5, -0.5, cells.shape[1] - 0.5, color="white", linewidth=2)
    above.tick_params(length=0)
    legend = [Patch(color=colour, label=name) for name, colour in _colours(seen).items()]
    if legend:
        above.legend(handles=legend, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False, fontsize=8)
    x = np.arange(len(keys))
    below.plot(x, valid * 100, "o-", color="#2e6f9e", label="valid pixels", markersize=4, linewidth=1)
    below.plot(x, clouds * 100, "o-", color="#9aa5ad", label="clouds", markersize=4, linewidth=1)
    below.set_ylim(-3, 103)
    below.set_ylabel("%")
    below.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8, borderpad=0)
    below.grid(axis="y", color="#eeeeee")
    below.spines[["top", "right"]].set_visible(False)
    shown = x[:: max(1, len(keys) // 20)]
    below.set_xticks(shown, [keys[number][:16] for number in shown], rotation=45, ha="right", fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, dpi=110)
    return Image.open(data)


def _cells(rows: Sequence[TimestampRows], bands: Sequence[str]) -> tuple[Values, Values, Values, list[str]]:
    """Colours ``(band, timestamp, 3)``, valid and cloud shares per timestamp (NaN: unknown), and the statuses that occur."""
    from matplotlib.colors import to_rgb

    cells = np.ones((max(1, len(bands)), max(1, len(rows)), 3))
    valid, clouds = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    seen: list[str] = []
    for number, each in enumerate(rows):
        for row in each.band_report:
            overall = str(each.status["status"])
            state = overall if overall in ("not_run", "exception") else str(row["status"])
            seen.append(state)
            cells[bands.index(row["band"]), number] = to_rgb(_colours([state])[state])
            if row["valid_share"] is not None:
                valid[number] = np.nanmin([valid[number], row["valid_share"]])
            if row["cloud_share"] is not None:
                clouds[number] = row["cloud_share"]
    return cells, valid, clouds, seen


def first_look(picture: Image.Image) -> str:
    """A picture of lines and text as Markdown, for an event's metadata."""
    return as_markdown(picture.convert("RGB").quantize(64), "PNG")
