"""Where each month's picture stands, by its colour."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from thess_agg_dagster.products.year import months_until, year_at_a_glance

GREY = (227, 231, 235)


def picture(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (1120, 560), colour).save(data, "PNG")
    return data.getvalue()


def test_the_months_before_across_a_new_year() -> None:
    assert months_until("2023-04") == [f"2022-{number:02}" for number in range(5, 13)] + [
        "2023-01", "2023-02", "2023-03", "2023-04",
    ]  # fmt: skip
    assert months_until("2023-12")[0] == "2023-01"


def test_every_month_has_its_place() -> None:
    colours = {"2022-05": (200, 0, 0), "2022-08": (0, 200, 0), "2023-04": (0, 0, 200), "2022-04": (9, 9, 9)}
    sheet = np.asarray(year_at_a_glance({month: picture(colour) for month, colour in colours.items()}))
    rows, columns = np.array_split(sheet, 3), 4
    found = [
        cell[cell.shape[0] // 2, cell.shape[1] // 2] for row in rows for cell in np.array_split(row, columns, axis=1)
    ]
    expected = [colours.get(month, GREY) for month in months_until("2023-04")]
    assert [tuple(map(int, cell)) for cell in found] == expected


def test_it_fits_the_dialog_of_the_ui_and_rows_are_as_tall_as_its_pictures() -> None:
    wide, tall = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (3000, 600), "red").save(wide, "PNG")
    Image.new("RGB", (600, 3000), "red").save(tall, "PNG")
    assert year_at_a_glance({"2023-04": wide.getvalue()}).size == (1044, 3 * (51 + 22) + 2 * 8)
    assert year_at_a_glance({"2023-04": tall.getvalue()}).size == (1044, 3 * (255 + 22) + 2 * 8)
