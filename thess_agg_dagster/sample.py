"""A small lake to experiment with: real Sentinel-2 pixels on the true geometry of the tiles around Thessaloniki.

``python -m thess_agg_dagster.sample FOLDER`` creates it. Scenes, timestamps and tiles are real, at a tenth of their
resolution. The pixels come from one cloudless scene of another coast (Virginia, 2016), repeated over all tiles and
modified for each date: a season, clouds, the edge of the swath. One scene is left out on purpose.
"""

from __future__ import annotations

import csv
import json
import shutil
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import click
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform as project

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.mosaic.bands import role_of
from thess_agg_dagster.mosaic.radiometry import baseline_of, offset_of

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

_SCL = {"vegetation": 4, "bare": 5, "water": 6, "cloud": 9}

# Where the real scene is laid: its upper-left corner in zone 34, and metres a pixel of it stands for.
_PLANE, _CORNER, _SCENE_PIXEL = 32634, (680_000, 4_600_020), 100

Field = NDArray[np.float64]


def real_time_serie() -> list[dict[str, str]]:
    """The 14 real acquisitions over Thessaloniki, as a scene catalogue step wrote them."""
    text = (files("thess_agg_dagster") / "sample_time_serie.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


class NotASampleError(Exception):
    """A folder holds something other than a sample lake, which would be lost."""


def make_sample_lake(root: Path, pixel: int = 100) -> None:
    """Write the sample lake: B04 and B08 at ``pixel`` metres, SCL at twice that, and an area. Replaces an older one.

    Raises :class:`NotASampleError` if the folder is another lake.
    """
    lake, area = DataLake(root), json.dumps({"type": "Polygon", "coordinates": [_AREA]})
    mark = root / AREA
    is_lake = any((root / name).exists() for name in ("cache", "tables", "data_raw"))
    if is_lake and not (mark.exists() and mark.read_text() == area):
        raise NotASampleError(f"{root} is a lake, but not a sample lake, and stays as it is; give a new folder")
    root.mkdir(parents=True, exist_ok=True)
    mark.write_text(area)
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


def write_scene(lake: DataLake, scene_id: str, pixel: int, jpeg2000: bool = False) -> None:
    """Write the three bands of one scene."""
    parts = scene_id.split("_")
    epsg, left, top = TILES[parts[5]]
    acquired = int(parts[2][:8])
    x, y = _coordinates(epsg, left, top, TILE_SIZE // pixel)
    red, nir = _landscape(x, y)
    rng = np.random.default_rng(acquired)
    clouds = _clouds(rng, epsg, left, top, TILE_SIZE // pixel)
    water = nir < 0.9 * red
    season = 0.5 - 0.5 * np.cos(2 * np.pi * (acquired // 100 % 100) / 12)
    red *= np.where(water, 1, 1.35 - 0.35 * season)
    nir *= np.where(water, 1, 0.6 + 0.4 * season)
    classes = np.select(
        [clouds > 0, water, nir > 2 * red],
        [_SCL["cloud"], _SCL["water"], _SCL["vegetation"]],
        _SCL["bare"],
    )
    # The western edge of the swath, slanted.
    outside = x < 614_400 + 0.19 * (y - 4_483_900) + 8_500 * rng.random()
    classes[outside] = 0
    for band, values, dtype, step in (
        ("B04", red + (8_000 - red) * clouds, "uint16", 1),
        ("B08", nir + (8_000 - nir) * clouds, "uint16", 1),
        ("SCL", classes, "uint8", 2),
    ):
        offset = offset_of(baseline_of(scene_id) or "00.00") if role_of(band) == "reflectance" else 0
        data = np.where(outside, 0, np.clip(values, 1, 10000) + offset).astype(dtype)[::step, ::step]
        _write_tile(
            lake.tile(scene_id, band), data, epsg, Affine(pixel * step, 0, left, 0, -pixel * step, top), jpeg2000
        )


def _write_tile(path: Path, data: NDArray[np.generic], epsg: int, transform: Affine, jpeg2000: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = (
        {"driver": "JP2OpenJPEG", "codec": "JP2", "quality": 100, "reversible": "YES"}
        if jpeg2000
        else {"driver": "GTiff", "compress": "deflate", "tiled": True}
    )
    with rasterio.open(
        path,
        "w",
        width=data.shape[1],
        height=data.shape[0],
        count=1,
        dtype=data.dtype,
        crs=f"EPSG:{epsg}",
        transform=transform,
        blockxsize=256,
        blockysize=256,
        **options,
    ) as tile:
        tile.write(data, 1)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)


def _on_lattice(epsg: int, left: float, top: float, nodes: int) -> tuple[Field, Field]:
    """The coordinates, on the plane of zone 34, of a lattice over a tile, including its edges."""
    steps = np.linspace(0, TILE_SIZE, nodes)
    x, y = np.meshgrid(left + steps, top - steps)
    east, north = project(f"EPSG:{epsg}", f"EPSG:{_PLANE}", x.ravel(), y.ravel())
    return np.reshape(east, x.shape), np.reshape(north, x.shape)


def _spread(values: Field, size: int) -> Field:
    """Values on a lattice, bilinear between, at the centres of ``size`` x ``size`` pixels."""
    nodes = np.arange(len(values))
    centres = (np.arange(size) + 0.5) * nodes[-1] / size
    hats = np.clip(1 - np.abs(centres[:, None] - nodes), 0, 1)
    return np.asarray(hats @ values @ hats.T)


def _coordinates(epsg: int, left: float, top: float, size: int) -> tuple[Field, Field]:
    """The coordinates of a tile's pixels on the plane of zone 34."""
    east, north = _on_lattice(epsg, left, top, 24)
    return _spread(east, size), _spread(north, size)


def _clouds(rng: np.random.Generator, epsg: int, left: float, top: float, size: int) -> Field:
    """How much of each pixel is hidden, 0 to 0.9: large clouds with frayed edges, the same in all tiles of a date."""
    x, y = (metres / 100_000 for metres in _on_lattice(epsg, left, top, 240))
    fields = (_waves(rng, x, y, frequency) * weight for frequency, weight in ((9, 1), (30, 0.4), (90, 0.2)))
    return np.clip(_spread(sum(fields, np.zeros_like(x)) - 1.0, size), 0, 0.9)


def _landscape(x: Field, y: Field) -> tuple[Field, Field]:
    """Red and near infrared of the real scene at places on the plane; mirrored beyond its edges."""
    red, nir = _real_scene()
    rows, cols = red.shape
    row = _mirrored(np.floor((_CORNER[1] - y) / _SCENE_PIXEL).astype(int), rows)
    col = _mirrored(np.floor((x - _CORNER[0]) / _SCENE_PIXEL).astype(int), cols)
    return red[row, col].astype(float), nir[row, col].astype(float)


def _mirrored(index: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    folded = index % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


@cache
def _real_scene() -> NDArray[np.uint16]:
    """B04 and B08 of a real scene. Contains modified Copernicus Sentinel data 2016."""
    with as_file(files("thess_agg_dagster") / "sample_scene.jp2") as path, rasterio.open(path) as scene:
        pixels: NDArray[np.uint16] = scene.read()
    return pixels


def _waves(rng: np.random.Generator, x: Field, y: Field, frequency: float) -> Field:
    """A smooth random field over the plane, of unit size: neighbouring tiles agree where they overlap."""
    field = np.zeros_like(x)
    for _ in range(12):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        k = frequency * rng.uniform(0.5, 1.5)
        field += np.cos(k * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.asarray(field / np.sqrt(6))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Make the sample lake in FOLDER."""
    try:
        make_sample_lake(folder)
    except NotASampleError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"Sample lake in {folder}")


if __name__ == "__main__":
    main()
