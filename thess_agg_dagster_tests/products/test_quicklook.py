"""The quicklook: colours where they belong."""

from __future__ import annotations

import base64
import io
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.mosaic.scl import cloud_share
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2
from thess_agg_dagster.products.quicklook import Preview, quicklook, thumbnail
from thess_agg_dagster_tests.conftest import FIRST, SmallLake, scene
from thess_agg_dagster_tests.rasters import noise, read


def preview(pixels: np.ndarray[tuple[int, int], np.dtype[np.generic]]) -> Preview:
    return np.ma.masked_equal(pixels, 0)


def from_markdown(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[1].removesuffix(")"))))


def test_false_colour_beside_scl_in_its_official_colours() -> None:
    nir, red = noise(1, (60, 80)), noise(2, (60, 80))
    nir[:, :40], red[:, 40:] = 9000, 9000  # vegetation to the left, bare to the right
    nir[:10], red[:10] = 0, 0  # no data above
    classes = np.zeros((30, 40), "uint8")
    classes[5:, :12] = np.arange(12)
    picture = quicklook({"B04": preview(red), "B08": preview(nir), "SCL": preview(classes)})
    assert picture is not None
    shown = np.asarray(picture).astype(int)
    assert shown.shape == (60, 161, 3)
    left, right = shown[10:, :40], shown[10:, 40:80]
    assert left[..., 0].mean() > left[..., 1].mean() + 40
    assert right[..., 0].mean() < right[..., 1].mean() - 40
    np.testing.assert_array_equal(shown[..., :80, 1], shown[..., :80, 2])  # B04 in green and blue
    assert (shown[:10, :80] == 24).all()
    for value, (_, colour) in SENTINEL_2.classes.items():
        expected = (24, 24, 24) if value == 0 else tuple(bytes.fromhex(colour[1:]))
        assert tuple(shown[30, 81 + 2 * value]) == expected, value


def test_ndvi_between_them_green_where_something_grows() -> None:
    index = np.ma.array(np.tile([-0.1, 0.1, 0.8, 0.5], (40, 10)), mask=np.tile([0, 0, 0, 1], (40, 10)))
    bands = {band: preview(noise(1, (40, 40), high=12, dtype="uint8")) for band in ("B04", "B08", "SCL")}
    picture = quicklook(bands, index=index)
    assert picture is not None
    assert picture.size == (3 * 41 - 1, 40)
    bare, sparse, dense, empty = np.asarray(picture).astype(int)[20, 41:45]
    assert bare[0] > bare[1] + 50
    assert sparse[0] > sparse[1] + 50
    assert dense[1] > dense[0] + 50
    assert list(empty) == [24, 24, 24]


@pytest.mark.parametrize(("bands", "panels"), [(["B11"], 1), (["SCL"], 1), (["B02", "B03", "B04", "SCL"], 2)])
def test_other_bands_have_a_quicklook_too(bands: list[str], panels: int) -> None:
    picture = quicklook({band: preview(noise(3, (50, 50), high=12, dtype="uint8")) for band in bands})
    assert picture is not None
    assert picture.size == (50 * panels + panels - 1, 50)


def test_nothing_to_show() -> None:
    assert quicklook({}) is None
    empty = quicklook({"B04": preview(np.zeros((5, 5), "uint16")), "B08": preview(np.full((5, 5), 7, "uint16"))})
    assert empty is not None  # and no division by zero
    assert quicklook({"B04": np.ma.array(np.full((5, 5), np.inf, "float32"))}) is not None


def test_clouds_are_classes_8_to_10_of_what_is_not_0() -> None:
    histogram = np.zeros(256, np.int64)
    histogram[[0, 3, 4, 8, 9, 10]] = 1000, 5, 5, 10, 20, 30
    assert cloud_share(histogram) == pytest.approx(60 / 70)
    assert cloud_share(np.zeros(256, np.int64)) is None


def test_a_timestamp_shows_what_it_looks_like(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    small_lake.read_list()
    small_lake.aggregate(FIRST)
    (record,) = small_lake.instance.fetch_materializations(AGGREGATED, limit=5).records
    assert record.asset_materialization is not None
    metadata: dict[str, Any] = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    text = str(metadata["quicklook"])
    assert len(text) < 25_000  # of noise, the worst there is
    small = from_markdown(text)
    large = Image.open(str(metadata["quicklook_file"]))
    assert large.size[0] > 2 * large.size[1] * 0.9
    assert small.size[0] <= large.size[0]
    # Numbers that Dagster plots over time, against the files.
    pixels = read(small_lake.lake.mosaic(FIRST, "SCL"))
    clouds = np.isin(pixels, (8, 9, 10)).sum() / (pixels > 0).sum()
    assert metadata["cloud_share"] == pytest.approx(clouds, abs=1e-6)
    assert metadata["valid_share"] == pytest.approx(
        min((read(small_lake.lake.mosaic(FIRST, band)) > 0).mean() for band in ("B04", "B08", "SCL")), abs=1e-6
    )
    size = sum(small_lake.lake.mosaic(FIRST, band).stat().st_size for band in ("B04", "B08", "SCL"))
    assert metadata["megabytes"] == pytest.approx(size / 1e6, abs=1e-3)
    assert metadata["megabytes_per_second"] == pytest.approx(size / 1e6 / metadata["seconds"], rel=0.01, abs=0.005)
    bands = record.asset_materialization.metadata["bands"]
    assert isinstance(bands, dg.TableMetadataValue)
    rows = {row.data["band"]: row.data for row in bands.records}
    assert rows["B04"]["reprojected"] == scene(FIRST, "T34TFL")


def test_a_thumbnail_is_small() -> None:
    noisy = Image.fromarray(np.random.default_rng(1).integers(0, 255, (800, 1600, 3)).astype("uint8"))
    assert len(thumbnail(noisy)) < 60_000  # the worst there is
