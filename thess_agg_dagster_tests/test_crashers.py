"""Inputs that once ended in a traceback, in wrong pixels or in a gigabyte of memory: kept in data/crashers, replayed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from odc.geo.crs import CRS

from thess_agg_dagster.lake.layout import is_plain_name
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.mosaic.area import project_area, read_area
from thess_agg_dagster.mosaic.engine import write_mosaic
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import plan_mosaic
from thess_agg_dagster.mosaic.tiles import PlanError, TileError
from thess_agg_dagster_tests.rasters import DATA, read

CRASHERS = DATA / "crashers"
#: What a mosaic can be made of, among them.
USABLE = {"tagged-minus-infinity.tif"}


def found(kind: str) -> list[Path]:
    return sorted((CRASHERS / kind).iterdir())


@pytest.mark.parametrize("path", found("tiles"), ids=lambda path: path.name)
def test_tiles(tmp_path: Path, path: Path) -> None:
    tile, out = tmp_path / "S2A" / "B04.tif", tmp_path / "out.tif"
    tile.parent.mkdir()
    shutil.copyfile(path, tile)
    if path.name not in USABLE:
        with pytest.raises((TileError, PlanError), match="B04.tif: "):
            write_mosaic(plan_mosaic([tile], "B04", MosaicOptions(threads=1)), out)
        return
    stats = write_mosaic(plan_mosaic([tile], "B04", MosaicOptions(threads=1)), out)
    assert stats.valid_share == np.isfinite(read(tile)).mean()
    np.testing.assert_array_equal(np.isnan(read(out)), ~np.isfinite(read(tile)))


@pytest.mark.parametrize("path", found("lists"), ids=lambda path: path.name)
def test_lists(path: Path) -> None:
    try:
        series = read_time_serie(path)
    except TimeSerieError:
        return
    assert series.refused
    names = [name for each in series.acquisitions.values() for name in each.scene_ids]
    assert all(map(is_plain_name, names))


@pytest.mark.parametrize("path", found("areas"), ids=lambda path: path.name)
def test_areas(path: Path) -> None:
    for given in (str(path), path.read_text()):
        with pytest.raises(AreaError):
            project_area(read_area(given), CRS("EPSG:32634"))
