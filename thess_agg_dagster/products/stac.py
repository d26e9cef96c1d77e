"""A static STAC catalog of the mosaics: an item next to each timestamp's mosaics, and one collection of all items.

Fields follow STAC 1.1 and its extensions projection 2.0, raster 1.1, file 2.1, processing 1.1, eo 1.1 and
classification 2.0. Links are relative, so that a lake can be moved or served as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from thess_agg_dagster.audit.outcome import BandRecord
from thess_agg_dagster.lake.catalogue import read_item
from thess_agg_dagster.lake.checksums import BackgroundChecksums, checksum_of
from thess_agg_dagster.lake.layout import COLLECTION
from thess_agg_dagster.lake.published import QUICKLOOK
from thess_agg_dagster.mosaic.bands import NOWHERE, is_scl, role_of
from thess_agg_dagster.mosaic.choices import MIXING
from thess_agg_dagster.mosaic.degrees import bbox_of, bbox_of_all, cut, outline
from thess_agg_dagster.mosaic.grid import rasterio_crs
from thess_agg_dagster.mosaic.ndvi import SCALE
from thess_agg_dagster.mosaic.origins import count_dtype, several, source_dtype
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2
from thess_agg_dagster.products.provenance import SOFTWARE, legend
from thess_agg_dagster.products.series_index import Listed
from thess_agg_dagster.timestamp.plan import TimestampPlan

if TYPE_CHECKING:
    import pystac


class Kind(NamedTuple):
    """What a collection is of."""

    id: str
    title: str
    description: str


MOSAICS = Kind(
    f"{SENTINEL_2.collection}-mosaics",
    "Sentinel-2 mosaics",
    "One mosaic per acquisition timestamp and band, merged from Sentinel-2 Level-2A tiles.",
)
COMPOSITES = Kind(
    f"{SENTINEL_2.collection}-composites",
    "Sentinel-2 composites",
    "One composite per month or quarter and band, of the mosaics of Sentinel-2 Level-2A tiles.",
)

_EXTENSIONS = {
    prefix: f"https://stac-extensions.github.io/{extension}/schema.json"
    for prefix, extension in {
        "proj": "projection/v2.0.0",
        "raster": "raster/v1.1.0",
        "file": "file/v2.1.0",
        "processing": "processing/v1.1.0",
        "eo": "eo/v1.1.0",
        "classification": "classification/v2.0.0",
    }.items()
}


def timestamp_item(
    plan: TimestampPlan,
    records: Sequence[BandRecord],
    folder: Path,
    name: str,
    run: str,
    checksums: BackgroundChecksums,
) -> str:
    """The STAC item of a timestamp (or a period) as JSON, from its plan and its finished files in ``folder``; ``name`` is its
    id, ``run/`` the folder that it will stand in within that of the timestamp, or nothing."""
    import pystac  # here, because only few write a catalog

    first = next(iter(plan.mosaics.values())).grid
    ground = outline(first.extent, 16)
    clouds = next((record.cloud_share for record in records if record.cloud_share is not None), None)
    item = pystac.Item(
        id=name,
        # Outer rings go counter-clockwise (RFC 7946).
        geometry=shapely.geometry.mapping(shapely.orient_polygons(shapely.set_precision(cut(ground), 1e-7))),
        bbox=[round(edge, 7) for edge in bbox_of(ground)],
        **_when(plan),
        properties={
            "proj:code": _code(first),
            "processing:software": SOFTWARE,
            "processing:lineage": "; ".join(plan.lineage()),
            "processing:level": "L3",
        }
        | ({} if _code(first) else {"proj:wkt2": rasterio_crs(first).to_wkt(version="WKT2_2019")})
        | ({} if clouds is None else {"eo:cloud_cover": round(100 * clouds, 2)}),
        assets={band: _asset(mosaic, plan, folder / f"{band}.tif") for band, mosaic in plan.mosaics.items()}
        | {key: asset for mosaic in plan.mosaics.values() for key, asset in _origins(mosaic, plan, folder, checksums)},
    )
    if (quicklook := folder / QUICKLOOK).exists():
        item.add_asset(
            "thumbnail",
            pystac.Asset(
                f"./{QUICKLOOK}",
                "Quicklook",
                media_type="image/jpeg",
                roles=["thumbnail"],
                extra_fields=_file(quicklook),
            ),
        )
    item.stac_extensions = _used(item.to_dict(include_self_link=False, transform_hrefs=False))
    item.collection_id = (COMPOSITES if plan.composed else MOSAICS).id
    for relation in ("root", "parent", "collection"):
        item.add_link(pystac.Link(relation, f"{'../' if run else ''}../{COLLECTION}", "application/json"))
    return _json(item)


def _when(plan: TimestampPlan) -> dict[str, Any]:
    start, end = plan.span
    return {"datetime": start} if start == end else {"datetime": None, "start_datetime": start, "end_datetime": end}


def _span(item: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """The first and the last time of an item."""
    found = item["properties"]
    given = [found.get(f"{edge}_datetime") or found["datetime"] for edge in ("start", "end")]
    return datetime.fromisoformat(given[0]), datetime.fromisoformat(given[1])


def published_items(paths: Iterable[Path], folder: Path) -> list[Listed]:
    """The items in these files with their paths below ``folder``, in order of time; without those that cannot be read."""
    found = [(str(path.relative_to(folder)), item) for path in paths if "bbox" in (item := read_item(path))]
    return sorted(found, key=lambda each: _span(each[1]))


def series_collection(found: Sequence[Listed], kind: Kind = MOSAICS) -> str:
    """The STAC collection of items as JSON, to stand in the folder that their paths begin in. There is at least one."""
    import pystac

    times = [_span(item) for _, item in found]
    collection = pystac.Collection(
        id=kind.id,
        title=kind.title,
        description=kind.description,
        license="other",
        extent=pystac.Extent(
            pystac.SpatialExtent([[*bbox_of_all([item["bbox"] for _, item in found])]]),
            pystac.TemporalExtent([[min(start for start, _ in times), max(end for _, end in times)]]),
        ),
        summaries=pystac.Summaries(
            {"proj:code": sorted({code for _, item in found if (code := item["properties"]["proj:code"])})}
        ),
        stac_extensions=[_EXTENSIONS["proj"]],
        catalog_type=pystac.CatalogType.SELF_CONTAINED,
    )
    collection.clear_links()
    collection.add_link(pystac.Link("root", f"./{COLLECTION}", "application/json"))
    for name, _ in found:
        collection.add_link(pystac.Link("item", f"./{name}", "application/geo+json"))
    return _json(collection)


def _asset(mosaic: MosaicPlan, plan: TimestampPlan, path: Path) -> pystac.Asset:
    import pystac

    nodata: dict[str, Any] = {"nodata": "nan" if math.isnan(mosaic.nodata) else mosaic.nodata}
    if math.isnan(mosaic.nodata) and np.dtype(mosaic.dtype).kind != "f":
        nodata = {}  # every number counts
    raster: dict[str, Any] = {"data_type": mosaic.dtype, **nodata, "sampling": "area"}
    fields: dict[str, Any] = {
        "bands": [{"name": mosaic.band}],
        "data_type": mosaic.dtype,
        **nodata,
        "raster:bands": [raster | _scaling(mosaic, plan)],
    }
    if mosaic.grid.crs is not None and mosaic.grid.crs.units[0] == "metre":  # both are in metres
        fields["gsd"] = raster["spatial_resolution"] = mosaic.grid.resolution.x
    if is_scl(mosaic.band):
        fields["classification:classes"] = [
            {"value": value, "name": name.replace(",", "").replace(" ", "_"), "color_hint": colour[1:].upper()}
            for value, (name, colour) in SENTINEL_2.classes.items()
        ]
    cog = "; profile=cloud-optimized" if mosaic.options.format == "cog" else ""
    return pystac.Asset(
        f"./{path.name}",
        mosaic.band,
        media_type=f"image/tiff; application=geotiff{cog}",
        roles=["data"],
        extra_fields=fields | _projection(mosaic.grid) | _file(path),
    )


def _origins(
    mosaic: MosaicPlan, plan: TimestampPlan, folder: Path, checksums: BackgroundChecksums
) -> Iterator[tuple[str, pystac.Asset]]:
    """Which scene each pixel came from, its numbers as classes; and how many scenes had one."""
    import pystac

    beside = plan.beside(mosaic, folder)
    for path, what in () if beside is None else ((beside.source, "source"), (beside.observations, "observations")):
        if path is None:
            continue
        fields: dict[str, Any] = {"data_type": count_dtype(mosaic)}
        if what == "source":
            fields = {"data_type": str(source_dtype(mosaic)), "nodata": NOWHERE}
            fields["classification:classes"] = _source_classes(mosaic, plan, checksums)
        title = {
            "source": f"Scene that each pixel of {mosaic.band} came from",
            "observations": f"Number of scenes with a valid pixel of {mosaic.band}",
        }[what]
        cog = "; profile=cloud-optimized" if mosaic.options.format == "cog" else ""
        yield (
            path.stem,
            pystac.Asset(
                f"./{path.name}",
                title,
                media_type=f"image/tiff; application=geotiff{cog}",
                roles=["metadata"],
                extra_fields=fields | _projection(mosaic.grid) | _file(path),
            ),
        )


def _source_classes(mosaic: MosaicPlan, plan: TimestampPlan, checksums: BackgroundChecksums) -> list[dict[str, object]]:
    classes: list[dict[str, object]] = [{"value": NOWHERE, "name": "empty", "nodata": True}]
    for each in legend(mosaic, plan, checksums):
        told = f"{each['checksum']}, processing baseline {each['baseline'] or 'unknown'}"
        classes.append({"value": each["index"], "name": each["scene"], "description": told})
    if mosaic.options.merge_method in MIXING:
        classes.append(
            {"value": several(source_dtype(mosaic)), "name": "several", "description": "more than one scene"}
        )
    return classes


def _projection(grid: GeoBox) -> dict[str, Any]:
    rows, cols = grid.shape
    return {
        "proj:shape": [int(rows), int(cols)],
        "proj:transform": list(grid.affine)[:6],
        "proj:bbox": list(grid.boundingbox.bbox),
    }


def _code(grid: GeoBox) -> str | None:
    """``EPSG:32634``, ``ESRI:54009``; ``None`` for a CRS without a code."""
    authority = rasterio_crs(grid).to_authority()
    return ":".join(authority) if authority else None


def _file(path: Path) -> dict[str, Any]:
    """Size, and SHA-256 as a multihash."""
    return {"file:size": path.stat().st_size, "file:checksum": f"1220{checksum_of(path, 'sha256').digest}"}


def _scaling(mosaic: MosaicPlan, plan: TimestampPlan) -> dict[str, Any]:
    """From digital numbers to reflectance, where the numbers are still Sentinel-2's and all carry the same offset."""
    if plan.derived_from(mosaic.band):
        return {"scale": 1 / SCALE, "offset": 0.0} if mosaic.dtype == "int16" else {}
    numbers = mosaic.dtype.startswith(("int", "uint")) and mosaic.options.merge_method not in ("sum", "count")
    offsets = {0} if mosaic.options.harmonize else {scene.offset for scene in plan.scenes}
    offset = offsets.pop() if len(offsets) == 1 else None
    if role_of(mosaic.band) != "reflectance" or not numbers or offset is None:
        return {}
    return {"scale": SENTINEL_2.scale, "offset": 0.0 - offset * SENTINEL_2.scale}


def _used(item: Mapping[str, Any]) -> list[str]:
    """The extensions whose fields stand in an item."""
    names = {*item["properties"], *(name for asset in item["assets"].values() for name in asset)}
    return sorted({_EXTENSIONS[prefix] for name in names if (prefix := name.split(":")[0]) in _EXTENSIONS})


def _json(thing: pystac.STACObject) -> str:
    fields = thing.to_dict(include_self_link=False, transform_hrefs=False)
    return json.dumps(fields, indent=2, allow_nan=False) + "\n"
