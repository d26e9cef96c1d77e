"""One Sentinel-2 product, as described by the STAC item of any provider."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import shapely
from shapely.geometry.base import BaseGeometry

from thess_agg_dagster.lake.layout import is_plain_name
from thess_agg_dagster.lake.time_serie import instant_of

# ESA's naming of products: mission, level, start of the datatake, baseline, relative orbit, tile, and what tells products
# of one datatake apart (about the time when each was made).
_PRODUCT = re.compile(
    r"(?P<platform>S2[A-Z])_MSIL(?:1C|2A)_(?P<datatake>\d{8}T\d{6})_N(?P<baseline>\d{4})"
    r"_R(?P<orbit>\d{3})_T(?P<tile>\d{2}[C-X][A-Z]{2})_(?P<made>\d{8}T\d{6})",
    re.ASCII,
)
_DATATAKE = re.compile(r"GS2[A-Z]_(\d{8}T\d{6})_", re.ASCII)
_STRIP = re.compile(r"_S(\d{8}T\d{6})_N", re.ASCII)
_TILE = re.compile(r"(?:MGRS-)?T?(\d{1,2}[C-X][A-Z]{2})", re.ASCII)
# Where items may name the product, beside their id.
_PRODUCT_NAMES = ("s2:product_uri", "sentinel:product_id", "title")
# What was made by hand says nothing about which is newer.
_BY_HAND = "99.99"


class OverpassKey(NamedTuple):
    """The properties shared by all scenes of one overpass. Times are not enough: they differ between tiles and may
    cross midnight."""

    platform: str
    datatake: datetime
    orbit: int | None


class ProductName(NamedTuple):
    """The parts of a product's name."""

    overpass: OverpassKey
    tile: str
    baseline: str
    made: str


@dataclass(frozen=True)
class Scene:
    """One product of one tile."""

    scene_id: str
    overpass: OverpassKey
    tile: str
    baseline: str
    #: When the product was made; text that sorts.
    made: str
    #: When the sensing of its datastrip began: halves of a tile differ in it. ``None`` where the item does not tell.
    strip: str | None
    acquired: datetime
    cloud: float | None
    #: Longitude and latitude.
    footprint: BaseGeometry = field(compare=False, repr=False)
    #: The item, packed: a year of a country is thousands of them.
    packed: bytes = field(compare=False, repr=False)

    @property
    def item(self) -> dict[str, Any]:
        return dict(json.loads(zlib.decompress(self.packed)))

    @property
    def age(self) -> tuple[str, str, str]:
        """Sorts products of one tile and datatake from the oldest to the newest."""
        return ("" if self.baseline == _BY_HAND else self.baseline, self.made, self.scene_id)


class UnusableItemError(ValueError):
    """An item that cannot be used as a scene; the text says why."""


def read_product_name(text: str) -> ProductName | None:
    """The parts of a product's name, or ``None`` if the text is not one."""
    found = _PRODUCT.fullmatch(text.removesuffix(".SAFE"))
    if found is None:
        return None
    key = OverpassKey(found["platform"], _compact_time(found["datatake"]), int(found["orbit"]))
    return ProductName(key, found["tile"], f"{found['baseline'][:2]}.{found['baseline'][2:]}", found["made"])


def scene_of(item: Mapping[str, Any]) -> Scene:
    """The scene that a STAC item describes. Raises :class:`UnusableItemError`."""
    properties = item.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    names = [str(properties.get(name) or "") for name in _PRODUCT_NAMES] + [str(item.get("id") or "")]
    # 1. The product's name, wherever it stands; 2. the item's id, where properties tell the rest.
    scene_id = next((name for name in names if read_product_name(name)), names[-1]).removesuffix(".SAFE")
    if not is_plain_name(scene_id):
        raise UnusableItemError("its id is not a plain name")
    product = read_product_name(scene_id) or _from_properties(properties)
    strip = _STRIP.search(_first(properties, "s2:datastrip_id", "eopf:datastrip_id"))
    cloud = properties.get("eo:cloud_cover")
    return Scene(
        scene_id,
        *product,
        strip[1] if strip else None,
        _acquired(properties),
        float(cloud) if isinstance(cloud, int | float) and 0 <= cloud <= 100 else None,
        _footprint(item),
        zlib.compress(json.dumps(item).encode(), 1),
    )


def _from_properties(properties: Mapping[str, Any]) -> ProductName:
    platform = re.fullmatch(r"(?:sentinel-|s)(2[a-z])", _first(properties, "platform").lower())
    datatake = _DATATAKE.match(_first(properties, "s2:datatake_id", "eopf:datatake_id"))
    tile = _TILE.fullmatch(_first(properties, "grid:code", "s2:mgrs_tile"))
    if not (platform and datatake and tile):
        raise UnusableItemError("it gives neither a product name nor platform, datatake and tile")
    orbit = properties.get("sat:relative_orbit")
    key = OverpassKey(f"S{platform[1].upper()}", _compact_time(datatake[1]), orbit if isinstance(orbit, int) else None)
    baseline = _first(properties, "s2:processing_baseline", "processing:version")
    made = _first(properties, "s2:generation_time", "processing:datetime", "created")
    return ProductName(key, tile[1].zfill(5), baseline, re.sub(r"[-:]", "", made)[:15])


def _first(properties: Mapping[str, Any], *names: str) -> str:
    return next((value for name in names if isinstance(value := properties.get(name), str) and value), "")


def _compact_time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise UnusableItemError(f"its time {text} is not valid") from error


def _acquired(properties: Mapping[str, Any]) -> datetime:
    text = _first(properties, "datetime", "start_datetime")
    try:
        return instant_of(text)
    except (ValueError, OverflowError) as error:
        raise UnusableItemError(f"its datetime {text[:40]!r} is not valid") from error


def _footprint(item: Mapping[str, Any]) -> BaseGeometry:
    try:
        shape = shapely.geometry.shape(item.get("geometry") or {})
    except Exception as error:  # whatever a broken GeoJSON makes of shapely
        raise UnusableItemError("it has no footprint") from error
    shape = shapely.make_valid(shapely.force_2d(shape))
    if not shape.area:
        raise UnusableItemError("it has no footprint")
    return shape
