"""A forecast of an aggregation: what is due, what is missing, how much must be downloaded and written, and how long it
takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.lake.catalogue import item_asset, read_item
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.fingerprints import Fingerprints
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp.freshness import tile_names
from thess_agg_dagster.timestamp.remote import located


@dataclass(frozen=True)
class Forecast:
    """Due timestamps and missing tiles. Bytes and seconds are estimated from earlier timestamps in the event log, per
    tile; ``None`` if there are none."""

    due: Sequence[str]
    missing: Mapping[str, Sequence[File]]
    fetch_bytes: int
    fetch_unknown: int
    write_bytes: float | None
    seconds: float | None

    def print(self, out: Console, fetches: bool) -> None:
        for key in self.due:
            paths = self.missing.get(key, ())
            what = f"  [yellow]{len(paths)} tiles missing[/]" if paths else ""
            out.print(f"{key}  due{what}", highlight=False, soft_wrap=True)
            if not fetches:
                for path in paths:
                    out.print(f"  {escape(str(path))}", highlight=False, soft_wrap=True)
        count = sum(map(len, self.missing.values()))
        unknown = f" and {self.fetch_unknown} of unknown size" if self.fetch_unknown else ""
        how = "to fetch" if fetches else "missing (set download_from to download them)"
        out.print(f"\n{len(self.due)} timestamps due; {count} tiles {how}: {self.fetch_bytes / 1e6:.1f} MB{unknown}")
        if self.write_bytes is None or self.seconds is None:
            out.print("Bytes to write and time: unknown, because nothing has been aggregated here yet")
        else:
            out.print(f"To write: about {self.write_bytes / 1e6:.1f} MB in {self.seconds:.0f} s, without downloads")


def forecast(
    acquisitions: Sequence[Acquisition],
    lake: DataLake,
    params: TimestampsAggregationParams,
    successes: Mapping[str, RecordedAttempt],
    fingerprints: Fingerprints,
    workers: int,
) -> Forecast:
    """The forecast for due timestamps. Reads the STAC items of scenes with missing tiles, but opens no tile."""
    missing: dict[str, list[File]] = {}
    sizes: dict[File, int | None] = {}
    for acquisition in acquisitions:
        for scene_id, band in tile_names(acquisition, params):
            path = located(lake, params).source(scene_id, band)
            if fingerprints(path) is None:
                missing.setdefault(acquisition.timestamp, []).append(path)
                size = item_asset(read_item(lake.scene_item(scene_id)), band).get("file:size")
                sizes[path] = size if isinstance(size, int) else None
    bands = [band for found in successes.values() for band in found.attempt.bands]
    tiles_before = sum(band.tiles or 0 for band in bands)
    tiles = sum(len(each.scene_ids) for each in acquisitions) * len(params.outputs)
    known = tiles_before > 0
    return Forecast(
        [each.timestamp for each in acquisitions],
        missing,
        sum(size or 0 for size in sizes.values()),
        sum(size is None for size in sizes.values()),
        sum(band.bytes or 0 for band in bands) / tiles_before * tiles if known else None,
        sum(band.seconds or 0 for band in bands) / tiles_before * tiles / workers if known else None,
    )
