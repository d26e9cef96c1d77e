"""Where things are in a lake, and names that are never paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from thess_agg_dagster.lake.layout import DataLake, is_plain_name, name_in, path_in
from thess_agg_dagster.lake.tile_template import TemplateError

SCENE = "S2B_MSIL2A_20230202T092109_N0510_R093_T35TKF_20240815T155145"
FIRST = "2023-02-02 09:21:09.024000+00:00"
HOSTILE = [
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "/etc",
    "a\0b",
    "a\nb",
    "x" * 10_000,
    "=HYPERLINK(1)",
    "@x",
    "B０4",
    "B04\u202e",
    "~",
    "-rf",
]


def test_the_layout_of_the_design() -> None:
    lake = DataLake(Path("/lake"))
    assert lake.time_serie == Path("/lake/tables/time_serie.csv")
    assert lake.tile(SCENE, "B04") == Path(f"/lake/cache/s2/{SCENE}/B04.tif")
    folder = Path("/lake/data_raw/aggregated/2023-02-02 09_21_09.024000+00_00")
    assert lake.timestamp_folder("2023-02-02 09:21:09.024000+00:00") == folder
    assert lake.mosaic("2023-02-02 09:21:09.024000+00:00", "SCL") == folder / "SCL.tif"
    assert lake.audit_table("band_report") == Path("/lake/tables/timestamps_aggregation_band_report.csv")


def test_tables_may_live_elsewhere() -> None:
    lake = DataLake(Path("/lake"), Path("/tables"))
    assert lake.time_serie == Path("/tables/time_serie.csv")
    assert lake.audit_table("status") == Path("/tables/timestamps_aggregation_status.csv")


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
def test_a_name_is_never_a_path(name: str) -> None:
    assert not is_plain_name(name)
    with pytest.raises(ValueError, match="not a plain name"):
        DataLake(Path("/lake")).tile(name, "B04")
    with pytest.raises(ValueError, match="not a plain name"):
        DataLake(Path("/lake")).tile(SCENE, name)


@pytest.mark.parametrize("root", ["/new/lake", "s3://bucket/new"])
def test_a_recorded_path_is_found_in_the_lake_at_hand(root: str) -> None:
    lake = DataLake.at(root)
    for recorded in ("/old/lake", "s3://elsewhere/data_raw/aggregated"):
        assert lake.here(f"{recorded}/cache/s2/A/B04.tif") == f"{root}/cache/s2/A/B04.tif"
        assert lake.here(f"{recorded}/data_raw/aggregated/2023-01-01") == f"{root}/data_raw/aggregated/2023-01-01"
    assert (lake.here(""), lake.here("/somewhere/else.tif")) == ("", "/somewhere/else.tif")


@pytest.mark.parametrize(
    ("template", "tile"),
    [
        ("raw/s2/{scene_id}/{band}.tif", "/lake/raw/s2/A/B04.tif"),
        ("{scene_id}/{band}.jp2", "/lake/A/B04.jp2"),
        ("/archive/{scene_id}/{band}.jp2", "/archive/A/B04.jp2"),
        ("s3://bucket/{scene_id}/{band}.tif", "s3://bucket/A/B04.tif"),
        ("s3://bucket/s2/l2a/{scene_id}/{band}.tif", "s3://bucket/s2/l2a/A/B04.tif"),
    ],
)
def test_tiles_may_live_elsewhere(template: str, tile: str) -> None:
    lake = DataLake.at("/lake", tiles=template)
    assert str(lake.tile("A", "B04")) == tile
    assert str(lake.scene_item("A")) == "/lake/cache/s2/stac_items/A.json"
    assert str(lake.mosaic(FIRST, "B04")).startswith("/lake/data_raw/aggregated/")
    name = name_in(lake.root, lake.tile("A", "B04"))
    assert name == tile.removeprefix("/lake/")
    assert str(path_in(lake.root, name)) == tile


@pytest.mark.parametrize(
    "template",
    ["raw/s2", "{band}/{scene_id}.tif", "../{scene_id}/{band}.tif", "a/{scene_id}/{band}", "{scene_id}/{band}.tif/x",
     "{scene_id.__class__}/{band}.tif", "{0}/{scene_id}/{band}.tif", "{scene_id}/{band}_10m.tif"],
)  # fmt: skip
def test_a_template_of_tiles_that_is_none_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="a template is a folder, then {scene_id}/{band} and a suffix"):
        DataLake.at("/lake", tiles=template)


def test_a_recorded_tile_is_found_where_the_template_says() -> None:
    lake = DataLake.at("/new/lake", tiles="raw/s2/{scene_id}/{band}.tif")
    assert lake.here("/old/lake/raw/s2/A/B04.tif") == "/new/lake/raw/s2/A/B04.tif"
    lake = DataLake.at("/new/lake", tiles="s3://bucket/raw/{scene_id}/{band}.tif")
    assert lake.here("s3://bucket/raw/A/B04.tif") == "s3://bucket/raw/A/B04.tif"
