"""Freshness: what identifies a mosaic, and whether a published timestamp is out of date.

A mosaic is identified by the version of its pixels, the parameters that determine them, and the state of its tiles. The
release number is not included: an upgrade makes nothing due.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thess_agg_dagster.audit.outcome import Attempt, RecordedAttempt
from thess_agg_dagster.lake.catalogue import manifest_values
from thess_agg_dagster.lake.checksums import CHECKSUM_SUFFIXES
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import ITEM, NDVI, QUICKLOOK, SOURCE
from thess_agg_dagster.lake.time_serie import Acquisition, read_time_serie
from thess_agg_dagster.mosaic import NDVI_VERSION, PIXELS_VERSION
from thess_agg_dagster.mosaic.bands import NIR, RED, SCL, mask_band
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.fingerprints import Fingerprints
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp.remote import located


def code_version() -> str | None:
    """The version of the pixels, by which Dagster compares published timestamps.

    The first version has no name: 0.1.0 gave Dagster none, and what it published would become stale.
    """
    return None if PIXELS_VERSION == 1 else str(PIXELS_VERSION)


def tile_names(
    acquisition: Acquisition, params: TimestampsAggregationParams, required: bool = False
) -> list[tuple[str, str]]:
    """Scene id and band of the tiles that a timestamp reads; with ``required``, only those that it needs in any case."""
    bands = list(params.bands)
    if params.mask_scl_classes and not (required and params.missing_scl == "unmasked"):
        bands.append(mask_band(bands))
    return [(scene, band) for scene in acquisition.scene_ids for band in dict.fromkeys(bands)]


def identify_bands(
    acquisition: Acquisition,
    lake: DataLake,
    params: TimestampsAggregationParams,
    bands: Iterable[str],
    fingerprints: Fingerprints | None = None,
    ndvi: str | None = None,
) -> dict[str, str]:
    """A short text per band that changes with everything that determines its pixels: parameters, the tile list, and
    size and modification time (or ETag) of every file that is read for it. With ``ndvi`` (its dtype), also one for the NDVI of
    these bands.

    ``fingerprints`` looks up those of the lake's files; a caller that already has a listing passes it. Raises
    ``AreaError``.
    """
    fingerprints = fingerprints or lake.fingerprints(acquisition.scene_ids)
    lake = located(lake, params)
    start = f"{PIXELS_VERSION}\n{params.pixel_identity()}\n"
    items = [_line(lake.scene_item_path(scene), fingerprints) for scene in acquisition.scene_ids]
    checksums = manifest_values(lake, fingerprints)
    tiles: dict[tuple[str, str], _TileTold] = {}
    more = [*([mask_band(params.bands)] if params.mask_scl_classes else []), *filter(None, [params.match_band])]
    found = {}
    for band in bands:
        names = dict.fromkeys([band, *more])
        told = []
        for tile in ((scene, name) for scene in acquisition.scene_ids for name in names):
            if tile not in tiles:
                tiles[tile] = _tell_tile(lake, *tile, fingerprints, checksums)
            told.append(tiles[tile])
        published = (each.published for each in told)
        beside = (line for each in told for line in each.beside)
        found[band] = _digest("".join([start, *published, *(each.source for each in told), *items, *beside]))
    if ndvi and {RED, NIR} <= found.keys():
        found[NDVI] = together({NDVI: f"{NDVI_VERSION} {ndvi}", RED: found[RED], NIR: found[NIR]})
    return found


@dataclass(frozen=True, slots=True)
class _TileTold:
    """What is told of a tile, in lines: the checksum in a manifest, the file, and the files beside it."""

    published: str
    source: str
    beside: Sequence[str]


def _tell_tile(
    lake: DataLake,
    scene_id: str,
    band: str,
    fingerprints: Fingerprints,
    checksums: Mapping[tuple[str, str, str], str],
) -> _TileTold:
    place, text = lake.tile_path(scene_id, band), checksums.get(("checksum", scene_id, band.lower()))
    beside = (f"{place}{suffix}" for suffix in CHECKSUM_SUFFIXES)
    return _TileTold(
        f"{scene_id} {band} {text}\n" if text else "",
        _line(lake.source(scene_id, band) if lake.remote else place, fingerprints),
        # A checksum that somebody publishes later may tell that what was read is not what it should have been.
        [_line(file, fingerprints) for file in beside if fingerprints(file)],
    )


def identify_inputs(
    acquisition: Acquisition,
    lake: DataLake,
    params: TimestampsAggregationParams,
    fingerprints: Fingerprints | None = None,
) -> str:
    """A short text that identifies the mosaics of all bands in ``params``: see :func:`identify_bands`."""
    return together(identify_bands(acquisition, lake, params, params.bands, fingerprints, params.ndvi))


def together(bands: Mapping[str, str]) -> str:
    """One text from those that identify several bands."""
    return _digest(json.dumps(bands, sort_keys=True))


def is_identified(recorded: str, acquisition: Acquisition, lake: DataLake, params: TimestampsAggregationParams) -> bool:
    """Whether a recorded text, maybe from an earlier release, still identifies the inputs."""
    fingerprints = lake.fingerprints(acquisition.scene_ids)
    return recorded == identify_inputs(acquisition, lake, params, fingerprints) or _is_of_0_1_0(
        recorded, acquisition, lake, params, params.bands, fingerprints
    )


def current_bands(
    made: Attempt,
    acquisition: Acquisition,
    lake: DataLake,
    params: TimestampsAggregationParams,
    fingerprints: Fingerprints,
) -> set[str]:
    """The bands of a successful attempt that, according to its records, would come out the same again."""
    bands = [band.band for band in made.bands]
    if not made.schema:
        return set(bands) if _is_of_0_1_0(made.inputs, acquisition, lake, params, bands, fingerprints) else set()
    merged = [band.band for band in made.bands if not band.derived_from]
    # An NDVI that is not asked for is up to date with the dtype it has, unless tiles of that name are asked for.
    ndvi = params.ndvi or next(
        (band.dtype for band in made.bands if band.derived_from and NDVI not in params.bands), None
    )
    now = identify_bands(acquisition, lake, params, merged, fingerprints, ndvi)
    return {band.band for band in made.bands if band.inputs == now.get(band.band)}


def changed_inputs(
    published: Mapping[str, RecordedAttempt], lake: DataLake, params: TimestampsAggregationParams
) -> dict[str, str]:
    """The identities of published timestamps whose inputs or parameters have changed since. Raises ``TimeSerieError``
    and ``AreaError``."""
    acquisitions = read_time_serie(lake.time_serie).acquisitions
    fingerprints = lake.fingerprints()
    return {
        key: identify_inputs(acquisitions[key], lake, params, fingerprints)
        for key, found in published.items()
        if key in acquisitions
        and not set(params.outputs) <= current_bands(found.attempt, acquisitions[key], lake, params, fingerprints)
    }


def is_due(
    acquisition: Acquisition,
    last: RecordedAttempt | None,
    lake: DataLake,
    params: TimestampsAggregationParams,
    fingerprints: Fingerprints,
) -> bool:
    """Whether a timestamp has no success yet, its inputs or parameters have changed, or a published file is missing."""
    if last is None or last.attempt.status != "success":
        return True
    if not set(params.outputs) <= current_bands(last.attempt, acquisition, lake, params, fingerprints):
        return True
    key = acquisition.timestamp
    # By the record, not by the manifest, which would be a request for each timestamp.
    folder = lake.folder_of(key, last.attempt.output_folder)
    names = [QUICKLOOK, *(f"{band}.tif" for band in params.outputs)]
    if params.stac:
        names.append(ITEM)
    if params.provenance:
        names.append(f"{SOURCE}.tif")
    return not (fingerprints(lake.manifest(key)) and all(fingerprints(f"{folder}/{name}") for name in names))


def _line(path: File | str, fingerprints: Fingerprints) -> str:
    name = "/".join(path.rsplit("/", 2)[1:]) if isinstance(path, str) else f"{path.parent.name}/{path.name}"
    return f"{name} {fingerprints(path) or 'missing'}\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# What 0.1.0 counted among the parameters, and what stood for those that were not given. Never changed.
_PARAMETERS_OF_0_1_0: Mapping[str, Any] = {
    "aoi": None,
    "aoi_mask": False,
    "bands": ["B04", "B08", "SCL"],
    "bounds": None,
    "compress": "zstd",
    "dtype": None,
    "format": "geotiff",
    "grid": "tiles",
    "harmonize": False,
    "mask_scl_classes": [],
    "match_band": None,
    "merge_method": "first",
    "missing_scl": "fail",
    "nodata": float("nan"),
    "overviews": False,
    "reduction": "average",
    "resampling": "nearest",
    "resolution": None,
    "stac": False,
    "target_crs": "first",
}


def _is_of_0_1_0(
    recorded: str,
    acquisition: Acquisition,
    lake: DataLake,
    params: TimestampsAggregationParams,
    bands: Sequence[str],
    fingerprints: Fingerprints,
) -> bool:
    """Whether a text identifies the inputs of some bands in the way of 0.1.0, which made the first version of the pixels.

    It counted its own number and all parameters. (Whether it wrote a STAC item, too, which changes no pixel.)
    """
    if PIXELS_VERSION != 1:
        return False
    values = {name: getattr(params, name, default) for name, default in _PARAMETERS_OF_0_1_0.items()}
    values["bands"] = list(bands)
    if params.aoi is not None:
        from thess_agg_dagster.mosaic.area import read_area

        area = read_area(params.aoi)
        values["aoi"] = f"{area.crs} {area.wkt}"
    names = [*bands, SCL] if params.mask_scl_classes else bands
    paths = [lake.source(scene, name) for scene in acquisition.scene_ids for name in dict.fromkeys(names)]
    paths += map(lake.scene_item, acquisition.scene_ids)
    lines = "".join(_line(path, fingerprints) for path in paths)
    texts = (json.dumps(values | {"stac": stac}, sort_keys=True) for stac in (True, False))
    return any(recorded == _digest(f"0.1.0\n{text}\n{lines}") for text in texts)
