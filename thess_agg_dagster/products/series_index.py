"""Indices of everything published with a STAC item: a stac-geoparquet table, and a GDAL raster tile index (GTI) of each
band, which GDAL >= 3.9 opens as one raster. Both are made of the items alone; no mosaic is opened.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rasterio.dtypes import dtype_rev, typename_fwd

from thess_agg_dagster.lake.layout import tile_index_name
from thess_agg_dagster.lake.periods import kind_of

# One object, because NaN is only equal to itself as that.
_NAN = math.nan

#: Path of an item below the folder of its collection, and the item.
Listed = tuple[str, Mapping[str, Any]]


def series_parquet(items: Iterable[Listed], collection: str) -> bytes:
    """A stac-geoparquet file with a row per item, in the order given; ``collection`` (JSON) stands in its metadata.

    Footprints are in longitude and latitude (WGS 84). Addresses, relative to the item in its own file, are relative to
    the folder of the collection here. ``"nan"``, which JSON has no number for, becomes one: a column has one type.
    """
    from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet  # here, because only few write a catalog

    rows = parse_stac_items_to_arrow([_row(name, item) for name, item in items])
    described = json.loads(collection)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "series.parquet")
        to_parquet(rows, path, collections={described["id"]: described}, compression="zstd")
        return path.read_bytes()


def _row(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(json.dumps(item))
    for linked in (*row["links"], *row["assets"].values()):
        linked["href"] = _from_collection(name, linked["href"])
    row["links"].append({"rel": "self", "href": f"./{name}", "type": "application/geo+json"})
    for asset in row["assets"].values():
        for numbers in (asset, *asset.get("raster:bands", ())):
            if "nodata" in numbers:
                numbers["nodata"] = float(numbers["nodata"])
    return row


def _from_collection(name: str, href: str) -> str:
    """An address relative to an item, as it is from the folder of the collection."""
    if "://" in href or href.startswith("/"):
        return href
    return f"./{posixpath.normpath(posixpath.join(posixpath.dirname(name), href))}"


class _Like(NamedTuple):
    """What all mosaics of a tile index share. GDAL has one of each for the whole index, and would resample, convert or
    misread any mosaic with another, without a word."""

    kind: str
    crs: str
    resolution: tuple[float, float]
    #: Where pixels begin, in parts of a pixel (rounded to thousandths).
    shift: tuple[float, float]
    dtype: str
    nodata: float | None
    #: What makes reflectance (or an index) of the pixels: scale and offset, where they are known.
    scaling: tuple[float, float] | None

    def names(self) -> tuple[str, ...]:
        """Each of them as part of a file's name."""
        code = self.crs.replace(":", "_")
        return (
            self.kind,
            code if len(code) < 20 else f"crs_{hashlib.sha256(code.encode()).hexdigest()[:8]}",
            f"res_{_text(*self.resolution)}",
            f"shift_{_text(*self.shift)}",
            self.dtype,
            f"nodata_{'none' if self.nodata is None else _text(self.nodata)}",
            f"scale_{_text(*self.scaling)}" if self.scaling else "scale_unknown",
        )


def _text(*numbers: float) -> str:
    return "_".join(repr(number).removesuffix(".0") for number in numbers)


class _Tile(NamedTuple):
    location: str
    id: str
    datetime: str
    bbox: tuple[float, float, float, float]


def tile_indices(items: Iterable[Listed]) -> dict[str, bytes]:
    """The GeoPackages of all bands by file name, to stand beside the collection.

    Each has one layer: the outlines of the mosaics in their own CRS, with ``location`` (relative to the folder of the
    collection), ``id`` (of the item) and ``datetime`` (UTC; the beginning of a period). Where mosaics overlap, the
    latest valid pixel is on top. A band whose mosaics differ in what GDAL would not keep apart (:class:`_Like`) has several,
    and each one's name tells what is peculiar to it; together they hold every mosaic.
    """
    bands: dict[str, dict[_Like, list[_Tile]]] = {}
    for band, like, tile in _mosaics(items):
        bands.setdefault(band, {}).setdefault(like, []).append(tile)
    return {
        tile_index_name(name): _geopackage(band, like, groups[like])
        for band, groups in bands.items()
        for like, name in _names(band, list(groups)).items()
    }


def _names(band: str, groups: Sequence[_Like]) -> dict[_Like, str]:
    """As much of what is peculiar to each group as tells it from all others: the CRS before the size of pixels, ..."""
    found = dict.fromkeys(groups, band)
    for parts in zip(*(like.names() for like in groups), strict=True):
        by_name: dict[str, set[str]] = {}
        for name, part in zip(found.values(), parts, strict=True):
            by_name.setdefault(name, set()).add(part)
        found = {
            like: f"{name}@{part}" if len(by_name[name]) > 1 else name
            for (like, name), part in zip(found.items(), parts, strict=True)
        }
    return found


def _mosaics(items: Iterable[Listed]) -> Iterator[tuple[str, _Like, _Tile]]:
    for name, item in items:
        told = item["properties"]
        for band, asset in item["assets"].items():
            if "data" not in asset["roles"]:
                continue  # a picture, or numbers that mean something else in each item
            dx, _, left, _, dy, top = asset["proj:transform"]
            scaling = asset["raster:bands"][0]
            like = _Like(
                kind_of(item["id"]) if "start_datetime" in told else "",
                told.get("proj:code") or told["proj:wkt2"],
                (float(dx), float(-dy)),
                (_part(left / dx), _part(top / dy)),
                asset["data_type"],
                _NAN if (nodata := asset.get("nodata")) == "nan" else None if nodata is None else float(nodata),
                (float(scaling["scale"]), float(scaling["offset"])) if "scale" in scaling else None,
            )
            when = told.get("start_datetime") or told["datetime"]
            yield band, like, _Tile(_from_collection(name, asset["href"]), item["id"], when, tuple(asset["proj:bbox"]))


def _part(pixels: float) -> float:
    return round(pixels % 1, 3) % 1


def _geopackage(band: str, like: _Like, tiles: Sequence[_Tile]) -> bytes:
    import geopandas as gpd
    import pandas as pd
    import pyogrio
    import shapely

    frame = gpd.GeoDataFrame(
        {
            "location": [tile.location for tile in tiles],
            "id": [tile.id for tile in tiles],
            "datetime": pd.to_datetime([tile.datetime for tile in tiles], utc=True, format="ISO8601"),
        },
        geometry=[shapely.box(*tile.bbox) for tile in tiles],
        crs=like.crs,
    )
    told = {
        "LOCATION_FIELD": "location",
        "SORT_FIELD": "datetime",
        "SORT_FIELD_ASC": "YES",
        "RESX": repr(like.resolution[0]),
        "RESY": repr(like.resolution[1]),
        "BAND_COUNT": "1",
        "DATA_TYPE": typename_fwd[dtype_rev[like.dtype]],
    }
    if like.nodata is not None:
        told["NODATA"] = repr(like.nodata)
    if like.scaling:
        told["BAND_1_SCALE"], told["BAND_1_OFFSET"] = map(repr, like.scaling)
    data = io.BytesIO()
    pyogrio.write_dataframe(frame, data, layer=band, driver="GPKG", layer_metadata=told)
    return data.getvalue()
