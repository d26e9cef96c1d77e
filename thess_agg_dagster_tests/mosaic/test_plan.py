"""What plans say of a few tiny tiles, before any pixel is read: grids, layers, problems and notes, spelt out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import transform

from thess_agg_dagster.mosaic.area import read_area
from thess_agg_dagster.mosaic.inspection import Note, Source
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import MosaicPlan, plan_mosaic, plan_mosaics
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster.mosaic.tiles import PlanError, Problem
from thess_agg_dagster_tests.rasters import ZONE_34, ZONE_35, write_tile

X, Y = 600000, 4500000


def tile(path: Path, shape: tuple[int, int] = (6, 6), dtype: str = "uint16", **options: Any) -> Path:
    return write_tile(path, np.ones(shape, dtype), block=16, **options)


def planned(sources: Sequence[Path | Source], band: str = "B04", **options: Any) -> MosaicPlan:
    """The plan of one band, with ``target`` and other options."""
    found = [source if isinstance(source, Source) else Source(source) for source in sources]
    plans, problems = plan_mosaics({band: found}, MosaicOptions(**options))
    assert problems == {}
    return plans[band]


def refused(sources: Mapping[str, Sequence[Path]], **options: Any) -> dict[str, list[Problem]]:
    """The problems of bands of which none can be planned."""
    given = {band: [Source(path) for path in paths] for band, paths in sources.items()}
    plans, problems = plan_mosaics(given, MosaicOptions(**options))
    assert plans == {}
    return {band: list(found) for band, found in problems.items()}


def fixed(left: float, bottom: float, right: float, top: float, crs: str = ZONE_34, **target: Any) -> Target:
    return Target(crs, grid="fixed", bounds=(left, bottom, right, top), **target)


def bounds(plan: MosaicPlan) -> tuple[float, ...]:
    return tuple(plan.grid.boundingbox.bbox)


# --- layers ---------------------------------------------------------------------------------------------------


def test_layers_are_the_tiles_on_the_grid_numbered_among_all(tmp_path: Path) -> None:
    away = tile(tmp_path / "0.tif", corner=(X + 6000, Y))
    first = tile(tmp_path / "1.tif", nodata=7)
    beside = tile(tmp_path / "2.tif", corner=(X + 60, Y))  # touches the grid's edge, and no pixel
    last = tile(tmp_path / "3.tif", corner=(X + 50, Y + 50))
    scl = tile(tmp_path / "scl.tif", (3, 3), "uint8", pixel=20)
    sources = [
        Source(away),
        Source(first, scl, 1000, "S2_A"),
        Source(beside),
        Source(last, None, 0, "S2_B"),
    ]
    plan = planned(
        sources, target=fixed(X, Y - 60, X + 60, Y), harmonize=True, mask_scl_classes=(9,), merge_method="max"
    )
    found = [
        (each.number, each.tile.path, each.tile.scene_id, each.empty, each.offset, each.scl and each.scl.path)
        for each in plan.layers
    ]
    assert found == [(2, first, "S2_A", 7, 1000, scl), (4, last, "S2_B", 0, 0, None)]
    assert [each.path for each in plan.tiles] == [first, last]
    assert list(plan.files()) == [first, scl, last]
    assert (plan.band, plan.dtype, plan.options.merge_method) == ("B04", "uint16", "max")
    # Of all tiles: the first one's, though it is not on the grid.
    assert plan.nodata == 0
    assert planned(sources[1:], target=fixed(X, Y - 60, X + 60, Y)).nodata == 7


def test_plans_stay_as_they_were_made(tmp_path: Path) -> None:
    plan = planned([tile(tmp_path / "a.tif")])
    with pytest.raises(AttributeError):
        plan.dtype = "uint8"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        plan.layers[0].offset = 1000  # type: ignore[misc]


def test_tiles_off_the_grid_have_a_say_in_the_dtype(tmp_path: Path) -> None:
    paths = [tile(tmp_path / "a.tif", dtype="uint8"), tile(tmp_path / "b.tif", dtype="int16", corner=(X + 6000, Y))]
    plan = planned(paths, target=fixed(X, Y - 60, X + 60, Y))
    assert plan.dtype == "int16"
    assert plan.notes == (
        Note("dtype", "dtype promoted from uint8 to int16"),
        Note("outside_grid", "1 of 2 tiles lie outside the grid"),
    )


def test_tiles_of_another_pixel_grid_are_reprojected(tmp_path: Path) -> None:
    paths = [
        tile(tmp_path / "0.tif"),
        tile(tmp_path / "1.tif", corner=(X + 10, Y)),
        tile(tmp_path / "2.tif", corner=(X + 5, Y)),
        tile(tmp_path / "3.tif", (3, 3), pixel=20),
    ]
    assert [each.path for each in planned(paths).reprojected] == paths[2:]


# --- several bands --------------------------------------------------------------------------------------------


def test_every_band_has_its_plan_or_its_problems_in_the_order_given(tmp_path: Path) -> None:
    good, fine = tile(tmp_path / "good.tif"), tile(tmp_path / "fine.tif")
    sources = {
        "B08": [Source(good)],
        "B11": [Source(tmp_path / "missing.tif"), Source(good), Source(tmp_path / "gone.tif")],
        "B12": [],
        "B04": [Source(fine)],
    }
    plans, problems = plan_mosaics(sources, MosaicOptions(target=Target(match_band="B04")))
    assert list(plans) == ["B08", "B04"]
    assert [plan.tiles[0].path for plan in plans.values()] == [good, fine]
    assert [(each.kind, each.path) for each in problems["B11"]] == [
        ("missing_input", tmp_path / "missing.tif"),
        ("missing_input", tmp_path / "gone.tif"),
    ]
    assert problems["B12"] == (Problem("missing_input", "no tiles are listed"),)
    assert set(problems) == {"B11", "B12"}


def test_one_band_alone_is_planned_or_all_that_is_wrong_is_raised(tmp_path: Path) -> None:
    path = tile(tmp_path / "a.tif")
    assert plan_mosaic([path], "B04", MosaicOptions()).grid == GeoBox.from_bbox(
        (X, Y - 60, X + 60, Y), ZONE_34, resolution=10
    )
    with pytest.raises(PlanError) as caught:
        plan_mosaic([tmp_path / "b.tif", path, tmp_path / "c.tif"], "B04", MosaicOptions())
    assert [each.path for each in caught.value.problems] == [tmp_path / "b.tif", tmp_path / "c.tif"]


def test_the_others_get_the_grid_of_the_band_to_match(tmp_path: Path) -> None:
    """Which is not the first listed, and covers another ground; its name comes from a run's configuration."""
    sources = {
        "SCL": [Source(tile(tmp_path / "scl.tif", (3, 4), "uint8", pixel=20))],
        "B04": [Source(tile(tmp_path / "b04.tif", (5, 7), corner=(X + 10, Y)))],
        "B11": [Source(tile(tmp_path / "b11.tif", (4, 4), pixel=20))],
    }
    plans, _ = plan_mosaics(sources, MosaicOptions(target=Target(match_band="".join(["B", "04"]))))
    assert {(tuple(each.grid.shape), bounds(each)) for each in plans.values()} == {
        ((5, 7), (X + 10.0, Y - 50.0, X + 80.0, Y + 0.0))
    }
    own, _ = plan_mosaics(sources, MosaicOptions())
    assert [tuple(each.grid.shape) for each in own.values()] == [(3, 4), (5, 7), (4, 4)]


def test_without_a_plan_of_the_band_to_match_the_others_keep_their_grids(tmp_path: Path) -> None:
    sources = {
        "B11": [Source(tile(tmp_path / "b11.tif", (4, 4), pixel=20))],
        "B04": [Source(tile(tmp_path / "b04.tif", dtype="float32"))],
        "B08": [Source(tile(tmp_path / "b08.tif", (5, 7)))],
    }
    plans, problems = plan_mosaics(sources, MosaicOptions(target=Target(match_band="B04"), dtype="uint16"))
    assert set(problems) == {"B04"}
    assert [tuple(each.grid.shape) for each in plans.values()] == [(4, 4), (5, 7)]


# --- fixed grids ----------------------------------------------------------------------------------------------


def test_a_fixed_grid_has_whole_pixels_of_every_band(tmp_path: Path) -> None:
    bands = {
        "B04": [tile(tmp_path / "b04.tif", (40, 40))],
        "B11": [tile(tmp_path / "b11.tif", (20, 20), pixel=20)],
        "B01": [tile(tmp_path / "b01.tif", (6, 6), pixel=60)],
    }
    sources = {band: [Source(path) for path in paths] for band, paths in bands.items()}
    good, odd = fixed(X, Y - 120, X + 180, Y), fixed(X, Y - 100, X + 100, Y)
    plans, problems = plan_mosaics(sources, MosaicOptions(target=good))
    assert problems == {}
    assert [tuple(each.grid.shape) for each in plans.values()] == [(12, 18), (6, 9), (2, 3)]
    assert {bounds(each) for each in plans.values()} == {(X, Y - 120, X + 180, Y)}
    found = refused(bands, target=odd)
    assert set(found) == set(bands)
    for (problem,) in found.values():
        assert problem.kind == "outside_grid"
        assert "they share edges every 60" in problem.reason
    # Only whole pixels of the one whose grid all get.
    matched = fixed(X, Y - 100, X + 100, Y, match_band="B11")
    plans, problems = plan_mosaics(sources, MosaicOptions(target=matched))
    assert problems == {}
    assert {(tuple(each.grid.shape), bounds(each)) for each in plans.values()} == {
        ((5, 5), (X, Y - 100, X + 100, Y)),
    }
    # Of all, if that one has no tiles.
    found = refused({"B04": bands["B04"], "B01": bands["B01"]}, target=matched)
    assert {each[0].reason.partition("(")[2].partition(")")[0] for each in found.values()} == {
        "they share edges every 60"
    }


def test_pixels_in_degrees_do_not_say_how_many_metres(tmp_path: Path) -> None:
    paths = [tile(tmp_path / "a.tif", crs="EPSG:4326", corner=(22, 40), pixel=0.001)]
    ((first,), (second,)) = refused({"B04": paths, "B08": paths}, target=fixed(X, Y - 60, X + 60, Y)).values()
    assert first == second
    assert (first.kind, first.path) == ("unknown_crs", None)
    assert first.reason.endswith("; give resolution, in metre")


def test_pixels_without_common_edges_have_no_fixed_grid(tmp_path: Path) -> None:
    bands = {"B04": [tile(tmp_path / "a.tif")], "B08": [tile(tmp_path / "b.tif", pixel=9.9173)]}
    ((first,), (second,)) = refused(bands, target=fixed(X, Y - 60, X + 60, Y)).values()
    assert first == second
    assert first.kind == "unknown_crs"
    assert "have no edges in common" in first.reason
    plans, problems = plan_mosaics(
        {band: [Source(path) for path in paths] for band, paths in bands.items()}, MosaicOptions()
    )
    assert (len(plans), problems) == (2, {})


# --- problems -------------------------------------------------------------------------------------------------


def test_tiles_that_no_dtype_holds_are_listed(tmp_path: Path) -> None:
    paths = [tile(tmp_path / "a.tif", dtype="uint8"), tile(tmp_path / "b.tif", dtype="float32")]
    sources = {"B04": [Source(paths[0], scene_id="S2_A"), Source(paths[1])]}
    plans, problems = plan_mosaics(sources, MosaicOptions(dtype="uint16"))
    reason = "tiles of dtype uint8, float32 do not fit uint16 without loss"
    assert plans == {}
    assert problems == {"B04": (Problem("dtype_conflict", f"{reason} [S2_A (uint8), {paths[1]} (float32)]"),)}


AREA = "SRID=32634;POLYGON((600600 4499400, 600660 4499400, 600660 4499460, 600600 4499460, 600600 4499400))"


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (fixed(X + 600, Y - 600, X + 660, Y - 540), "grid"),
        (Target(ZONE_34, grid="fixed", aoi=read_area(AREA)), "aoi"),
        (fixed(X + 600, Y - 600, X + 660, Y - 540, aoi=read_area(AREA)), "grid"),
    ],
)
def test_where_no_tile_lies_it_says_what_to_check(tmp_path: Path, target: Target, what: str) -> None:
    found = refused({"B04": [tile(tmp_path / "a.tif")]}, target=target)
    reason = f"no tile lies in the {what}; check the {what}, or take the row off the list"
    assert found == {"B04": [Problem("outside_grid", reason)]}


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_tile_without_a_place_in_the_grids_crs_is_named(tmp_path: Path) -> None:
    good = tile(tmp_path / "good.tif", crs="EPSG:4326", corner=(22, 40), pixel=0.001)
    nowhere = tile(tmp_path / "nowhere.tif", crs="EPSG:4326", corner=(22, 90.002), pixel=0.001)
    (x,), (y,) = transform("EPSG:4326", "EPSG:3857", [22], [40])
    target = fixed(x, y - 1000, x + 1000, y, "EPSG:3857", resolution=100)
    assert planned([good], target=target).layers[0].tile.path == good
    reason = "it cannot be projected to EPSG:3857"
    assert refused({"B04": [good, nowhere]}, target=target) == {"B04": [Problem("unknown_crs", reason, nowhere)]}


# --- resampling -----------------------------------------------------------------------------------------------


def resampling(plan: MosaicPlan) -> list[Resampling]:
    return [layer.resampling for layer in plan.layers]


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        (5.0, "cubic"), (10.0, "cubic"), (10.05, "cubic"), (10.2, "average"), (20.0, "average"), (None, "cubic"),
    ],
)  # fmt: skip
def test_pixels_are_reduced_to_coarser_ones_and_resampled_to_others(
    tmp_path: Path, resolution: float | None, expected: str
) -> None:
    path = tile(tmp_path / "a.tif")
    target = Target(resolution=resolution)
    assert resampling(planned([path], resampling="cubic", target=target)) == [Resampling[expected]]
    # The same ground in the next zone, where a metre is nearly a metre.
    target = Target(ZONE_35, resolution=resolution)
    assert resampling(planned([path], resampling="cubic", target=target)) == [Resampling[expected]]


def test_each_tile_by_its_own_pixels_and_classes_by_the_most_frequent(tmp_path: Path) -> None:
    paths = [tile(tmp_path / "a.tif", dtype="uint8"), tile(tmp_path / "b.tif", (3, 3), "uint8", pixel=20)]
    plan = planned(paths, resampling="bilinear", target=Target(resolution=20))
    assert resampling(plan) == [Resampling.average, Resampling.bilinear]
    plan = planned(paths, "SCL", resampling="bilinear", target=Target(resolution=20))
    assert resampling(plan) == [Resampling.mode, Resampling.nearest]
    # Nobody asked for other pixels than the tiles': the second's are just larger.
    plan = planned(paths[::-1], resampling="bilinear")
    assert resampling(plan) == [Resampling.bilinear, Resampling.bilinear]


@pytest.mark.parametrize(("width", "height"), [(10, 40), (40, 10)])
def test_oblong_pixels_are_finer_by_their_area(tmp_path: Path, width: float, height: float) -> None:
    """10 m x 40 m are as large as 20 m x 20 m."""
    oblong = tile(tmp_path / "a.tif", transform=Affine(width, 0, X, 0, -height, Y))
    for resolution, expected in ((20.1, Resampling.cubic), (20.5, Resampling.average)):
        plan = planned([oblong], resampling="cubic", target=Target(resolution=resolution))
        assert resampling(plan) == [expected]


@pytest.mark.parametrize(
    ("crs", "shape", "corner"),
    [
        # From the equator to 60 degrees north in Web Mercator: a pixel's size depends on its row.
        ("EPSG:3857", (120, 8), (0, 60)),
        # Up to 30 degrees to the east of where a UTM zone is true: it depends on its column.
        ("EPSG:32634", (8, 60), (21, 42)),
    ],
)
def test_pixels_of_another_crs_are_measured_in_the_middle_of_the_tile(
    tmp_path: Path, crs: str, shape: tuple[int, int], corner: tuple[float, float]
) -> None:
    """Oracle: the projection of the middle pixel."""
    step = 0.5
    path = tile(tmp_path / "a.tif", shape, crs="EPSG:4326", corner=corner, pixel=step)
    west, north = corner[0] + shape[1] / 2 * step, corner[1] - shape[0] / 2 * step
    x, y = transform("EPSG:4326", crs, [west, west + step, west], [north, north, north - step])
    size = math.sqrt(abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])))
    for ratio, expected in ((1.0, Resampling.cubic), (1.005, Resampling.cubic), (1.015, Resampling.average)):
        plan = planned([path], resampling="cubic", target=Target(crs, resolution=size * ratio))
        assert resampling(plan) == [expected], ratio


def test_pixels_that_lie_askew_are_measured_by_their_area(tmp_path: Path) -> None:
    """At 15 degrees east of a polar grid's middle, x and y of a pixel both run along x and y of the grid."""
    path = tile(tmp_path / "a.tif", crs="EPSG:32633", corner=(500000, 8800000))
    corners = np.array([(500030, 8799970), (500040, 8799970), (500030, 8799960)], float).T
    x, y = transform("EPSG:32633", "EPSG:3995", *corners)
    size = math.sqrt(abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])))
    assert abs(x[1] - x[0]) > 2 < abs(y[1] - y[0])
    for ratio, expected in ((1.005, Resampling.cubic), (1.015, Resampling.average)):
        plan = planned([path], resampling="cubic", target=Target("EPSG:3995", resolution=size * ratio))
        assert resampling(plan) == [expected], ratio


# --- overviews ------------------------------------------------------------------------------------------------


@pytest.fixture
def levels(tmp_path: Path) -> Path:
    """A tile with overviews of 20 m (level 0) and 40 m (level 1)."""
    path = tile(tmp_path / "levels.tif", (64, 64), "uint8")
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
    return path


@pytest.mark.parametrize(
    ("band", "resolution", "asked", "level"),
    [
        ("B04", 40, True, 1),
        ("B04", 20, True, 0),
        ("B04", 10, True, None),
        ("B04", None, True, None),
        ("B04", 40, False, None),
        ("SCL", 40, True, None),
        ("AOT", 40, True, 1),
    ],
)
def test_overviews_where_asked_for_and_never_of_classes(
    levels: Path, band: str, resolution: float | None, asked: bool, level: int | None
) -> None:
    plan = planned([levels], band, overviews=asked, target=Target(resolution=resolution))
    assert plan.layers[0].tile.overview == level
    told = Note("overviews", "reduced from overviews, which is not exact")
    assert plan.notes == (() if level is None else (told,))


def test_what_is_masked_starts_from_all_pixels(levels: Path, tmp_path: Path) -> None:
    scl = tile(tmp_path / "scl.tif", (32, 32), "uint8", pixel=20)
    sources = [Source(levels, scl), Source(levels)]
    plan = planned(sources, overviews=True, target=Target(resolution=40), mask_scl_classes=(9,))
    assert [layer.tile.overview for layer in plan.layers] == [None, 1]
    assert plan.notes == (Note("overviews", "reduced from overviews, which is not exact"),)


# --- notes ----------------------------------------------------------------------------------------------------


def test_nothing_is_noted_of_tiles_that_are_alike(tmp_path: Path) -> None:
    paths = [tile(tmp_path / f"{n}.tif", corner=(X + 10 * n, Y - 30 * n)) for n in range(3)]
    assert planned(paths).notes == ()
    assert planned(paths, dtype="uint16", nodata=7, resampling="cubic", harmonize=True).notes == ()


def test_all_that_was_reconciled_is_noted(tmp_path: Path) -> None:
    sources = [
        Source(tile(tmp_path / "0.tif"), offset=1000),
        Source(tile(tmp_path / "1.tif", dtype="uint8", nodata=255, corner=(X + 5, Y)), offset=0),
        Source(tile(tmp_path / "2.tif", (3, 3), "int16", nodata=-10000, pixel=20), offset=1000),
        Source(tile(tmp_path / "3.tif", corner=(X, Y + 3)), offset=0),
        Source(tile(tmp_path / "4.tif", corner=(X - 6000, Y))),
        Source(tile(tmp_path / "5.tif", corner=(X - 6000, Y))),
    ]
    plan = planned(sources, target=fixed(X, Y - 60, X + 60, Y), harmonize=True)
    assert plan.notes == (
        Note("dtype", "dtype promoted from int16, uint16, uint8 to int32"),
        Note("empty_values", "tiles have different nodata values (0, 255, -10000)"),
        Note("pixel_sizes", "tiles of different pixel sizes resampled to 10"),
        Note("off_grid", "2 of 4 tiles resampled, because their pixels are not aligned with the mosaic's"),
        Note("outside_grid", "2 of 6 tiles lie outside the grid"),
        Note("offset_removed", "the radiometric offset was removed from 2 of 4 tiles"),
    )


def test_different_nodata_values_are_noted_once_each(tmp_path: Path) -> None:
    paths = [tile(tmp_path / f"{n}.tif", nodata=nodata) for n, nodata in enumerate([None, 7, 0, 7])]
    assert planned(paths).notes == (Note("empty_values", "tiles have different nodata values (0, 7)"),)


def test_tiles_of_another_crs_are_neither_of_another_size_nor_off_the_grid(tmp_path: Path) -> None:
    (x,), (y,) = transform(ZONE_34, ZONE_35, [X], [Y])
    other = tile(tmp_path / "b.tif", crs=ZONE_35, corner=(round(x), round(y)))
    coarse = tile(tmp_path / "c.tif", (3, 3), crs=ZONE_35, corner=(round(x), round(y)), pixel=20)
    assert planned([tile(tmp_path / "a.tif"), other, coarse]).notes == ()
    assert planned([other, coarse], target=Target(ZONE_34)).notes == ()


def test_tiles_of_other_pixels_are_not_off_the_grid(tmp_path: Path) -> None:
    """They are resampled for their size. A tile of the mosaic's pixels, to which the first is anchored, is off it."""
    off = tile(tmp_path / "a.tif", (3, 3), pixel=20, corner=(X + 3, Y))
    paths = [tile(tmp_path / "b.tif"), off]
    assert [note.kind for note in planned(paths).notes] == ["pixel_sizes"]
    assert planned(paths[::-1]).notes[0] == Note("pixel_sizes", "tiles of different pixel sizes resampled to 20")
    target = fixed(X, Y - 60, X + 60, Y, resolution=20)
    assert [note.text for note in planned([off], target=target).notes] == [
        "1 of 1 tiles resampled, because their pixels are not aligned with the mosaic's"
    ]
    assert planned([paths[0]], target=target).notes == ()


UNKNOWN = Note(
    "unknown_band",
    "its name is not a known one; it counts as neither classes (SCL) nor reflectance (B01 to B12)",
)


@pytest.mark.parametrize(
    ("options", "aligned", "off"),
    [
        ({}, False, False),
        ({"harmonize": True}, True, True),
        ({"resampling": "bilinear"}, False, True),
        ({"resampling": "mode"}, False, False),
    ],
)
def test_an_unknown_band_is_noted_where_its_role_matters(
    tmp_path: Path, options: dict[str, Any], aligned: bool, off: bool
) -> None:
    paths = [tile(tmp_path / "0.tif"), tile(tmp_path / "1.tif", corner=(X + 10, Y))]
    assert planned(paths, "ndvi", **options).notes == ((UNKNOWN,) if aligned else ())
    paths.append(tile(tmp_path / "2.tif", corner=(X + 4, Y)))
    assert (UNKNOWN in planned(paths, "ndvi", **options).notes) is off
    assert UNKNOWN not in planned(paths, "AOT", **options).notes
