"""Searches of a real STAC API (stac-fastapi with pgstac), straight and through a proxy that stumbles."""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from thess_agg_dagster.catalogue.area import SearchArea
from thess_agg_dagster.catalogue.outcome import Outcome, Request
from thess_agg_dagster.catalogue.search import CatalogueError
from thess_agg_dagster.catalogue.update import update_catalogue
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster_tests.catalogue.items import FIRST, item, product_name, square
from thess_agg_dagster_tests.catalogue.stac_api import Proxy, StacApi, serving_stac, stumbling

pytestmark = pytest.mark.stac

AROUND = square("34TFL").buffer(-0.2)
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StacApi]:
    with serving_stac(tmp_path_factory.mktemp("stac")) as opened:
        yield opened


@pytest.fixture
def proxy(api: StacApi) -> Iterator[Proxy]:
    with stumbling(Proxy(api.url)) as opened:
        yield opened


def filled(api: StacApi, *items: dict[str, Any]) -> str:
    return api.fill(f"s2-{next(_NUMBERS)}", items)


def search(
    lake: Path, url: str, collection: str, shape: BaseGeometry = AROUND, *, first_wait: float = 0.01, **changes: Any
) -> Outcome:
    area = SearchArea.of(Geometry(shape, CRS("EPSG:4326")))
    request = Request(url, collection, area, date(2023, 2, 1), date(2023, 2, 28))
    return update_catalogue(DataLake(lake), replace(request, **changes), first_wait=first_wait)


def rows(lake: Path, table: str = "time_serie") -> list[dict[str, str]]:
    with (lake / "tables" / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("shape", ["copernicus", "earth-search", "planetary-computer"])
def test_from_an_area_and_two_dates_to_a_list(api: StacApi, tmp_path: Path, shape: str) -> None:
    days = [FIRST + timedelta(days=number) for number in (-2, 0, 5, 30)]  # of January, February and March
    items = [item(tile, day, shape=shape) for day in days for tile in ("34TFL", "34TFK", "35TKF")]
    search(tmp_path, api.url, filled(api, *items))
    assert [row["acq_datetime"][:19] for row in rows(tmp_path)] == ["2023-02-02 09:21:09", "2023-02-07 09:21:09"]
    assert [row["tile_ids"] for row in rows(tmp_path)] == [product_name("34TFL", day) for day in days[1:3]]
    assert {row["coverage_frac"] for row in rows(tmp_path)} == {"1.0"}
    saved = DataLake(tmp_path).scene_item(product_name("34TFL"))
    assert f'"id": "{items[3]["id"]}"' in saved.read_text()


def test_an_area_of_a_hundred_tiles_comes_in_pages(api: StacApi, proxy: Proxy, tmp_path: Path) -> None:
    days = [FIRST + timedelta(days=number) for number in (0, 5, 10)]
    letters = "ABCDEFGHJK"
    items = [
        item(f"34S{a}{b}", day, footprint=shapely.box(20 + x, 30 + y, 21.1 + x, 31.1 + y))
        for day in days
        for x, a in enumerate(letters)
        for y, b in enumerate(letters)
    ]
    collection = filled(api, *items)
    started = time.monotonic()
    outcome = search(tmp_path, proxy.url, collection, shapely.box(20, 30, 30, 40))
    assert outcome.items == 300
    assert [row["tiles_count"] for row in rows(tmp_path)] == ["100"] * 3
    found = [path for _, path, _ in proxy.requests if path.startswith("/search")]
    assert len(found) in (3, 4)
    assert len(list((tmp_path / "cache/s2/stac_items").iterdir())) == 300
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "faults",
    [
        ["503"],
        ["", "500", "502", "429"],
        ["", "cut"],
        ["cut", "half", "page"],
        ["", "", "429", "cut"],
    ],
)
def test_a_server_that_stumbles_is_asked_again(api: StacApi, proxy: Proxy, tmp_path: Path, faults: list[str]) -> None:
    items = [item(tile, FIRST + timedelta(days=day)) for day in range(0, 20, 5) for tile in ("34TFL", "34TFK")]
    proxy.faults = list(faults)
    outcome = search(tmp_path, proxy.url, filled(api, *items), square("34TFL"))
    assert proxy.faults == []
    assert outcome.items == 8
    assert len(rows(tmp_path)) == 4


def test_a_server_that_says_when_is_asked_then(api: StacApi, proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults = ["", "429 after 2"]
    search(tmp_path, proxy.url, filled(api, item()))
    assert proxy.times[2] - proxy.times[1] >= 2
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        (["503"] * 99, "503"),
        (["cut"] * 99, "IncompleteRead|broken"),
        (["page"] * 99, "not JSON"),
        (["401"], "the server answers 401"),
        (["", "400"], "the server answers 400"),
        (["", *["half"] * 99], "not JSON"),
    ],
)
def test_what_cannot_be_had_leaves_everything_as_it_was(
    api: StacApi, proxy: Proxy, tmp_path: Path, faults: list[str], why: str
) -> None:
    collection = filled(api, item())
    search(tmp_path, proxy.url, collection)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    proxy.faults, proxy.requests = list(faults), []
    with pytest.raises(CatalogueError, match=why) as raised:
        search(tmp_path, proxy.url, collection)
    assert str(raised.value).startswith(f"{proxy.url}: ")
    assert "--stac-url" in str(raised.value)
    assert len(proxy.requests) <= 8
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_server_at_all(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="127.0.0.1:9"):
        search(tmp_path, "http://127.0.0.1:9", "sentinel-2-l2a")


def test_items_that_come_twice_and_one_without_a_footprint(api: StacApi, proxy: Proxy, tmp_path: Path) -> None:
    def edit(answer: dict[str, Any]) -> None:
        answer["features"] += answer["features"]
        answer["features"].append({**answer["features"][0], "id": "floating", "geometry": None})

    proxy.edit = edit
    older = {"baseline": "04.00", "made": "20230202T120000"}
    outcome = search(tmp_path, proxy.url, filled(api, item(), item("34TFL", **older)))  # type: ignore[arg-type]
    assert outcome.items == 5
    assert [row["tile_ids"] for row in rows(tmp_path)] == [product_name("34TFL")]
    found = {row["scene_id"]: row["reason"] for row in rows(tmp_path, "catalogue_scenes")}
    assert len(found) == 3
    assert found["floating"] == "cannot be used: it has no footprint"


def test_an_overpass_across_midnight_of_the_last_day(api: StacApi, tmp_path: Path) -> None:
    late = datetime(2023, 2, 28, 23, 58, tzinfo=UTC)
    both = [item(tile, late, shape="earth-search") for tile in ("34TFL", "34TFK")]
    assert {each["properties"]["datetime"][:10] for each in both} == {"2023-03-01"}
    search(tmp_path, api.url, filled(api, *both), square("34TFL").union(square("34TFK")).buffer(-0.1))
    (row,) = rows(tmp_path)
    assert (row["acq_datetime"], row["tiles_count"]) == ("2023-02-28 23:58:00+00:00", "2")


def test_an_area_across_the_antimeridian(api: StacApi, proxy: Proxy, tmp_path: Path) -> None:
    west, east = shapely.box(179.4, -17.5, 180, -16.5), shapely.box(-180, -17.5, -179.2, -16.5)
    items = [
        item("60KYF", footprint=shapely.box(179.2, -17.6, 180, -16.4)),
        item("01KAB", footprint=shapely.box(-180, -17.6, -179.6, -16.4)),
        item("01KBB", footprint=shapely.MultiPolygon([shapely.box(179.9, -17.6, 180, -16.4), east.buffer(0.1)])),
        item("34TFL", footprint=shapely.box(0, -17.5, 1, -16.5)),
    ]
    jumping = shapely.Polygon([(179.4, -17.5), (-179.2, -17.5), (-179.2, -16.5), (179.4, -16.5)])
    search(tmp_path, proxy.url, filled(api, *items), jumping)
    (row,) = rows(tmp_path)
    assert [name.split("_")[5] for name in row["tile_ids"].split("|")] == ["T60KYF", "T01KBB"]
    assert row["coverage_frac"] == "1.0"
    asked = [body["intersects"] for _, path, body in proxy.requests if path == "/search"]
    assert shapely.union_all([shapely.geometry.shape(each) for each in asked]).symmetric_difference(
        west.union(east)
    ).area == pytest.approx(0, abs=1e-9)
