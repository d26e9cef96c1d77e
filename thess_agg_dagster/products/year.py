"""A year of months at a glance: the quicklooks of twelve composites in one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

# The UI shows as much of a picture as its dialog is wide, about 1060 pixels in a window of 1400.
_COLUMNS, _WIDTH, _LEAST, _LABEL, _GAP = 4, 255, 40, 22, 8
_EMPTY = "#e3e7eb"


def months_until(last: str) -> list[str]:
    """The twelve months that end with ``last``, such as ``2023-04``."""
    year, month = map(int, last.split("-"))
    numbers = range(12 * year + month - 12, 12 * year + month)
    return [f"{number // 12:04}-{number % 12 + 1:02}" for number in numbers]


def year_at_a_glance(pictures: Mapping[str, bytes]) -> Image.Image:
    """The latest month that has a picture and the eleven before it, four in a row; grey where a month has none.

    ``pictures`` are image files by month, at least one.
    """
    shown = {month: _fitted(pictures[month]) for month in months_until(max(pictures)) if month in pictures}
    tallest = max(picture.height for picture in shown.values())
    cell = _WIDTH, max(_LEAST, tallest)
    width, height = cell[0] + _GAP, cell[1] + _LABEL + _GAP
    sheet = Image.new("RGB", (_COLUMNS * width - _GAP, 12 // _COLUMNS * height - _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for number, month in enumerate(months_until(max(pictures))):
        x, y = number % _COLUMNS * width, number // _COLUMNS * height
        draw.text((x, y), month, "black", font)
        y += _LABEL
        if month in shown:
            sheet.paste(shown[month], (x, y))
        else:
            draw.rectangle((x, y, x + cell[0] - 1, y + cell[1] - 1), _EMPTY)
    return sheet


def _fitted(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        picture.thumbnail((_WIDTH, _WIDTH))
        return picture.convert("RGB")
