"""Building: a planned timestamp becomes files in a folder, and an outcome for the audit. Independent of Dagster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, BandStatus
from thess_agg_dagster.lake.checksums import BackgroundChecksums, ChangedError, checksum_of
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import ITEM, MANIFEST, NDVI, QUICKLOOK
from thess_agg_dagster.lake.run_names import is_run
from thess_agg_dagster.mosaic.bands import NIR, RED, is_scl
from thess_agg_dagster.mosaic.blocks import Pixels
from thess_agg_dagster.mosaic.composite import open_mosaics
from thess_agg_dagster.mosaic.engine import MosaicStats, WriteError, write_mosaic
from thess_agg_dagster.mosaic.ndvi import write_ndvi
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.scl import cloud_share
from thess_agg_dagster.mosaic.tiles import TileError
from thess_agg_dagster.products.provenance import mosaic_tags, origin_tags, scene_shares, timestamp_manifest
from thess_agg_dagster.products.quicklook import Preview, quicklook
from thess_agg_dagster.products.stac import timestamp_item
from thess_agg_dagster.storage.errors import SystemFaultError, first_line, is_transient
from thess_agg_dagster.timestamp.keep import KeepError, keep_band
from thess_agg_dagster.timestamp.plan import TimestampPlan
from thess_agg_dagster.timestamp.records import band_record, failed_attempt, successful_attempt

# It is told how far the work is no more often than this.
_TELL_SECONDS = 5

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a timestamp: the attempt for the audit and a picture of it; or the error, and whether a retry may
    help."""

    attempt: Attempt
    picture: Image.Image | None = None
    error: Exception | None = None
    worth_a_retry: bool = False


class BuildError(Exception):
    """Some band could not be made, so nothing may be published. ``outcome`` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.attempt.message)
        self.outcome = outcome


def build_timestamp(
    plan: TimestampPlan, folder: Path, target: Path, lake: Path, tell: Tell = lambda _: None
) -> Outcome:
    """Make the mosaics of a timestamp in ``folder``, together with quicklook, manifest and STAC item.

    ``target`` is where the folder will be published (see ``DataLake.new_folder``), below the root ``lake``; ``tell`` is
    called with progress messages. Every band is tried, so that one outcome contains every problem. Raises
    :class:`BuildError` with that outcome if a band cannot be made, and ``OSError`` or :class:`ChangedError` for other
    faults.
    """
    with BackgroundChecksums(plan.input_files()) as checksums:
        tell(plan.summary())
        records, previews, origins = _build_bands(plan, folder, target, checksums, tell)
        picture = picture_of(plan, previews, origins if plan.seams else {}, tell)
        return finish(plan, records, picture, folder, target, lake, checksums)


def finish(
    plan: TimestampPlan,
    records: Sequence[BandRecord],
    picture: Image.Image | None,
    folder: Path,
    target: Path,
    lake: Path,
    checksums: BackgroundChecksums,
) -> Outcome:
    """Write what stands beside finished bands: see :func:`build_timestamp`."""
    with _named(QUICKLOOK, plan, target):
        # Without one the timestamp would be due for ever.
        (picture or Image.new("RGB", (1, 1))).save(folder / QUICKLOOK, quality=90, subsampling=0)
    attempt = successful_attempt(plan, records, target)
    home = DataLake(lake).timestamp_folder(plan.timestamp)
    run = f"{target.name}/" if is_run(target.name) else ""
    with _named(MANIFEST, plan, target):
        (folder / MANIFEST).write_text(timestamp_manifest(plan, attempt, checksums, lake, folder, run))
    if plan.stac:
        with _named(ITEM, plan, target):
            (folder / ITEM).write_text(timestamp_item(plan, records, folder, home.name, run, checksums))
    return Outcome(attempt, picture)


def unpublished(plan: TimestampPlan, target: Path, error: OSError | ChangedError) -> Outcome:
    """The outcome of a timestamp that was built but could not be published."""
    why = f"{target}: cannot be published ({first_line(error)}); check disk space and permissions"
    if isinstance(error, ChangedError):
        why = str(error)
    records = [band_record(plan, mosaic, "write_failed", why) for mosaic in plan.mosaics.values()]
    return Outcome(failed_attempt(plan, records), None, error, is_passing(error))


@contextmanager
def _named(file: str, plan: TimestampPlan, target: Path) -> Iterator[None]:
    """Fail the timestamp by the name of a file beside its mosaics, whatever goes wrong with that."""
    try:
        yield
    except (OSError, ChangedError):
        raise
    except Exception as error:
        why = f"{target / file}: cannot be created ({type(error).__name__}: {first_line(error)}); please report it"
        records = [band_record(plan, mosaic, "write_failed", why) for mosaic in plan.mosaics.values()]
        raise BuildError(Outcome(failed_attempt(plan, records), None, error)) from error


def _build_bands(
    plan: TimestampPlan, folder: Path, target: Path, checksums: BackgroundChecksums, tell: Tell
) -> tuple[list[BandRecord], dict[str, Preview], dict[str, Pixels]]:
    """A record of every band, and previews of its pixels and of where they came from."""
    records: list[BandRecord] = []
    previews: dict[str, Preview] = {}
    origins: dict[str, Pixels] = {}
    errors: list[Exception] = []
    told = time.monotonic()
    for band, mosaic in plan.mosaics.items():
        final = target / f"{band}.tif"
        try:
            if kept := _kept(plan, mosaic, folder / final.name, final):
                record, previews[band] = kept
            elif plan.derived_from(band):
                if errors:
                    failed = ", ".join(each.band for each in records if each.status != "success")
                    records.append(band_record(plan, mosaic, "skipped", f"not made, because of {failed}"))
                    continue
                record, previews[band] = _write_ndvi(plan, mosaic, folder, final, checksums)
            else:
                record, stats = _write_band(mosaic, folder / final.name, final, plan, checksums)
                previews[band] = masked(stats.preview, mosaic.nodata)
                if stats.origins is not None:
                    origins[band] = stats.origins
            records.append(record)
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                tell(f"{band} is merged, {len(records)} of {len(plan.mosaics)} bands")
        except Exception as error:  # the other bands are tried, too
            errors.append(error)
            records.append(band_record(plan, mosaic, *_fault(error, folder, target)))
    if errors:
        # A tile whose pixels turned out to be damaged can be fetched again before the next try.
        again = is_passing(errors[0]) or (plan.refetchable and any(isinstance(e, TileError) for e in errors))
        raise BuildError(Outcome(failed_attempt(plan, records), None, errors[0], again)) from errors[0]
    return records, previews, origins


def _kept(plan: TimestampPlan, mosaic: MosaicPlan, staged: Path, final: Path) -> tuple[BandRecord, Preview] | None:
    """A published band that stays, its record and preview. One that is requested is made anew if it cannot stay."""
    if mosaic.band not in plan.kept:
        return None
    planned = replace(band_record(plan, mosaic, "success", ""), output_path=str(final))
    try:
        return keep_band(plan.kept[mosaic.band], planned, staged)
    except (KeepError, FileNotFoundError):
        if mosaic.band in plan.asked:
            return None
        raise


def _write_ndvi(
    plan: TimestampPlan, mosaic: MosaicPlan, folder: Path, final: Path, checksums: BackgroundChecksums
) -> tuple[BandRecord, Preview]:
    """NDVI of the bands that were just finished in ``folder``."""
    assert plan.index is not None
    red, nir = (open_mosaics(band, [folder / f"{band}.tif"]) for band in (RED, NIR))
    tags = mosaic_tags(mosaic, plan, checksums)
    stats = write_ndvi(red, nir, folder / final.name, plan.index, tags)
    record = replace(
        band_record(plan, mosaic, "success", ""),
        output_path=str(final),
        valid_share=round(stats.valid_share, 6),
        seconds=round(stats.seconds, 3),
        bytes=stats.bytes,
        input_checksums=[str(checksums.of(tile.path)) for tile in mosaic.tiles],
        output_checksum=str(checksum_of(folder / final.name)),
    )
    return record, masked(stats.preview, mosaic.nodata)


def masked(preview: Pixels, nodata: float) -> Preview:
    """A preview whose empty pixels are masked."""
    return np.ma.array(preview, mask=np.isnan(preview) if math.isnan(nodata) else preview == nodata)


def picture_of(
    plan: TimestampPlan, previews: dict[str, Preview], origins: dict[str, Pixels], tell: Tell
) -> Image.Image | None:
    """The quicklook, where there is something to show and nothing goes wrong."""
    index = None
    if plan.index is not None:
        stored = previews.pop(NDVI)
        index = np.ma.array(np.asarray(stored, float) * plan.index.unit, mask=np.ma.getmaskarray(stored))
    try:
        return quicklook(previews, origins, index)
    except Exception as error:  # a picture is no reason to lose mosaics
        tell(f"no quicklook: {type(error).__name__}: {first_line(error)}")
        return None


def is_passing(error: Exception) -> bool:
    """Whether the next try may do without it."""
    return isinstance(error, ChangedError) or is_transient(error)


def _write_band(
    plan: MosaicPlan, staged: Path, final: Path, timestamp: TimestampPlan, checksums: BackgroundChecksums
) -> tuple[BandRecord, MosaicStats]:
    beside = timestamp.beside(plan, staged.parent)
    if beside is not None:
        beside = replace(beside, tags=lambda: origin_tags(plan, timestamp, checksums))
    stats = write_mosaic(plan, staged, lambda: mosaic_tags(plan, timestamp, checksums), beside)
    notes = [str(note) for note in plan.notes]
    if stats.overwritten_pixels:
        notes.append(
            f"{stats.overwritten_pixels} valid pixels have the value of nodata ({plan.nodata:g}) and read as empty"
        )
    clouds = cloud_share(stats.histogram) if is_scl(plan.band) and stats.histogram is not None else None
    if is_scl(plan.band):
        if stats.histogram is None:
            notes.append(f"no cloud share: merge_method={plan.options.merge_method} leaves no classes")
        elif clouds is None:
            notes.append("no cloud share: not one pixel has a class")
    record = replace(
        band_record(timestamp, plan, "success", "; ".join(notes)),
        output_path=str(final),
        valid_share=round(stats.valid_share, 6),
        cloud_share=None if clouds is None else round(clouds, 6),
        masked_share=round(stats.masked_share, 6) if any(layer.scl for layer in plan.layers) else None,
        seconds=round(stats.seconds, 3),
        bytes=stats.bytes,
        input_checksums=[str(checksums.of(tile.path)) for tile in plan.tiles],
        output_checksum=str(checksum_of(staged)),
        tile_shares=() if stats.tile_shares is None else scene_shares(plan, stats.tile_shares),
    )
    return record, stats


def _fault(error: Exception, staging: Path, target: Path) -> tuple[BandStatus, str]:
    """Status and message of a band that could not be made."""
    if isinstance(error, TileError):
        return "unreadable_input", str(error)
    if isinstance(error, WriteError):
        return "write_failed", str(error).replace(str(staging), str(target))
    if isinstance(error, SystemFaultError | ChangedError | KeepError):
        return "merge_failed", str(error)
    return "merge_failed", f"{type(error).__name__}: {first_line(error)}"
