"""NDVI against numpy, as floats and as scaled integers that GDAL unscales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from thess_agg_dagster.mosaic.composite import CompositeError, open_mosaics
from thess_agg_dagster.mosaic.ndvi import NdviOptions, write_ndvi
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster_tests.rasters import noise, write_tile


@pytest.mark.parametrize(("scaled", "cog", "offset"), [(False, False, 0), (True, False, 0), (True, True, 1000)])
def test_against_numpy(tmp_path: Path, scaled: bool, cog: bool, offset: int) -> None:
    red, nir = noise(1, (600, 700), low=1001, high=4000), noise(2, (600, 700), low=1001, high=9000)
    red[:50], nir[:, :60] = 0, 0
    bands = [
        open_mosaics(band, [write_tile(tmp_path / f"{band}.tif", pixels, nodata=0, block=512)])
        for band, pixels in (("B04", red), ("B08", nir))
    ]
    options = NdviOptions(scaled, offset, MosaicOptions(format="cog" if cog else "geotiff", threads=2))
    write_ndvi(bands[0], bands[1], tmp_path / "NDVI.tif", options)
    low, high = red.astype(float) - offset, nir.astype(float) - offset
    with rasterio.open(tmp_path / "NDVI.tif") as file:
        found = file.read(1, masked=True).astype(float) * file.scales[0] + file.offsets[0]
        assert file.dtypes == ("int16" if scaled else "float32",)
        assert file.descriptions == ("NDVI",)
        assert file.tags()["offset_removed"] == str(offset)
        assert file.transform == bands[0].grid.affine
    np.testing.assert_array_equal(np.ma.getmaskarray(found), (red == 0) | (nir == 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = (high - low) / (high + low)
    assert np.abs(found - expected).max() < (0.00005001 if scaled else 1e-6)


def test_bands_of_other_grids_are_refused(tmp_path: Path) -> None:
    red = open_mosaics("B04", [write_tile(tmp_path / "B04.tif", noise(1, (40, 40)), nodata=0)])
    nir = open_mosaics("B08", [write_tile(tmp_path / "B08.tif", noise(1, (20, 20)), nodata=0, pixel=20)])
    with pytest.raises(CompositeError, match="B08.tif: is not on the grid of .*B04.tif; see match_band"):
        write_ndvi(red, nir, tmp_path / "NDVI.tif", NdviOptions())
