"""Outcomes: what one attempt at one timestamp read and wrote, and why it failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple, get_args

from thess_agg_dagster.mosaic.choices import ProblemKind

BandStatus = Literal["success", ProblemKind, "merge_failed", "write_failed", "skipped"]
TimestampStatus = Literal[
    "success",
    "failed_no_tiles",
    "failed_missing_inputs",
    "failed_invalid_inputs",
    "failed_merge",
    "exception",
    "not_run",
]


class Status(NamedTuple):
    """A status: its meaning, its colour in pictures, and whether a retry or tiles that arrive later can fix it."""

    meaning: str
    colour: str
    retry: bool = False
    late_tiles: bool = False


#: Every status of a timestamp and of a band.
STATUSES: Mapping[TimestampStatus | BandStatus, Status] = MappingProxyType(
    {
        "success": Status("published", "#2e9e6b"),
        "not_run": Status("not aggregated yet", "#d9d9d9"),
        "failed_no_tiles": Status("the list has no tiles for it", "#bab0ac"),
        "failed_missing_inputs": Status("tiles are missing", "#f28e2b", late_tiles=True),
        "failed_invalid_inputs": Status("tiles cannot be used", "#d1495b", late_tiles=True),
        "failed_merge": Status("merging or writing failed", "#8c2d19", retry=True),
        "skipped": Status("not made, because of another band", "#f0c987", retry=True),
        "missing_input": Status("a tile is missing", "#f28e2b", late_tiles=True),
        "unreadable_input": Status("a tile cannot be read", "#d1495b", late_tiles=True),
        "checksum_mismatch": Status("a tile differs from its published checksum", "#a23e6c", late_tiles=True),
        "unknown_crs": Status("a tile is not georeferenced", "#9c5fb5", late_tiles=True),
        "dtype_conflict": Status("no mosaic can hold the tiles' dtypes", "#7a6ff0", late_tiles=True),
        "outside_grid": Status("no tile lies in the grid or the aoi", "#4e9aa8", late_tiles=True),
        "unknown_baseline": Status("a scene's radiometric offset is unknown", "#b5838d", late_tiles=True),
        "grid_conflict": Status(
            "mosaics of a period, or bands for NDVI, do not share a grid", "#6f6f2c", late_tiles=True
        ),
        "merge_failed": Status("tiles could not be merged", "#8c2d19", retry=True),
        "write_failed": Status("the mosaic could not be written", "#5b1a0d", retry=True),
        "exception": Status("the run ended before it could report", "#1a1a1a", retry=True),
    }
)

#: The version of the record of an attempt. What 0.1.0 wrote has none, which reads as 0. Fields may come (with a default, for the records
#: that lack it) and go (what is unknown is passed over): every release reads the records of every other.
SCHEMA = 1


class Column(NamedTuple):
    """The meaning of a column of the band report, and its type in Dagster's table schemas."""

    meaning: str
    kind: str = "string"


@dataclass(frozen=True)
class BandRecord:
    """One band of an attempt: a row of the band report. ``inputs`` identifies everything that its pixels depend on."""

    band: Annotated[str, Column("Name of the band.")]
    status: Annotated[BandStatus, Column("Outcome of the latest attempt.")]
    message: Annotated[str, Column("What is wrong and what to do; remarks on a success.")] = ""
    input_files: Annotated[Sequence[str], Column("Tiles in merge order, separated by |.")] = ()
    missing_files: Sequence[str] = ()
    output_path: Annotated[str, Column("The mosaic.")] = ""
    crs: Annotated[str, Column("CRS of the mosaic.")] = ""
    dtype: Annotated[str, Column("Dtype of the mosaic.")] = ""
    nodata: Annotated[float | str | None, Column("Value of empty pixels.")] = None
    width: Annotated[int | None, Column("Columns of the grid.", "int")] = None
    height: Annotated[int | None, Column("Rows of the grid.", "int")] = None
    tiles: Annotated[int | None, Column("Number of tiles.", "int")] = None
    reprojected_tiles: Annotated[
        Sequence[str], Column("Scenes reprojected from another CRS or pixel grid, separated by |.")
    ] = ()
    valid_share: Annotated[
        float | None,
        Column("Share of the grid's pixels that hold a value, 0 to 1; the smallest of the bands.", "float"),
    ] = None
    cloud_share: Annotated[
        float | None, Column("Share of SCL's pixels that are clouds (classes 8, 9, 10), 0 to 1.", "float")
    ] = None
    seconds: Annotated[float | None, Column("Time the engine took.", "float")] = None
    bytes: Annotated[int | None, Column("Size on disk.", "int")] = None
    grid: Annotated[
        str, Column("tiles: what the tiles of the timestamp cover; fixed: the same for all timestamps.")
    ] = ""
    resolution: Annotated[float | None, Column("Pixel size, in units of the CRS.", "float")] = None
    bounds: Annotated[Sequence[float], Column("Left, bottom, right, top of the grid, separated by |.")] = ()
    masked_share: Annotated[
        float | None,
        Column("Share of the grid's pixels that the SCL mask emptied, 0 to 1; the largest of the bands.", "float"),
    ] = None
    baselines: Annotated[Sequence[str], Column("Processing baselines of the scenes, separated by |.")] = ()
    harmonized: Annotated[bool | None, Column("Whether the radiometric offset was removed from some tile.", "bool")] = (
        None
    )
    input_checksums: Annotated[
        Sequence[str], Column("Checksums of the tiles, as they were read, in the order of input_files, separated by |.")
    ] = ()
    output_checksum: Annotated[str, Column("Checksum of the mosaic.")] = ""
    refetched: Annotated[
        Sequence[str], Column("Tiles that were fetched again: why, from where and when, separated by |.")
    ] = ()
    inputs: str = ""
    tile_shares: Annotated[
        Sequence[str],
        Column(
            "Share of the valid pixels that came from each scene, <scene>=<0 to 1>, separated by |; with provenance."
        ),
    ] = ()
    derived_from: Annotated[
        Sequence[str], Column("Bands that it was computed from, separated by |; empty for merged tiles.")
    ] = ()


@dataclass(frozen=True)
class Attempt:
    """One attempt at one timestamp. ``inputs`` identifies its inputs: the same text means the same mosaics.
    ``scene_ids`` are the scenes that ``time_serie.csv`` listed at the time."""

    timestamp: str
    status: TimestampStatus
    message: str
    bands: Sequence[BandRecord] = field(default=())
    output_folder: str = ""
    inputs: str = ""
    scene_ids: Sequence[str] = ()
    schema: int = SCHEMA
    #: The parameters that decide pixels, where they differ from their defaults, as JSON; empty: not known.
    parameters: str = ""

    @property
    def valid_share(self) -> float | None:
        """The smallest valid share of the bands that were made."""
        return min((band.valid_share for band in self.bands if band.valid_share is not None), default=None)

    @property
    def cloud_share(self) -> float | None:
        """The cloud share according to SCL, if it was made."""
        return next((band.cloud_share for band in self.bands if band.cloud_share is not None), None)

    @property
    def masked_share(self) -> float | None:
        """The largest masked share of the bands."""
        return max((band.masked_share for band in self.bands if band.masked_share is not None), default=None)


def status_of(bands: Iterable[BandRecord]) -> TimestampStatus:
    """A timestamp's status, from those of its bands: the problem that occurs first on the way from tiles to mosaics."""
    found = {band.status for band in bands}
    if "missing_input" in found:
        return "failed_missing_inputs"
    if found & set(get_args(ProblemKind)):
        return "failed_invalid_inputs"
    if found & {"merge_failed", "write_failed", "skipped"}:
        return "failed_merge"
    return "success"


@dataclass(frozen=True)
class RecordedAttempt:
    """An attempt as found in the event log."""

    attempt: Attempt
    run_id: str
    finished_at: float
    storage_id: int
