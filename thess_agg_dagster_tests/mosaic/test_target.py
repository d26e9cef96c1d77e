"""Target grids: the tiles' own, another CRS or resolution, or one for a whole series."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import odc.geo
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.warp import transform as project
from rasterio.warp import transform_bounds, transform_geom

from thess_agg_dagster.mosaic.area import project_area, read_area
from thess_agg_dagster.mosaic.target import Target, common_step, fixed_step, target_grid
from thess_agg_dagster.mosaic.tiles import PlanError, Tile
from thess_agg_dagster.sample import TILE_SIZE, TILES, real_time_serie


@functools.cache
def tile(name: str, pixel: int = 10) -> Tile:
    """A real tile's geometry; there is no file."""
    epsg, left, top = TILES[name]
    size = TILE_SIZE // pixel
    box = GeoBox((size, size), Affine(pixel, 0, left, 0, -pixel, top), f"EPSG:{epsg}")
    return Tile(Path(name), box, CRS.from_epsg(epsg), "uint16", None, "GTiff", (512, 512))


def test_same_zone_tiles_keep_the_first_tiles_pixels() -> None:
    grid = target_grid([tile("T34TFL"), tile("T34TFK"), tile("T34TGL")], Target())
    assert str(grid.crs) == "EPSG:32634"
    assert tuple(grid.affine)[:6] == (10, 0, 600000, 0, -10, 4600020)
    assert grid.shape == ((4600020 - 4390200) // 10, (809760 - 600000) // 10)


@pytest.mark.parametrize(
    "names", [("T35TKF", "T34TFL", "T34TFK"), ("T34TFL", "T35TKE"), ("T35TKE", "T34TGL", "T34TFK")]
)
@pytest.mark.parametrize("pixel", [10, 20, 60])
def test_a_mosaic_of_two_zones_stays_on_the_first_tiles_grid_and_covers_all(names: tuple[str, ...], pixel: int) -> None:
    tiles = [tile(name, pixel) for name in names]
    grid = target_grid(tiles, Target())
    first, (rows, cols) = tiles[0].geobox.affine, grid.shape
    assert str(grid.crs) == f"EPSG:{TILES[names[0]][0]}"
    assert (grid.affine.a, grid.affine.e) == (pixel, -pixel)
    assert (grid.affine.c - first.c) % pixel == 0
    assert (grid.affine.f - first.f) % pixel == 0
    # Oracle: GDAL's own projection of points all along the tiles' edges; none outside, none a whole pixel inside.
    edges = []
    for name in names:
        epsg, left, top = TILES[name]
        t = np.linspace(0, TILE_SIZE, 4001)
        x = np.concatenate([left + t, left + t, np.full_like(t, left), np.full_like(t, left + TILE_SIZE)])
        y = np.concatenate([np.full_like(t, top), np.full_like(t, top - TILE_SIZE), top - t, top - t])
        edges.append(np.array(project(f"EPSG:{epsg}", str(grid.crs), x, y)))
    x, y = np.concatenate(edges, axis=1)
    west, north = grid.affine.c, grid.affine.f
    slack = 0.02 * pixel
    assert west - slack <= x.min() < west + pixel
    assert north - pixel < y.max() <= north + slack
    assert west + (cols - 1) * pixel < x.max() <= west + cols * pixel + slack
    assert north - rows * pixel - slack <= y.min() < north - (rows - 1) * pixel


#: The tiles of all rows, each combination once.
ROWS = {tuple(scene.split("_")[5] for scene in row["tile_ids"].split("|")): None for row in real_time_serie()}
# Around Thessaloniki, across the border of the two zones at 24 degrees.
AOI = read_area("POLYGON((23.3 40.3, 24.3 40.35, 24.25 40.9, 23.4 40.8, 23.3 40.3))")


def edges(grid: GeoBox) -> tuple[float, float, float, float]:
    box = grid.boundingbox
    return box.left, box.bottom, box.right, box.top


def test_the_crs_of_most_tiles_and_the_first_among_equals() -> None:
    assert str(target_grid([tile(n) for n in ("T35TKF", "T34TFL", "T34TFK")], Target("majority")).crs) == "EPSG:32634"
    assert str(target_grid([tile(n) for n in ("T35TKF", "T34TFL")], Target("majority")).crs) == "EPSG:32635"
    assert str(target_grid([tile(n) for n in ("T35TKF", "T34TFL", "T34TFK")], Target("first")).crs) == "EPSG:32635"


def test_a_crs_that_some_tile_has_keeps_that_tiles_pixels() -> None:
    grid = target_grid([tile("T35TKF"), tile("T34TFL")], Target("EPSG:32634"))
    assert str(grid.crs) == "EPSG:32634"
    assert ((grid.affine.c - 600000) % 10, (grid.affine.f - 4600020) % 10) == (0, 0)


def test_a_crs_that_no_tile_has() -> None:
    names = ("T35TKF", "T34TFL")
    grid = target_grid([tile(n) for n in names], Target("EPSG:3035"))
    assert (str(grid.crs), grid.affine.a) == ("EPSG:3035", 10)
    assert (grid.affine.c % 10, grid.affine.f % 10) == (0, 0)
    # Oracle: GDAL's projection of the tiles' bounds, densified.
    bounds = [
        transform_bounds(f"EPSG:{TILES[n][0]}", "EPSG:3035", *edges(tile(n).geobox), densify_pts=500) for n in names
    ]
    left, bottom, right, top = np.min(bounds, axis=0)[:2].tolist() + np.max(bounds, axis=0)[2:].tolist()
    np.testing.assert_allclose(edges(grid), (left, bottom, right, top), atol=10.5)
    with pytest.raises(PlanError, match=r"EPSG:4326 is in degrees_north and the tiles in metre; give resolution"):
        target_grid([tile("T34TFL")], Target("EPSG:4326"))
    assert target_grid([tile("T34TFL")], Target("EPSG:4326", resolution=0.0001)).affine.a == 0.0001


@pytest.mark.parametrize("aoi_crs", ["EPSG:4326", "EPSG:32635", "EPSG:3035"])
def test_one_grid_around_an_area_for_all_real_rows(aoi_crs: str) -> None:
    """Oracle: GDAL's projection of the area's bounds, rounded outwards to multiples of 60 m, as `gdalwarp -tap` does."""
    area = project_area(AOI, odc.geo.CRS(aoi_crs))
    there = transform_geom("EPSG:4326", "EPSG:32634", AOI.segmented(0.002).json)
    left, bottom, right, top = shapely.geometry.shape(there).bounds
    expected = (
        60 * np.floor(left / 60), 60 * np.floor(bottom / 60), 60 * np.ceil(right / 60), 60 * np.ceil(top / 60),
    )  # fmt: skip
    seen = set()
    for names in ROWS:
        for pixel in (10, 20, 60):
            tiles = [tile(name, pixel) for name in names]
            step = fixed_step([10, 20, 60], odc.geo.CRS("EPSG:32634"), Target(grid="fixed", aoi=area))
            grid = target_grid(tiles, Target(grid="fixed", aoi=area), step)
            assert grid.affine.a == -grid.affine.e == pixel
            seen.add((str(grid.crs), edges(grid)))
    assert seen == {("EPSG:32634", expected)}


def test_explicit_bounds_are_kept_or_refused() -> None:
    def grids(bounds: tuple[float, float, float, float]) -> list[GeoBox]:
        target = Target("EPSG:32634", grid="fixed", bounds=bounds)
        step = fixed_step([10, 20], odc.geo.CRS("EPSG:32634"), target)
        return [target_grid([tile("T35TKF", pixel)], target, step) for pixel in (10, 20)]

    found = grids((650005, 4509983, 660005, 4520003))
    assert [edges(grid) for grid in found] == [(650005, 4509983, 660005, 4520003)] * 2
    assert [grid.shape for grid in found] == [(1002, 1000), (501, 500)]
    with pytest.raises(PlanError, match="share edges every 20.*; give 650005,4509983,660005,4520003"):
        grids((650005, 4509990, 660000, 4520003))


def test_a_resolution_of_its_own_makes_the_grid_no_larger() -> None:
    area = read_area(
        "SRID=32634;POLYGON((650000 4510000, 650600 4510000, 650600 4510600, 650000 4510600, 650000 4510000))"
    )
    for resolution in (13.7, 61, 9.9997, 1 / 3):
        target = Target("EPSG:32634", grid="fixed", aoi=area, resolution=resolution)
        step = fixed_step([resolution] * 2, odc.geo.CRS("EPSG:32634"), target)
        grid = target_grid([tile("T34TFL")], target, step)
        assert max(grid.boundingbox.span_x, grid.boundingbox.span_y) <= 600 + 2 * resolution


def test_a_coarser_resolution_stays_on_the_tiles_pixel_edges() -> None:
    grid = target_grid([tile("T34TFL"), tile("T34TFK")], Target(resolution=20))
    assert tuple(grid.affine)[:6] == (20, 0, 600000, 0, -20, 4600020)


def test_an_area_clips_the_tiles_grid_to_its_bounds() -> None:
    tiles = [tile("T34TFL"), tile("T34TFK")]
    whole_grid = target_grid(tiles, Target())
    grid = target_grid(
        tiles,
        Target(aoi=read_area("SRID=32634;POLYGON((650003 4500001, 651007 4500001, 650500 4502999, 650003 4500001))")),
    )
    assert edges(grid) == (650000, 4500000, 651010, 4503000)
    assert whole_grid.affine.a == grid.affine.a
    with pytest.raises(PlanError, match="no tile lies in the aoi"):
        target_grid(tiles, Target(aoi=read_area("POLYGON((2 40, 3 40, 3 41, 2 40))")))


def test_pixel_sizes_without_common_edges_are_refused() -> None:
    assert common_step([10, 20, 60]) == 60
    assert common_step([0.1, 0.25]) == 0.5
    assert common_step([10, 25]) == 50
    with pytest.raises(ValueError, match=r"pixels of 10, 9\.9997 have no edges in common; give resolution"):
        common_step([10, 9.9997])


def test_a_grid_too_large_to_be_meant_is_refused() -> None:
    with pytest.raises(PlanError, match="pixels; give a coarser resolution, or a smaller area"):
        target_grid([tile("T34TFL")], Target("EPSG:32634", grid="fixed", bounds=(0, 0, 3e6, 9e6)), 20)
    with pytest.raises(PlanError, match="give a coarser resolution, or a smaller area"):
        target_grid([tile("T34TFL")], Target(resolution=0.001))


def test_an_area_as_large_as_a_continent_clips_like_its_part_that_is_near() -> None:
    near = "POLYGON((22.6 40.6, 23.2 40.6, 23.2 41.2, 22.6 41.2, 22.6 40.6))"
    world = "POLYGON((-180 -90, 180 -90, 180 90, -180 90, -180 -90))"
    tiles = [tile("T34TFL"), tile("T35TKF")]
    assert target_grid(tiles, Target(aoi=read_area(world))) == target_grid(tiles, Target())
    assert target_grid(tiles, Target(aoi=read_area(near))).shape[0] < 9000


def test_an_area_beside_the_bounds_is_refused() -> None:
    target = Target(
        "EPSG:32634",
        grid="fixed",
        bounds=(650000, 4510000, 660000, 4520000),
        aoi=read_area("POLYGON((2 40, 3 40, 3 41, 2 40))"),
    )
    with pytest.raises(PlanError, match="the aoi lies outside the bounds"):
        target_grid([tile("T34TFL")], target, 20)
