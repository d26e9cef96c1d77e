"""A small lake to try things on: the true geometry of the Thessaloniki tiles at a tenth of their resolution.

``python -m thess_agg_dagster.sample FOLDER`` makes it. Pixels are synthetic (a landscape, clouds, the edge of
the swath), coordinates, scenes and timestamps are real. One scene is left out on purpose.
"""

from __future__ import annotations

import csv
import json
import shutil
from importlib.resources import files
from pathlib import Path

import click
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform as project

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.mosaic.radiometry import baseline_of, is_reflectance, offset_of

#: EPSG code and upper-left corner (metres) of the tiles around Thessaloniki; each is 109 800 m a side.
TILES = {
    "T34TFK": (32634, 600000, 4500000),
    "T34TFL": (32634, 600000, 4600020),
    "T34TGL": (32634, 699960, 4600020),
    "T35TKE": (32635, 199980, 4500000),
    "T35TKF": (32635, 199980, 4600020),
}
TILE_SIZE = 109_800

# Which of the real rows the sample takes (three and four tiles, zone 34 and zone 35 first), which of its scenes is
# missing, and which arrive as JPEG 2000, as the Copernicus archive delivers them.
_ROWS = (0, 1, 2, 3, 6, 8)
_JPEG2000_ROW = 8
#: The scene that the sample lacks.
MISSING_SCENE = "S2A_MSIL2A_20230816T092031_N0510_R093_T34TFL_20240907T164626"

#: An area of interest in the sample lake, across the border of the two zones at 24 degrees.
AREA = "aoi.geojson"
_AREA = [(23.3, 40.3), (24.3, 40.35), (24.25, 40.9), (23.4, 40.8), (23.3, 40.3)]

_SCL = {"water": 6, "vegetation": 4, "bare": 5, "cloud": 9}

Field = NDArray[np.float64]


def real_time_serie() -> list[dict[str, str]]:
    """The 14 real acquisitions over Thessaloniki, as a scene-catalogue step wrote them."""
    text = (files("thess_agg_dagster") / "sample_time_serie.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def make_sample_lake(root: Path, pixel: int = 100) -> None:
    """Write the sample lake: B04 and B08 at ``pixel`` metres, SCL at twice that, and an area. An older one is replaced."""
    lake = DataLake(root)
    shutil.rmtree(root / "cache", ignore_errors=True)
    rows = real_time_serie()
    for number in _ROWS:
        for scene_id in rows[number]["tile_ids"].split("|"):
            if scene_id != MISSING_SCENE:
                write_scene(lake, scene_id, pixel, jpeg2000=number == _JPEG2000_ROW)
    lake.tables_folder.mkdir(parents=True, exist_ok=True)
    with lake.time_serie.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[number] for number in _ROWS)
    (root / AREA).write_text(json.dumps({"type": "Polygon", "coordinates": [_AREA]}))


def write_scene(lake: DataLake, scene_id: str, pixel: int, jpeg2000: bool = False) -> None:
    """Write the three bands of one scene."""
    parts = scene_id.split("_")
    epsg, left, top = TILES[parts[5]]
    acquired = int(parts[2][:8])
    lon, lat = _coordinates(epsg, left, top, TILE_SIZE // pixel)
    rng = np.random.default_rng(acquired)
    land = _waves(np.random.default_rng(1), lon, lat, 8) + 0.6 * (lat - 40.6) - 0.5 * (lon - 23)
    fields = _waves(np.random.default_rng(2), lon, lat, 60)
    clouds = _waves(rng, lon, lat, 10) - 0.9
    season = 0.5 - 0.5 * np.cos(2 * np.pi * (acquired // 100 % 100) / 12)
    water, cloud = land < -0.3, clouds > 0
    green = np.clip(0.45 + 0.35 * fields, 0, 1) * (0.35 + 0.65 * season)
    red = np.where(water, 350, 1900 - 1300 * green) + 9000 * np.clip(clouds, 0, 0.7)
    nir = np.where(water, 220, 1600 + 2600 * green) + 8000 * np.clip(clouds, 0, 0.7)
    noise = rng.normal(0, 25, red.shape)
    classes = np.select([cloud, water, green > 0.35], [_SCL["cloud"], _SCL["water"], _SCL["vegetation"]], _SCL["bare"])
    outside = lon < 22.35 + 0.25 * (lat - 40.5) + 0.1 * rng.random()  # the western edge of the swath, slanted
    classes[outside] = 0
    for band, values, dtype, step in (
        ("B04", red + noise, "uint16", 1),
        ("B08", nir - noise, "uint16", 1),
        ("SCL", classes, "uint8", 2),
    ):
        offset = offset_of(baseline_of(scene_id) or "00.00") if is_reflectance(band) else 0
        data = np.where(outside, 0, np.clip(values, 1, 10000) + offset).astype(dtype)[::step, ::step]
        path = lake.tile(scene_id, band)
        path.parent.mkdir(parents=True, exist_ok=True)
        options = (
            {
                "driver": "JP2OpenJPEG",
                "codec": "JP2",
                "quality": 100,
                "reversible": "YES",
            }
            if jpeg2000
            else {"driver": "GTiff", "compress": "deflate", "tiled": True}
        )
        with rasterio.open(
            path,
            "w",
            width=data.shape[1],
            height=data.shape[0],
            count=1,
            dtype=dtype,
            crs=f"EPSG:{epsg}",
            transform=Affine(pixel * step, 0, left, 0, -pixel * step, top),
            blockxsize=256,
            blockysize=256,
            **options,
        ) as tile:
            tile.write(data, 1)
        path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)


def _coordinates(epsg: int, left: float, top: float, size: int) -> tuple[Field, Field]:
    """Longitude and latitude of ``size`` x ``size`` pixels: exact on a coarse lattice, bilinear between."""
    nodes = np.linspace(0, TILE_SIZE, 24)
    x, y = np.meshgrid(left + nodes, top - nodes)
    lon, lat = project(f"EPSG:{epsg}", "EPSG:4326", x.ravel(), y.ravel())
    centres = (np.arange(size) + 0.5) * TILE_SIZE / size
    hats = np.clip(1 - np.abs(centres[:, None] - nodes) / (nodes[1] - nodes[0]), 0, 1)
    return hats @ np.reshape(lon, x.shape) @ hats.T, hats @ np.reshape(lat, x.shape) @ hats.T


def _waves(rng: np.random.Generator, lon: Field, lat: Field, frequency: float) -> Field:
    """A smooth random field over the Earth, of unit size: neighbouring tiles agree where they overlap."""
    field = np.zeros_like(lon)
    for _ in range(12):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        k = frequency * rng.uniform(0.5, 1.5)
        field += np.cos(k * (np.cos(angle) * lon + np.sin(angle) * lat) + phase)
    return np.asarray(field / np.sqrt(6))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Make the sample lake in FOLDER."""
    make_sample_lake(folder)
    click.echo(f"Sample lake in {folder}")


if __name__ == "__main__":
    main()
