"""The quicklook: a picture of a timestamp's mosaics."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    WebPImagePlugin,  # noqa: F401 - otherwise Pillow looks through all formats that it knows, in each process
)

from thess_agg_dagster.mosaic.bands import NOWHERE, SCL, plain
from thess_agg_dagster.mosaic.scl import palette
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2

# The usual formats: otherwise the first picture of each process imports them.
Image.preinit()

# The picture in the event log: every materialization carries one, so it must be small.
_THUMBNAIL_WIDTH = 420
_BACKGROUND = 24
_SEAM = "#ffd400"
#: Values of NDVI, and the colours of these.
_GREENNESS = (-0.2, 0.0, 0.2, 0.4, 0.6, 0.9)
_COLOURS = ((49, 54, 149), (165, 0, 38), (253, 174, 97), (255, 255, 191), (102, 189, 99), (0, 104, 55))

Preview = np.ma.MaskedArray[tuple[int, int], np.dtype[np.generic]]


def quicklook(
    previews: Mapping[str, Preview],
    origins: Mapping[str, NDArray[np.integer[Any]]] = MappingProxyType({}),
    index: Preview | None = None,
) -> Image.Image | None:
    """False colour and, beside it, NDVI and SCL in their colours; empty pixels dark. ``None`` where there is nothing to show.

    ``previews`` are masked arrays by band, empty pixels masked; bands may differ in pixel size, not in ground.
    ``origins`` are numbers of the scenes that pixels came from, by band: where one ends and another begins, the picture
    gets a line. ``index`` is NDVI, from -1 to 1, where there is one.
    """
    panels: list[Image.Image] = []
    previews = {plain(band): preview for band, preview in reversed([*previews.items()])}  # the first of a name
    origins = {plain(band): numbers for band, numbers in reversed([*origins.items()])}
    optical = [band for band in reversed(previews) if band != SCL]
    chosen = next((bands for bands in SENTINEL_2.pictures if set(bands) <= set(optical)), tuple(optical[:1]) * 3)
    if chosen:
        stretched = {band: _stretched(previews[band]) for band in set(chosen)}
        size = max(image.size for image in stretched.values())
        picture = Image.merge("RGB", [stretched[band].resize(size) for band in chosen])
        panels.append(_with_seams(picture, origins.get(chosen[0])))
    if index is not None:
        panel = Image.fromarray(np.where(np.ma.getmaskarray(index)[..., None], np.uint8(_BACKGROUND), greenness(index)))
        panels.append(panel.resize(panels[0].size, Image.Resampling.NEAREST) if panels else panel)
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


def greenness(index: Preview) -> NDArray[np.uint8]:
    """NDVI ``(row, col)`` as colours ``(row, col, 3)``: red, yellow, green."""
    values = np.ma.filled(index.astype(float), 0)
    channels = [np.interp(values, _GREENNESS, [colour[channel] for colour in _COLOURS]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _stretched(preview: Preview) -> Image.Image:
    """One channel, its middle 96 % of values spread over the greys."""
    values: NDArray[Any] = preview.compressed()
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    low, high = np.percentile(values, (2, 98)) if values.size else (0, 1)
    grey = preview.filled(0).astype(np.float32)
    grey -= np.float32(low)
    grey *= np.float32(205 / max(high - low, 1e-9))
    np.clip(grey, 0, 205, out=grey)
    grey += 50
    grey[np.ma.getmaskarray(preview)] = _BACKGROUND
    return Image.fromarray(grey.astype(np.uint8))


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
    """A small version as Markdown, a few kilobytes, for an event's metadata."""
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_WIDTH, _THUMBNAIL_WIDTH))
    return as_markdown(small, "WEBP", quality=60, method=2)


def as_markdown(picture: Image.Image, kind: str, **options: int) -> str:
    """A picture as Markdown, for an event's metadata."""
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return f"![picture](data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()})"
