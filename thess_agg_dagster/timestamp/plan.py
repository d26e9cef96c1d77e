"""Plans: for each band of a timestamp, a planned mosaic or everything that prevents it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.lake.catalogue import read_item
from thess_agg_dagster.lake.checksums import ChecksumError, checksum_of, expected_checksum
from thess_agg_dagster.lake.layout import DataLake, scene_of
from thess_agg_dagster.lake.published import NDVI, OBSERVATIONS, SOURCE
from thess_agg_dagster.lake.time_serie import Acquisition, instant_of
from thess_agg_dagster.mosaic.bands import NIR, RED, mask_band
from thess_agg_dagster.mosaic.inspection import Source
from thess_agg_dagster.mosaic.ndvi import NdviOptions, ndvi_plan
from thess_agg_dagster.mosaic.origins import OriginFiles
from thess_agg_dagster.mosaic.plan import MosaicPlan, plan_mosaics
from thess_agg_dagster.mosaic.radiometry import radiometry_of
from thess_agg_dagster.mosaic.tiles import PlanError, Problem
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.fingerprints import Fingerprints, fingerprint_of
from thess_agg_dagster.storage.paths import File, NotAFileError, in_parallel
from thess_agg_dagster.timestamp.freshness import identify_bands, tile_names, together
from thess_agg_dagster.timestamp.keep import kept_bands
from thess_agg_dagster.timestamp.refetch import Refetched, refetched
from thess_agg_dagster.timestamp.remote import located

_STRAY = "is a symbolic link out of the lake, which is not followed; put the file itself there"


class Scene(NamedTuple):
    """A scene, its processing baseline, and the offset of its reflectance bands; ``None`` if unknown."""

    scene_id: str
    baseline: str | None
    offset: int | None


@dataclass(frozen=True)
class TimestampPlan:
    """The plan of one timestamp. Every band is in exactly one of ``mosaics`` and ``problems``."""

    timestamp: str
    scene_ids: Sequence[str]
    mosaics: Mapping[str, MosaicPlan]
    problems: Mapping[str, Sequence[Problem]]
    identities: Mapping[str, str]
    scenes: Sequence[Scene] = ()
    stac: bool = False
    parameters: str = "{}"
    refetched: Mapping[File, Refetched] = field(default_factory=dict)
    refetchable: bool = False
    provenance: bool = False
    seams: bool = False
    kept: Mapping[str, BandRecord] = field(default_factory=dict)
    asked: Sequence[str] = ()
    #: Of the parameters that decide pixels, those that differ from their defaults, as JSON.
    differing: str = "{}"
    #: The version of the manifest that is replaced, in a bucket; ``None`` where there is none.
    replaces: str | None = None
    #: How NDVI is derived, where it is: it is the last of ``mosaics``.
    index: NdviOptions | None = None

    #: Whether it is made of published mosaics, not of tiles.
    composed: ClassVar[bool] = False

    @property
    def span(self) -> tuple[datetime, datetime]:
        """The first and the last instant that it shows."""
        instant = instant_of(self.timestamp)
        return instant, instant

    def lineage(self) -> list[str]:
        """How its pixels are made, in plain words."""
        options = next(iter(self.mosaics.values())).options
        done = [f"merged ({options.merge_method}) in this order: {', '.join(self.scene_ids)}"]
        if options.mask_scl_classes:
            done.append(f"SCL classes {', '.join(map(str, options.mask_scl_classes))} emptied before")
        if options.harmonize:
            done.append("radiometric offset of processing baseline 04.00 removed")
        return done

    def why_empty(self, mosaic: MosaicPlan) -> str:
        """Why a mosaic may well hold no valid pixel; empty: it may not."""
        hidden = mosaic.options.mask_scl_classes or mosaic.options.target.aoi is not None
        return "everything is masked or outside the aoi" if hidden else ""

    @property
    def merged(self) -> Mapping[str, MosaicPlan]:
        """The mosaics that are merged from tiles."""
        return {band: mosaic for band, mosaic in self.mosaics.items() if not self.derived_from(band)}

    def derived_from(self, band: str) -> Sequence[str]:
        """The bands that another is computed from; none, if it is merged from tiles."""
        return (NIR, RED) if band == NDVI and self.index is not None else ()

    def beside(self, plan: MosaicPlan, folder: Path) -> OriginFiles | None:
        """The files to write next to a band's mosaic: which scene each pixel comes from and, for the finest band (the
        first of them), how many scenes had one.

        Bands differ in their empty pixels, so each has a source of its own.
        """
        if not self.provenance or self.derived_from(plan.band):
            return None
        finest = min(self.merged.values(), key=lambda mosaic: abs(mosaic.grid.resolution.x))
        if plan.band == finest.band:
            return OriginFiles(folder / f"{SOURCE}.tif", folder / f"{OBSERVATIONS}.tif")
        return OriginFiles(folder / f"{SOURCE}_{plan.band}.tif")

    @property
    def told(self) -> dict[str, object]:
        """What it is, and of what, as the manifest begins."""
        return {"timestamp": self.timestamp, "scenes": self.scene_ids}

    @property
    def nothing(self) -> str:
        """What is wrong where there is nothing to make it of."""
        return "time_serie.csv lists no tiles for this timestamp; add them to tile_ids, or remove the row"

    def place_of(self, path: File) -> str:
        """What a message calls the place of a file that is read."""
        return scene_of(path)

    @property
    def inputs(self) -> str:
        """Identifies the inputs of all requested bands."""
        return together({band: self.identities[band] for band in self.asked})

    def summary(self) -> str:
        """A one-line description of what is about to be made."""
        bands = ", ".join(f"{m.band} ({m.grid.width} x {m.grid.height})" for m in self.mosaics.values())
        return f"Merging {len(self.scene_ids)} tiles into {bands}"

    def input_files(self) -> list[File]:
        """Every file that the mosaics read, once."""
        return list(dict.fromkeys(path for plan in self.mosaics.values() for path in plan.files()))


def plan_timestamp(
    acquisition: Acquisition,
    lake: DataLake,
    params: TimestampsAggregationParams,
    fetched: Mapping[File, Refetched | str] = MappingProxyType({}),
    made: Attempt | None = None,
) -> TimestampPlan:
    """Plan every band of a timestamp from its tiles' headers; finds all problems of all bands.

    ``fetched`` is the result for tiles that had to be downloaded again; ``made`` is the latest success, whose other
    bands stay. Raises :class:`BandsLostError` if one cannot.
    """
    asked = params
    lake = located(lake, params)
    replaces = lake.version(acquisition.timestamp)
    published = lake.published(acquisition.timestamp)
    kept = kept_bands(acquisition, lake, asked, made, published)
    params = asked.with_bands([*asked.bands, *(band for band, record in kept.items() if not record.derived_from)])
    ndvi = asked.ndvi or next((record.dtype for record in kept.values() if record.derived_from), None)
    # First of all: what changes from here on must look like a change to whoever compares later.
    fingerprints = lake.fingerprints(acquisition.scene_ids)
    identities = identify_bands(acquisition, lake, asked, params.bands, fingerprints, ndvi)
    scenes = scenes_of(acquisition.scene_ids, lake)
    mismatches = _mismatches(tile_names(acquisition, params), lake, fingerprints, params.threads)
    sources, problems = _inputs(scenes, lake, params, mask_band(asked.bands), mismatches)
    mosaics, faults = plan_mosaics(sources, params.mosaic_options())
    problems = {band: [*found, *faults.get(band, ())] for band, found in problems.items()}
    mosaics = {band: mosaic for band, mosaic in mosaics.items() if not problems[band]}
    index = None
    if ndvi and {RED, NIR} <= mosaics.keys():
        try:
            index, mosaics[NDVI] = _ndvi(mosaics[RED], mosaics[NIR], scenes, ndvi)
        except PlanError as error:
            problems[NDVI] = list(error.problems)
    return TimestampPlan(
        acquisition.timestamp,
        acquisition.scene_ids,
        mosaics,
        {band: [_with_outcome(problem, fetched) for problem in found] for band, found in problems.items() if found},
        identities,
        scenes,
        params.stac or bool(fingerprint_of(published.item)),  # one that is there is kept true
        params.as_json(),
        {path: record for tile in tile_names(acquisition, params) if (record := refetched(path := lake.tile(*tile)))},
        bool(params.download_from),
        params.provenance,
        params.seams,
        {} if params.provenance else kept,  # what tells of pixels' origins is made in one go
        asked.outputs,
        params.pixel_identity(),
        replaces,
        index,
    )


def _ndvi(red: MosaicPlan, nir: MosaicPlan, scenes: Sequence[Scene], dtype: str) -> tuple[NdviOptions, MosaicPlan]:
    """How NDVI is made of two mosaics, and what it will be. Raises :class:`PlanError` where it cannot be."""
    if red.grid != nir.grid:
        raise PlanError([Problem("grid_conflict", f"NDVI needs {NIR} on the pixels of {RED}; set match_band")])
    carried = {scene.scene_id: scene.offset for scene in scenes}
    offsets = set[int | None]()
    for layer in red.layers + nir.layers:
        # In digital numbers: of floats, somebody has made reflectances already.
        offset = 0 if layer.tile.dtype.startswith("float") else carried[layer.tile.scene_id]
        offsets.add(None if offset is None else offset - layer.offset)
    offset = offsets.pop() if len(offsets) == 1 else None
    if offset is None:
        what = "NDVI needs to know one radiometric offset of all scenes; set harmonize"
        raise PlanError([Problem("unknown_baseline", what)])
    index = NdviOptions(dtype == "int16", offset, red.options)
    return index, replace(ndvi_plan(red.grid, index, NDVI), layers=nir.layers + red.layers)


def _inputs(
    scenes: Sequence[Scene],
    lake: DataLake,
    params: TimestampsAggregationParams,
    mask: str,
    mismatches: Mapping[File, Problem],
) -> tuple[dict[str, list[Source]], dict[str, list[Problem]]]:
    """The tiles of each band that may be read, and per band what is wrong before any is opened."""
    sources: dict[str, list[Source]] = {}
    problems: dict[str, list[Problem]] = {}
    for band in params.bands if scenes else ():
        found = [
            Source(lake.source(scene.scene_id, band), lake.source(scene.scene_id, mask), scene.offset, scene.scene_id)
            for scene in scenes
        ]
        names = [band, mask] if params.mask_scl_classes and band != mask else [band]
        tiles = [lake.source(scene.scene_id, name) for scene in scenes for name in names]
        strays = [Problem("unreadable_input", _STRAY, path) for path in tiles if lake.leads_outside(path)]
        if strays:
            problems[band] = strays
        else:
            sources[band] = found
            problems[band] = [mismatches[path] for path in tiles if path in mismatches]
    return sources, problems


def _with_outcome(problem: Problem, fetched: Mapping[File, Refetched | str]) -> Problem:
    """A problem with why its tile could not be fetched again, where that was tried."""
    outcome = fetched.get(problem.path) if problem.path else None
    if not isinstance(outcome, str):
        return problem
    return Problem(problem.kind, f"{problem.reason} (fetching it again failed: {outcome})", problem.path)


def _mismatches(
    tiles: Sequence[tuple[str, str]], lake: DataLake, fingerprints: Fingerprints, threads: int | None
) -> dict[File, Problem]:
    """The tiles (scene and band) that differ from their published checksums."""

    def look(tile: tuple[str, str]) -> Problem | None:
        path = lake.tile(*tile)
        try:
            expected = expected_checksum(lake, *tile, fingerprints)
            # A missing tile, or a pipe, is found by who opens it; a stray is not opened at all.
            if expected is None or lake.leads_outside(path) or lake.source(*tile) != path:
                return None  # nor is one that stays where it is read as a whole: its ETag tells of a change
            found = checksum_of(path, expected[0].algorithm)
        except ChecksumError as error:
            return Problem("checksum_mismatch", str(error), path)
        except NotAFileError as error:  # the tile, or a file beside it
            return None if error.path == path else Problem("unreadable_input", str(error), path)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return None
        if found == expected[0]:
            return None
        reason = f"has {found}, but {expected[0]} was published (in {expected[1]}); download the tile again"
        return Problem("checksum_mismatch", reason, path)

    with ThreadPoolExecutor(in_parallel(lake.tiles_folder, threads)) as pool:
        return {problem.path: problem for problem in pool.map(look, tiles) if problem and problem.path}


def scenes_of(scene_ids: Sequence[str], lake: DataLake) -> list[Scene]:
    """What the scenes' names and STAC items tell of them."""
    return [
        Scene(scene_id, *radiometry_of(scene_id, read_item(lake.scene_item(scene_id), lake.folders)))
        for scene_id in scene_ids
    ]
