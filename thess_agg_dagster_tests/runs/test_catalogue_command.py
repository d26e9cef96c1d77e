"""From an empty folder, an area and two dates to mosaics, in one command: a real STAC API, a real server of tiles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result

from thess_agg_dagster.runs import catalogue_command  # noqa: F401  (a subcommand of main)
from thess_agg_dagster.runs.command import main
from thess_agg_dagster_tests.catalogue.items import FIRST, TILES, item, product_name, square
from thess_agg_dagster_tests.catalogue.stac_api import StacApi, serving_stac
from thess_agg_dagster_tests.processes import run
from thess_agg_dagster_tests.rasters import noise, write_tile
from thess_agg_dagster_tests.servers import PASSWORD, USER, Archive, serving

PAIR = ("34TFL", "34TFK")
SIDE = 183  # pixels of 600 m


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["catalogue", *arguments], env=environment)


@pytest.fixture
def aoi(tmp_path: Path) -> Path:
    shape = shapely.union(square("34TFL"), square("34TFK")).buffer(-0.1)
    path = tmp_path / "aoi.geojson"
    path.write_text(shapely.to_geojson(shape))
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give an area and a date"),
        (["--aoi", "no-such-file"], "give an area and a date"),
        (["--aoi", "no-such-file", "--from", "2023-01-01"], "cannot be found"),
        (["--from", "yesterday"], "from='yesterday' is not a date"),
        (["--profile", "nasa"], "profile='nasa' is not one of copernicus, earth-search, planetary-computer"),
        (["--stac-url", "stac.example.org"], "give https://"),
        (["--max-cloud", "101"], "max_cloud=101.0 is not between 0 and 100"),
        (["--min-coverage", "50"], "min_coverage=50.0 is not between 0 and 1"),
        (["--every", "0"], "every=0 is not between 1"),
        (["--aoi", "POLYGON((0 0,1 0,1 1,0 0))", "--from", "2023-02-01", "--to", "2023-01-01"], "is before from="),
        (["--", "--bands", "B04"], "need --aggregate"),
    ],
)
def test_bad_usage_says_what_is_allowed(options: list[str], message: str) -> None:
    result = invoke(*options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_catalogue_that_does_not_answer(tmp_path: Path, aoi: Path) -> None:
    result = invoke(
        *("--aoi", str(aoi), "--from", "2023-02-01", "--stac-url", "http://127.0.0.1:9", "--data-lake", str(tmp_path)),
        THESS_CATALOGUE_PROFILE="earth-search",
    )
    assert result.exit_code == 1
    assert "http://127.0.0.1:9: " in result.stderr
    assert not (tmp_path / "tables").exists()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StacApi]:
    with serving_stac(tmp_path_factory.mktemp("stac")) as opened:
        yield opened


def tiles_of(day: int, shape: str, tmp_path: Path) -> dict[str, bytes]:
    """The files of two tiles as a server has them: 600 m pixels, SCL 1200 m, tiles overlap by 9.78 km."""
    files = {}
    for number, tile in enumerate(PAIR):
        code, x, y = TILES[tile]
        scene_id = product_name(tile, FIRST + timedelta(days=day))
        for band, step in {"B04": 1, "B08": 1, "SCL": 2}.items():
            pixels = noise(day + number + step, (SIDE // step, SIDE // step), high=12 if step == 2 else 10000)
            dtype = "uint8" if step == 2 else "uint16"
            path = tmp_path / "made" / scene_id / f"{band}.tif"
            write_tile(
                path, pixels.astype(dtype), crs=f"EPSG:{code}", corner=(x, y), pixel=600 * step, jpeg2000=step == 1
            )
            size = 20 if band == "SCL" else 10
            name = (
                f"/{scene_id}/T{tile}_{band}_{size}m.jp2"
                if shape == "copernicus"
                else f"/{scene_id}.SAFE/T{tile}_{band}.tif"
            )
            files[name] = path.read_bytes()
    return files


@pytest.mark.stac
@pytest.mark.parametrize("shape", ["copernicus", "planetary-computer"])
def test_one_command_from_an_area_to_mosaics(api: StacApi, aoi: Path, tmp_path: Path, shape: str) -> None:
    files = tiles_of(0, shape, tmp_path) | tiles_of(5, shape, tmp_path)
    lake = tmp_path / "lake"
    with serving(Archive(files, needs_token=True)) as archive:
        items = [
            item(tile, FIRST + timedelta(days=day), shape=shape, files=archive.url) for day in (0, 5) for tile in PAIR
        ]
        cloudy = item("34TFL", FIRST + timedelta(days=10), shape=shape, cloud=100.0)
        collection = api.fill(f"from-{shape}", [*items, cloudy])
        done = run(
            *("thess_agg_dagster", "catalogue", "--data-lake", str(lake), "--aoi", str(aoi), "--from", "2023-02-01"),
            *("--to", "2023-02-28", "--stac-url", api.url, "--collection", collection, "--aggregate"),
            *(
                "--",
                "--max-workers",
                "1",
                "--download-from",
                archive.url,
                "--download-token-url",
                f"{archive.url}/token",
            ),
            CDSE_USERNAME=USER,
            CDSE_PASSWORD=PASSWORD,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 new, 0 listed before, 1 left out" in done.stdout
    for day in (0, 5):
        _equals_numpy(lake, day, tmp_path)


def _equals_numpy(lake: Path, day: int, tmp_path: Path) -> None:
    at = FIRST + timedelta(days=day)
    folder = lake / "data_raw" / "aggregated" / f"{at:%Y-%m-%d %H_%M_%S}.024000+00_00"
    for band, step in {"B04": 1, "B08": 1, "SCL": 2}.items():
        pixel = 600 * step
        upper, lower = (
            rasterio.open(tmp_path / "made" / product_name(tile, at) / f"{band}.tif").read(1) for tile in PAIR
        )
        # 34TFK begins 100 020 m below: not a multiple of 600 m, so each pixel takes the one that its centre falls in.
        height = int(np.ceil((100_020 + lower.shape[0] * pixel) / pixel))
        rows = np.arange(height)
        source = np.floor((rows * pixel + pixel / 2 - 100_020) / pixel).astype(int)
        expected = np.zeros((height, upper.shape[1]), upper.dtype)
        good = (source >= 0) & (source < lower.shape[0])
        expected[good] = lower[source[good]]
        top = expected[: upper.shape[0]]
        top[upper != 0] = upper[upper != 0]
        with rasterio.open(folder / f"{band}.tif") as mosaic:
            found: Any = mosaic.read(1)
            assert mosaic.crs.to_epsg() == 32634
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)


@pytest.mark.stac
def test_a_dry_run_tells_and_writes_nothing(api: StacApi, aoi: Path, tmp_path: Path) -> None:
    collection = api.fill("dry", [item(tile) for tile in PAIR])
    options = ["--aoi", str(aoi), "--from", "2023-02-01", "--stac-url", api.url, "--collection", collection]
    lake = tmp_path / "lake"
    result = invoke(*options, "--to", "2023-02-28", "--data-lake", str(lake), "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "2023-02-02 09:21:09.024000+00:00" in result.stdout
    assert "Dry run: nothing was written" in result.stdout
    assert not lake.exists()
    nothing = invoke(*options, "--to", "2023-02-01", "--data-lake", str(lake))
    assert "The catalogue has nothing for this area" in nothing.stdout
    assert json.loads(aoi.read_text())["type"] == "Polygon"
