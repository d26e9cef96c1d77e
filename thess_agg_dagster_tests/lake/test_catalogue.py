"""Which asset of a STAC item is a band's, whatever the catalogue and the order of its assets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from thess_agg_dagster.lake.catalogue import item_asset
from thess_agg_dagster_tests.catalogue.items import item


@pytest.mark.parametrize("shape", ["copernicus", "earth-search", "planetary-computer"])
@pytest.mark.parametrize(("band", "size"), [("B04", 10), ("B08", 10), ("SCL", 20)])
def test_a_band_is_found_in_its_own_resolution(shape: str, band: str, size: int) -> None:
    made = item(shape=shape)
    for order in itertools.islice(itertools.permutations(made["assets"].items()), 100):
        asset = item_asset(made | {"assets": dict(order)}, band)
        assert band in asset["href"]
        assert asset["href"].endswith(f"_{size}m.jp2" if shape == "copernicus" else f"{band}.tif")


@pytest.mark.parametrize(
    ("assets", "band", "expected"),
    [
        ({"B04_60m": {}, "B04_20m": {}}, "B04", "B04_20m"),
        ({"SCL_10m": {}, "SCL_60m": {}, "SCL_20m": {}}, "SCL", "SCL_20m"),
        ({"B01_20m": {}, "B01_60m": {}}, "B01", "B01_60m"),
        ({"AOT_60m": {}, "AOT_10m": {}}, "AOT", "AOT_10m"),
        ({"b04": {"gsd": 60}, "B04_10m": {}}, "B04", "B04_10m"),
        ({"b04_20m": {}, "B04": {}}, "B04", "B04"),
        (
            {"a": {"bands": [{"name": "B04"}], "raster:spatial_resolution": 20}, "b": {"bands": [{"name": "B04"}]}},
            "B04",
            "b",
        ),
        ({"x": {"eo:bands": [{"name": "B04"}], "raster:bands": [{"spatial_resolution": 20}]}, "red": {}}, "B04", "red"),
        ({"B04": None, "B04_10m": []}, "B04", None),
        ({"B04_10m.old": {}, "XB04": {}}, "B04", None),
        (None, "B04", None),
    ],
)
def test_the_asset_of_a_band(assets: dict[str, Any] | None, band: str, expected: str | None) -> None:
    for each in (assets or {}).values():
        if isinstance(each, dict):
            each["href"] = next(key for key, value in (assets or {}).items() if value is each)
    orders = itertools.permutations(assets.items()) if assets else [()]
    for order in orders:
        found = item_asset({"assets": dict(order) if assets is not None else None}, band)
        assert found.get("href") == expected
