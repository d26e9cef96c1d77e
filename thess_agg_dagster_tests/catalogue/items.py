"""STAC items as the three catalogues that are known by name write them, from their public documentation."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyproj
import shapely
import shapely.ops

from thess_agg_dagster import sample
from thess_agg_dagster.sample import TILE_SIZE

#: Real tiles around Thessaloniki: EPSG code and upper-left corner.
TILES = {name.removeprefix("T"): place for name, place in sample.TILES.items()}
FIRST = datetime(2023, 2, 2, 9, 21, 9, tzinfo=UTC)


def square(tile: str, left: float = 0.0, right: float = 1.0) -> shapely.Polygon:
    """A tile in longitude and latitude, or the part of it between two shares of its width."""
    code, x, y = TILES[tile]
    box = shapely.box(x + left * TILE_SIZE, y - TILE_SIZE, x + right * TILE_SIZE, y)
    to_degrees = pyproj.Transformer.from_crs(code, 4326, always_xy=True)
    return shapely.ops.transform(to_degrees.transform, shapely.segmentize(box, TILE_SIZE / 8))


def product_name(
    tile: str,
    datatake: datetime = FIRST,
    *,
    platform: str = "S2B",
    baseline: str = "05.10",
    orbit: int = 93,
    made: str = "20240815T155145",
) -> str:
    return f"{platform}_MSIL2A_{datatake:%Y%m%dT%H%M%S}_N{baseline.replace('.', '')}_R{orbit:03d}_T{tile}_{made}"


def item(
    tile: str = "34TFL",
    datatake: datetime = FIRST,
    *,
    shape: str = "copernicus",
    footprint: Any = None,
    cloud: float | None = 10.0,
    strip: datetime | None = None,
    files: str = "",
    **name: Any,
) -> dict[str, Any]:
    """An item of a tile and datatake, in the shape of a catalogue. ``files`` is where its files can be had."""
    scene_id = product_name(tile, datatake, **name)
    platform, baseline = name.get("platform", "S2B"), name.get("baseline", "05.10")
    strip_id = f"{platform}_OPER_MSI_L2A_DS_2BPS_{name.get('made', '20240815T155145')}"
    strip_id += f"_S{strip or datatake + timedelta(seconds=3):%Y%m%dT%H%M%S}_N{baseline}"
    geometry = square(tile) if footprint is None else footprint
    made = {
        "copernicus": _copernicus,
        "earth-search": _earth_search,
        "planetary-computer": _planetary_computer,
    }[shape](scene_id, tile, datatake, platform, baseline, strip_id, files)
    if cloud is not None:
        made["properties"]["eo:cloud_cover"] = cloud
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "collection": "sentinel-2-l2a",
        "geometry": json.loads(shapely.to_geojson(geometry)),
        "bbox": list(geometry.bounds),
        "links": [],
        **made,
    }


def _exactly(datatake: datetime) -> str:
    return f"{datatake:%Y-%m-%dT%H:%M:%S}.024000Z"


def _copernicus(
    scene_id: str, tile: str, datatake: datetime, platform: str, baseline: str, strip: str, files: str
) -> Any:
    assets = {}
    for band, resolutions in {"B04": (60, 20, 10), "B08": (10,), "SCL": (60, 20)}.items():
        for resolution in resolutions:
            key = f"{band}_{resolution}m"
            assets[key] = {
                "href": f"s3://eodata/Sentinel-2/MSI/L2A/{scene_id}.SAFE/{key}.jp2",
                "alternate": {"https": {"href": f"{files}/{scene_id}/T{tile}_{key}.jp2", "auth:refs": ["oidc"]}},
                "type": "image/jp2",
                "roles": ["data", f"gsd:{resolution}m"],
                "bands": [{"name": band}],
                "gsd": resolution,
            }
    properties = {
        "datetime": _exactly(datatake),
        "start_datetime": _exactly(datatake),
        "end_datetime": _exactly(datatake),
        "platform": f"sentinel-{platform[1:].lower()}",
        "constellation": "sentinel-2",
        "grid:code": f"MGRS-{tile}",
        "sat:relative_orbit": int(scene_id.split("_R")[1][:3]),
        "processing:version": baseline,
        "eopf:datatake_id": f"G{platform}_{datatake:%Y%m%dT%H%M%S}_030863_N{baseline}",
        "eopf:datastrip_id": strip,
    }
    return {"id": scene_id, "properties": properties, "assets": assets}


def _earth_search(
    scene_id: str, tile: str, datatake: datetime, platform: str, baseline: str, strip: str, files: str
) -> Any:
    # Each tile has a time of its own: when the satellite came over it.
    acquired = datatake + timedelta(seconds=840 + 14 * "LKFE".find(tile[-1]), milliseconds=536)
    folder = f"{files}/{platform}_{tile}_{datatake:%Y%m%d}_0_L2A"
    assets = {
        key: {"href": f"{folder}/{name}.tif", "type": "image/tiff; application=geotiff; profile=cloud-optimized"}
        for key, name in {"nir": "B08", "red": "B04", "scl": "SCL"}.items()
    }
    assets["red-jp2"] = {"href": f"s3://sentinel-s2-l2a/tiles/{tile}/R10m/B04.jp2", "type": "image/jp2"}
    properties = {
        "datetime": f"{acquired:%Y-%m-%dT%H:%M:%S}.{acquired.microsecond:06d}Z",
        "platform": f"sentinel-{platform[1:].lower()}",
        "grid:code": f"MGRS-{tile}",
        "s2:product_uri": f"{scene_id}.SAFE",
        "s2:processing_baseline": baseline,
        "s2:datatake_id": f"G{platform}_{datatake:%Y%m%dT%H%M%S}_030863_N{baseline}",
        "s2:datastrip_id": strip,
        "s2:sequence": "0",
        "earthsearch:boa_offset_applied": True,
    }
    made = scene_id[-15:]
    return {"id": f"{platform}_{tile}_{datatake:%Y%m%d}_{made}_L2A", "properties": properties, "assets": assets}


def _planetary_computer(
    scene_id: str, tile: str, datatake: datetime, platform: str, baseline: str, strip: str, files: str
) -> Any:
    number = baseline.replace(".", "")
    assets = {
        band: {"href": f"{files}/{scene_id}.SAFE/T{tile}_{band}.tif", "eo:bands": [{"name": band}], "gsd": size}
        for band, size in {"SCL": 20, "B08": 10, "B04": 10}.items()
    }
    properties = {
        "datetime": _exactly(datatake),
        "platform": f"Sentinel-{platform[1:]}",
        "s2:mgrs_tile": tile,
        "sat:relative_orbit": int(scene_id.split("_R")[1][:3]),
        "s2:product_uri": f"{scene_id}.SAFE",
        "s2:processing_baseline": baseline,
        "s2:datatake_id": f"G{platform}_{datatake:%Y%m%dT%H%M%S}_030863_N{baseline}",
        "s2:datastrip_id": strip,
    }
    return {"id": scene_id.replace(f"_N{number}", ""), "properties": properties, "assets": assets}
