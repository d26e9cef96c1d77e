"""What the composites of one period will become, or everything that stands in the way.

A period is planned as a timestamp is: its tiles are the published mosaics of its timestamps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from rasterio.enums import Resampling

from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.periods import span_of
from thess_agg_dagster.lake.published import COUNT, NDVI, PERIOD
from thess_agg_dagster.mosaic.bands import NIR, RED, role_of
from thess_agg_dagster.mosaic.composite import CompositeError, CompositeOptions, Series, open_mosaics
from thess_agg_dagster.mosaic.inspection import Note
from thess_agg_dagster.mosaic.ndvi import NdviOptions, ndvi_plan
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.plan import Layer, MosaicPlan
from thess_agg_dagster.mosaic.reducers import BY_BAND
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster.mosaic.tiles import Problem, TileError
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.period.freshness import identify_period, members_of, read_for
from thess_agg_dagster.storage.fingerprints import fingerprint_of
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp.freshness import together
from thess_agg_dagster.timestamp.plan import Scene, TimestampPlan, scenes_of

_STACK = "aggregate all timestamps with grid=fixed and the same parameters"


@dataclass(frozen=True)
class PeriodPlan(TimestampPlan):
    """One period, decided. ``timestamp`` is the period, ``scene_ids`` the timestamps that are read.

    ``series`` are the mosaics of the period's own timestamps, by band; ``quarter`` those of the quarter that stands in for a
    month, where it does, and ``stand_in`` is its name. ``recorded`` are the checksums that the mosaics were published with.
    """

    series: Mapping[str, Series] = field(default_factory=dict)
    quarter: Mapping[str, Series] = field(default_factory=dict)
    members: Sequence[str] = ()
    stand_in: str = ""
    how: CompositeOptions = field(default_factory=CompositeOptions)
    recorded: Mapping[File, str] = field(default_factory=dict)

    composed = True

    @property
    def span(self) -> tuple[datetime, datetime]:
        return span_of(self.timestamp)

    def lineage(self) -> list[str]:
        done = [
            f"{self.how.method} of the mosaics of {', '.join(self.members)}",
            f"empty where fewer than {self.how.min_observations} have a value",
        ]
        if self.stand_in:
            done.append(f"there {self.stand_in} stands in: {', '.join(self.scene_ids)}")
        return done

    def why_empty(self, mosaic: MosaicPlan) -> str:
        return f"no pixel has {self.how.min_observations} observations"

    @property
    def told(self) -> dict[str, object]:
        told: dict[str, object] = {"period": self.timestamp, "timestamps": list(self.members)}
        if self.stand_in:
            told["stand_in"] = {"period": self.stand_in, "timestamps": list(self.scene_ids)}
        return told

    @property
    def nothing(self) -> str:
        return f"no listed timestamp of {self.timestamp} is published; aggregate one first"

    def place_of(self, path: File) -> str:
        return str(path)

    def summary(self) -> str:
        bands = ", ".join(f"{m.band} ({m.grid.width} x {m.grid.height})" for m in self.mosaics.values())
        more = f" (and {len(self.scene_ids)} of {self.stand_in})" if self.stand_in else ""
        return f"Composing {len(self.members)} timestamps{more} into {bands}"

    def grids(self) -> list[list[str]]:
        """The bands that share a grid, the finest first."""
        found: dict[object, list[str]] = {}
        for band in sorted(self.series, key=lambda band: abs(self.series[band].grid.resolution.x)):
            found.setdefault(self.series[band].grid, []).append(band)
        return list(found.values())


def plan_period(
    period: str,
    published: Mapping[str, Attempt],
    lake: DataLake,
    params: TimestampsAggregationParams,
    waiting: Collection[str] = (),
) -> PeriodPlan:
    """Plan the composites of a period from the headers of its mosaics; all problems of all bands are found.

    ``published`` are the latest successes of the timestamps that count (of this period and others), ``waiting`` timestamps
    that are listed and not among them. Raises ``ValueError`` for what is no period.
    """
    replaces = lake.composites.version(period)
    quarter, read = read_for(period, published, params)
    members = members_of(period, published)
    identities = identify_period(period, published, params)
    paths = {key: lake.folder_of(key, published[key].output_folder) for key in read}
    carried = {key: _carried(published[key], lake) for key in read}
    standing, problems = _opened_bands(period, read, published, paths, carried, params)
    series = {band: _among(each, members) for band, each in standing.items()}
    how = CompositeOptions(params.composite_method, params.min_observations, _output(read, published, params))
    index = None
    if not problems and series:
        problems |= _grid_problems(series, params)
    if not problems and series and params.ndvi is not None:
        index, faults = _index(carried, params, how.output)
        problems |= faults
    notes = tuple(_notes(period, published, carried, waiting, params))
    mosaics = {band: _mosaic(band, standing[band], notes, how.output) for band in series if band not in problems}
    if not problems and series:
        mosaics |= _beside(series, mosaics, quarter, index, how.output)
        identities |= dict.fromkeys(set(mosaics) - set(identities), together(identities))
    return PeriodPlan(
        period,
        read,
        mosaics,
        problems,
        identities,
        [scene for key in read for scene in carried[key]],
        params.stac or bool(fingerprint_of(lake.composites.published(period).item)),  # one that is there is kept true
        params.composite_json(),
        asked=params.bands,
        differing=params.composite_identity(),
        replaces=replaces,
        series=series,
        quarter=standing if quarter else {},
        members=members,
        stand_in=quarter,
        how=how,
        index=index,
        recorded={path / f"{band.band}.tif": band.output_checksum for path, band in _bands(paths, published)},
    )


def _bands(paths: Mapping[str, Path], published: Mapping[str, Attempt]) -> Iterator[tuple[Path, BandRecord]]:
    """The records of all mosaics, and the folders that they lie in."""
    return ((path, band) for key, path in paths.items() for band in published[key].bands)


def _opened_bands(
    period: str,
    timestamps: Sequence[str],
    published: Mapping[str, Attempt],
    paths: Mapping[str, Path],
    carried: Mapping[str, Sequence[Scene]],
    params: TimestampsAggregationParams,
) -> tuple[dict[str, Series], dict[str, list[Problem]]]:
    """The mosaics of each band that stack, and per band why they do not."""
    series: dict[str, Series] = {}
    problems: dict[str, list[Problem]] = {}
    for band in params.bands if timestamps else ():
        faults = list(_faults(band, timestamps, published, paths, period))
        try:
            if not faults:
                series[band] = _opened(band, timestamps, paths)
        except CompositeError as error:
            faults.append(Problem("grid_conflict", f"{error}; {period} cannot be made of them"))
        except TileError as error:
            faults.append(again(error.problem))
        if faults:
            problems[band] = faults
    return _with_offsets(series, carried), problems


def _index(
    carried: Mapping[str, Sequence[Scene]], params: TimestampsAggregationParams, output: MosaicOptions
) -> tuple[NdviOptions | None, dict[str, list[Problem]]]:
    """How NDVI is made of the composites, or why it cannot be."""
    offset = _one_offset(scene for scenes in carried.values() for scene in scenes)
    if offset is None:
        what = "NDVI needs to know one radiometric offset of all scenes; aggregate with harmonize"
        return None, {RED: [Problem("unknown_baseline", what)]}
    return NdviOptions(params.ndvi == "int16", offset, output), {}


def again(problem: Problem) -> Problem:
    """A problem with a mosaic, and what mends it: not what mends a tile."""
    what = problem.reason.partition(";")[0]
    return replace(problem, reason=f"{what}; run its timestamp again, with --force")


def _opened(band: str, timestamps: Sequence[str], paths: Mapping[str, Path]) -> Series:
    found = open_mosaics(band, [paths[key] / f"{band}.tif" for key in timestamps])
    return replace(
        found, tiles=tuple(replace(tile, scene_id=key) for key, tile in zip(timestamps, found.tiles, strict=True))
    )


def _among(series: Series, timestamps: Collection[str]) -> Series:
    """Some timestamps of a series."""
    chosen = [number for number, tile in enumerate(series.tiles) if tile.scene_id in timestamps]
    return replace(
        series,
        tiles=tuple(series.tiles[number] for number in chosen),
        offsets=tuple(series.offsets[number] for number in chosen),
    )


def _with_offsets(series: Mapping[str, Series], carried: Mapping[str, Sequence[Scene]]) -> dict[str, Series]:
    """The same, which know the offset that each mosaic carries; where it is unknown, 0."""
    offsets = {key: _one_offset(scenes) or 0 for key, scenes in carried.items()}
    return {
        band: replace(each, offsets=tuple(offsets[tile.scene_id] for tile in each.tiles))
        for band, each in series.items()
    }


def _faults(
    band: str, timestamps: Sequence[str], published: Mapping[str, Attempt], paths: Mapping[str, Path], period: str
) -> Iterator[Problem]:
    """What can be told of a band's mosaics without opening them."""
    for key in timestamps:
        path = paths[key] / f"{band}.tif"
        record = next((each for each in published[key].bands if each.band == band), None)
        if record is None:
            yield Problem("missing_input", f"{key} was published without {band}; run it again with this band", path)
        elif fingerprint_of(path) is None:
            yield Problem("missing_input", f"no such file; run the timestamp {key} again", path)
        elif record.grid != "fixed":
            yield Problem(
                "grid_conflict", f"{path} is on the grid of its own tiles, so {period} has no {band}; {_STACK}", path
            )


def _grid_problems(series: Mapping[str, Series], params: TimestampsAggregationParams) -> dict[str, list[Problem]]:
    """Bands that are looked at together share a grid."""
    what = f"composite_method={params.composite_method}"
    joint = [band for band in series if role_of(band) != "classes"] if params.composite_method not in BY_BAND else []
    if params.ndvi is not None and not joint:
        what, joint = "ndvi", [RED, NIR]
    return {
        band: [Problem("grid_conflict", f"{what} needs {band} on the pixels of {joint[0]}; aggregate with match_band")]
        for band in joint[1:]
        if series[band].grid != series[joint[0]].grid
    }


def _carried(attempt: Attempt, lake: DataLake) -> list[Scene]:
    """The scenes of a timestamp, with the offset that its mosaics still carry."""
    scenes = scenes_of(attempt.scene_ids, lake)
    return [scene._replace(offset=0) for scene in scenes] if _harmonized(attempt) else scenes


def _one_offset(scenes: Iterable[Scene]) -> int | None:
    """The offset that all these scenes carry; ``None`` where it is unknown, or they carry several."""
    offsets = {scene.offset for scene in scenes}
    return offsets.pop() if len(offsets) == 1 else None


def _harmonized(attempt: Attempt) -> bool:
    return bool(json.loads(attempt.parameters or "{}").get("harmonize"))


def _output(
    timestamps: Sequence[str], published: Mapping[str, Attempt], params: TimestampsAggregationParams
) -> MosaicOptions:
    """How the files are written, and what their numbers are."""
    made = [json.loads(published[key].parameters or "{}") for key in timestamps]
    return MosaicOptions(
        merge_method=next((each["merge_method"] for each in made if "merge_method" in each), "first"),
        compress=params.compress,
        format=params.format,
        threads=params.threads,
        harmonize=bool(made) and all(each.get("harmonize") for each in made),
        target=Target(grid="fixed"),
    )


def _notes(
    period: str,
    published: Mapping[str, Attempt],
    carried: Mapping[str, Sequence[Scene]],
    waiting: Collection[str],
    params: TimestampsAggregationParams,
) -> Iterator[Note]:
    if late := members_of(period, waiting):
        yield Note("incomplete", f"{len(late)} listed timestamps of {period} are not published: {_some(late)}")
    if len({published[key].parameters for key in carried} - {""}) > 1:
        yield Note("mixed_parameters", f"the mosaics were made with different parameters; {_STACK}")
    if len({scene.offset for scenes in carried.values() for scene in scenes}) > 1:
        yield Note("mixed_baselines", "reflectances carry different radiometric offsets; aggregate with harmonize")
    unknown = [key for key, scenes in carried.items() if _one_offset(scenes) is None]
    if unknown and params.composite_method == "max_ndvi":
        what = "max_ndvi takes the radiometric offset of these timestamps for 0, it is unknown or differs by scene"
        yield Note("mixed_baselines", f"{what}: {_some(unknown)}; aggregate with harmonize")


def _some(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"


def _mosaic(band: str, series: Series, notes: tuple[Note, ...], output: MosaicOptions) -> MosaicPlan:
    layers = tuple(
        Layer(tile, series.nodata, 0, None, Resampling.nearest, number) for number, tile in enumerate(series.tiles, 1)
    )
    return MosaicPlan(band, layers, series.grid, str(series.dtype), series.nodata, output, notes)


def _beside(
    series: Mapping[str, Series],
    mosaics: Mapping[str, MosaicPlan],
    quarter: str,
    index: NdviOptions | None,
    output: MosaicOptions,
) -> dict[str, MosaicPlan]:
    """The files that tell of the bands: of the finest band (the first of them), what :mod:`period.build` writes."""
    finest = min(series, key=lambda band: abs(series[band].grid.resolution.x))
    first = mosaics[finest]
    dtype = "uint8" if len(first.layers) < 256 else "uint16"
    found = {COUNT: replace(first, band=COUNT, dtype=dtype, nodata=math.nan, notes=())}
    if quarter:
        found[PERIOD] = replace(first, band=PERIOD, dtype="uint8", nodata=0.0, notes=())
    if index is not None:
        both = mosaics[NIR].layers + mosaics[RED].layers
        found[NDVI] = replace(ndvi_plan(series[RED].grid, index, NDVI), layers=both)
    return found
