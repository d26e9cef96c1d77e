"""Outcomes: what one try at one timestamp read and wrote, and why it failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from thess_agg_dagster.mosaic.tiles import ProblemKind

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

#: The version of the record of an attempt. What 0.1.0 wrote has none, which reads as 0. Fields may come (with a default, for the records
#: that lack it) and go (what is unknown is passed over): every release reads the records of every other.
SCHEMA = 1


@dataclass(frozen=True)
class BandRecord:
    """One band of an attempt: a row of the band report. ``inputs`` identifies what its pixels were made of."""

    band: str
    status: BandStatus
    message: str = ""
    input_files: Sequence[str] = ()
    missing_files: Sequence[str] = ()
    output_path: str = ""
    crs: str = ""
    dtype: str = ""
    nodata: float | str | None = None
    width: int | None = None
    height: int | None = None
    tiles: int | None = None
    reprojected_tiles: Sequence[str] = ()
    valid_share: float | None = None
    cloud_share: float | None = None
    seconds: float | None = None
    bytes: int | None = None
    grid: str = ""
    resolution: float | None = None
    bounds: Sequence[float] = ()
    masked_share: float | None = None
    baselines: Sequence[str] = ()
    harmonized: bool | None = None
    input_checksums: Sequence[str] = ()
    output_checksum: str = ""
    refetched: Sequence[str] = ()
    inputs: str = ""
    tile_shares: Sequence[str] = ()


@dataclass(frozen=True)
class Attempt:
    """One try at one timestamp. ``inputs`` identifies what went in: same text, same mosaics; ``scene_ids`` are the tiles
    that ``time_serie.csv`` listed then."""

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
        """The smallest of the bands' that were made."""
        return min((band.valid_share for band in self.bands if band.valid_share is not None), default=None)

    @property
    def cloud_share(self) -> float | None:
        """What SCL says, where it was made."""
        return next((band.cloud_share for band in self.bands if band.cloud_share is not None), None)

    @property
    def masked_share(self) -> float | None:
        """The largest of the bands' that were masked."""
        return max((band.masked_share for band in self.bands if band.masked_share is not None), default=None)


def status_of(bands: Iterable[BandRecord]) -> TimestampStatus:
    """A timestamp's status from its bands': the fault that comes first on the way from tiles to mosaics."""
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
