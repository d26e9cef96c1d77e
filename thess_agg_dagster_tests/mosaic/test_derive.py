"""What stands in where a composite has too little, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thess_agg_dagster.mosaic.composite import CompositeError, open_mosaics
from thess_agg_dagster.mosaic.derive import counts_standing_in, derive, standing_in, whose
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster_tests.rasters import Array, read, write_tile

SHAPE = (700, 900)


def some(seed: int, high: int) -> Array:
    return np.random.default_rng(seed).integers(0, high, SHAPE).astype("uint16")


def test_one_stands_in_for_another(tmp_path: Path) -> None:
    pixels = {"month": some(1, 3), "quarter": some(2, 4)}
    month, quarter = (
        open_mosaics("B04", [write_tile(tmp_path / f"{name}.tif", each, nodata=0, block=512)])
        for name, each in pixels.items()
    )
    a, b = pixels.values()
    expected = {
        "filled": (standing_in(month, quarter), np.where(a == 0, b, a)),
        "count": (counts_standing_in(2), np.where(a >= 2, a, b)),
        "period": (whose(2, 1, 3), np.select([a >= 2, b >= 2], [1, 3], 0)),
    }
    for name, (make, array) in expected.items():
        plan = MosaicPlan(name, (), month.grid, "uint16" if name != "period" else "uint8", 0, MosaicOptions(threads=2))
        stats = derive([month, quarter], plan, tmp_path / f"{name}.tif", make, {"told": name})
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif"), array, err_msg=name)
        assert stats.valid_share == (array > 0).mean()
        np.testing.assert_array_equal(stats.preview, array[::2, ::2])


def test_another_grid_is_refused(tmp_path: Path) -> None:
    first, second = (
        open_mosaics("B04", [write_tile(tmp_path / f"{n}.tif", some(1, 2), corner=(600000 + n, 4500000))])
        for n in (0, 10)
    )
    plan = MosaicPlan("x", (), first.grid, "uint16", 0, MosaicOptions())
    with pytest.raises(CompositeError, match="10.tif: is not on the grid of .*0.tif"):
        derive([first, second], plan, tmp_path / "x.tif", standing_in(first, second))
