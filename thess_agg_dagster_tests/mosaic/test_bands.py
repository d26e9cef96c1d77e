"""What a band is, by the spellings it goes by; on pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thess_agg_dagster.mosaic.bands import is_scl, mask_band, role_of
from thess_agg_dagster.mosaic.engine import write_mosaic
from thess_agg_dagster.mosaic.inspection import Source
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import plan_mosaics
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster_tests.rasters import noise, read, write_tile


@pytest.mark.parametrize(
    ("band", "role"),
    [
        *((name, "classes") for name in ("SCL", "scl", "SCL_20m", "Scl_60M", "QA60", "CLASSI")),
        *((name, "reflectance") for name in ("B01", "b04", "B04_10m", "B8A", "b8a_20m", "B12")),
        *((name, "quantity") for name in ("AOT", "wvp_10m")),
        *((name, "unknown") for name in ("B13", "B4", "B04_30m", "B04_", "_20m", "NDVI", "red", "ſcl", "XSCL")),
    ],
)
def test_roles(band: str, role: str) -> None:
    assert role_of(band) == role


def test_the_band_that_masks_is_called_as_it_is_listed() -> None:
    assert [mask_band(bands) for bands in ([], ["B04"], ["B04", "SCL_20m"], ["scl", "SCL"])] == [
        "SCL", "SCL", "SCL_20m", "scl",
    ]  # fmt: skip
    assert [is_scl(band) for band in ("SCL", "scl_20m", "QA60")] == [True, True, False]


@pytest.mark.parametrize("band", ["SCL", "scl", "SCL_20m"])
def test_classes_stay_classes_by_any_spelling(tmp_path: Path, band: str) -> None:
    classes = np.random.default_rng(1).choice([4, 8], (60, 60)).astype("uint8")
    path = write_tile(tmp_path / "a.tif", classes, corner=(600004, 4500003))
    bounds = (600000.0, 4499400.0, 600600.0, 4500000.0)
    for target in (Target("EPSG:32634", "fixed", bounds), Target(resolution=30)):
        options = MosaicOptions(resampling="bilinear", target=target, mask_scl_classes=(8,))
        plans, _ = plan_mosaics({band: [Source(path, path)]}, options)
        write_mosaic(plans[band], tmp_path / "out.tif")
        assert set(np.unique(read(tmp_path / "out.tif"))) <= {0, 4, 8}


@pytest.mark.parametrize("band", ["B04", "b04", "B04_10m"])
def test_reflectances_lose_their_offset_by_any_spelling(tmp_path: Path, band: str) -> None:
    pixels = noise(1, (20, 20), 1001)
    path = write_tile(tmp_path / "a.tif", pixels)
    plans, _ = plan_mosaics({band: [Source(path, offset=1000)]}, MosaicOptions(harmonize=True))
    write_mosaic(plans[band], tmp_path / "out.tif")
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), pixels - 1000)


@pytest.mark.parametrize("options", [MosaicOptions(harmonize=True), MosaicOptions(resampling="cubic")])
def test_what_is_not_known_is_said(tmp_path: Path, options: MosaicOptions) -> None:
    paths = [
        write_tile(tmp_path / f"{number}.tif", noise(1, (20, 20)), corner=(600000 + 4 * number, 4500000))
        for number in range(2)
    ]
    for band, told in (("ndvi", True), ("AOT", False), ("B04", False)):
        plans, _ = plan_mosaics({band: [Source(path) for path in paths]}, options)
        assert any("its name is not a known one" in note.text for note in plans[band].notes) is told
    plans, _ = plan_mosaics({"ndvi": [Source(path) for path in paths]}, MosaicOptions())
    assert not any("its name" in note.text for note in plans["ndvi"].notes)
