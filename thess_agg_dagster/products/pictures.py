"""Pictures for people: the quicklook of a timestamp, and the time series at a glance."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thess_agg_dagster.mosaic.bands import SCL, plain
from thess_agg_dagster.mosaic.origins import NOWHERE
from thess_agg_dagster.mosaic.scl import palette

if TYPE_CHECKING:
    import pandas as pd

# Bands for red, green and blue, the first combination that is there: vegetation in red, else as the eye sees it.
_COMPOSITES = (("B08", "B04", "B04"), ("B04", "B03", "B02"))
# The picture in the event log: every materialization carries one, so it must be small.
_THUMBNAIL_WIDTH = 420
_BACKGROUND = 24
_SEAM = "#ffd400"

Preview = np.ma.MaskedArray[tuple[int, int], np.dtype[np.generic]]


def quicklook(
    previews: Mapping[str, Preview], origins: Mapping[str, NDArray[np.integer[Any]]] = MappingProxyType({})
) -> Image.Image | None:
    """False colour and, beside it, SCL in its colours; empty pixels dark. ``None`` where there is nothing to show.

    ``previews`` are masked arrays by band, empty pixels masked; bands may differ in pixel size, not in ground.
    ``origins`` are numbers of the scenes that pixels came from, by band: where one ends and another begins, the picture
    gets a line.
    """
    panels: list[Image.Image] = []
    previews = {plain(band): preview for band, preview in reversed([*previews.items()])}  # the first of a name
    origins = {plain(band): numbers for band, numbers in reversed([*origins.items()])}
    optical = [band for band in reversed(previews) if band != SCL]
    chosen = next((bands for bands in _COMPOSITES if set(bands) <= set(optical)), tuple(optical[:1]) * 3)
    if chosen:
        stretched = {band: _stretched(previews[band]) for band in set(chosen)}
        size = max(image.size for image in stretched.values())
        picture = Image.merge("RGB", [stretched[band].resize(size) for band in chosen])
        panels.append(_with_seams(picture, origins.get(chosen[0])))
    if SCL in previews:
        values = previews[SCL].filled(0).astype(np.uint8)
        panel = Image.fromarray(np.where(values[..., None] == 0, np.uint8(_BACKGROUND), palette()[values]))
        panel = panel.resize(panels[0].size, Image.Resampling.NEAREST) if panels else panel
        panels.append(_with_seams(panel, origins.get(SCL)))
    if not panels:
        return None
    width, height = panels[0].size
    gap = max(1, width // 100)
    picture = Image.new("RGB", (len(panels) * (width + gap) - gap, height), "white")
    for number, panel in enumerate(panels):
        picture.paste(panel, (number * (width + gap), 0))
    return picture


def _stretched(preview: Preview) -> Image.Image:
    """One channel, its middle 96 % of values spread over the greys."""
    values = preview.compressed().astype(float)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (2, 98)) if values.size else (0, 1)
    grey = np.clip((preview.filled(0).astype(float) - low) / max(high - low, 1e-9), 0, 1) * 205 + 50
    return Image.fromarray(np.where(np.ma.getmaskarray(preview), _BACKGROUND, grey).astype(np.uint8))


def _with_seams(picture: Image.Image, origins: NDArray[np.integer[Any]] | None) -> Image.Image:
    """The picture with a line along the edges between scenes (not along what is empty)."""
    if origins is None:
        return picture
    seams = np.zeros(origins.shape, bool)
    for axis in (0, 1):
        here, there = np.moveaxis(origins, axis, 0)[1:], np.moveaxis(origins, axis, 0)[:-1]
        np.moveaxis(seams, axis, 0)[1:] |= (here != there) & (here != NOWHERE) & (there != NOWHERE)
    line = Image.fromarray(seams).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", picture.size, _SEAM), picture, line)


def thumbnail(picture: Image.Image) -> str:
    """A small version as Markdown, to be shown in an event's metadata: a few kilobytes."""
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_WIDTH, _THUMBNAIL_WIDTH))
    return _markdown(small, "WEBP", quality=60)


def _markdown(picture: Image.Image, kind: str, **options: int) -> str:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return f"![picture](data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()})"


_STATUS_COLOURS = {
    "success": "#2e9e6b",
    "not_run": "#d9d9d9",
    "skipped": "#f0c987",
    "missing_input": "#f28e2b",
    "unreadable_input": "#d1495b",
    "checksum_mismatch": "#a23e6c",
    "unknown_crs": "#9c5fb5",
    "dtype_conflict": "#7a6ff0",
    "outside_grid": "#4e9aa8",
    "unknown_baseline": "#b5838d",
    "merge_failed": "#8c2d19",
    "write_failed": "#5b1a0d",
    "exception": "#1a1a1a",
}
# Of a status that another release knows.
_OTHER_COLOUR = "#6b7a8f"
# Beyond this many timestamps a picture has more columns than pixels: the latest are shown.
_MOST_COLUMNS = 600


def _colours(seen: Collection[str]) -> dict[str, str]:
    """The colours of the statuses that were seen, the known ones first."""
    known = {name: colour for name, colour in _STATUS_COLOURS.items() if name in seen}
    return known | {name: _OTHER_COLOUR for name in seen if name not in known}


def series_at_a_glance(status: pd.DataFrame, report: pd.DataFrame) -> Image.Image:
    """One cell per timestamp and band, coloured by status; below, coverage and clouds over time.

    Takes the status table and the band report as :func:`thess_agg_dagster.audit.tables.audit_tables` makes them.
    """

    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    keys = list(status["timestamp"])[-_MOST_COLUMNS:]
    column = {key: number for number, key in enumerate(keys)}
    bands = sorted(set(report["band"]))
    states = dict(zip(status["timestamp"], status["status"], strict=True))
    cells = np.ones((max(1, len(bands)), max(1, len(keys)), 3))
    valid, clouds = np.full(len(keys), np.nan), np.full(len(keys), np.nan)
    seen: list[str] = []
    for row in report.to_dict("records"):
        if row["timestamp"] not in column:
            continue
        state = str(row["status"])
        if states[row["timestamp"]] in ("not_run", "exception"):
            state = states[row["timestamp"]]
        seen.append(state)
        number = column[row["timestamp"]]
        cells[bands.index(row["band"]), number] = to_rgb(_STATUS_COLOURS.get(state, _OTHER_COLOUR))
        if row["valid_share"] is not None:
            valid[number] = np.nanmin([valid[number], row["valid_share"]])
        if row["cloud_share"] is not None:
            clouds[number] = row["cloud_share"]
    width = min(14.0, max(7.0, 2 + 0.35 * len(keys)))
    figure = Figure(figsize=(width, 2.9 + 0.3 * len(bands)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[0.3 * len(bands) + 0.4, 1.5])
    above.imshow(cells, aspect="auto", interpolation="nearest")
    above.set_yticks(range(len(bands)), bands)
    for side in above.spines.values():
        side.set_visible(False)
    if len(keys) <= 60:
        above.set_xticks(np.arange(len(keys) + 1) - 0.5, minor=True)
        above.set_yticks(np.arange(len(bands) + 1) - 0.5, minor=True)
        above.grid(which="minor", color="white", linewidth=2)
    above.tick_params(which="both", length=0)
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


def first_look(picture: Image.Image) -> str:
    """A picture of lines and text as Markdown, for an event's metadata."""
    return _markdown(picture.convert("RGB").quantize(64), "PNG")
