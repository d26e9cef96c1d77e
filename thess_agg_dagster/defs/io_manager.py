"""The IO manager: owns where everything in the DATA_LAKE is put and found, and writes it."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import dagster as dg
import numpy as np
from pydantic import Field

from thess_agg_dagster.audit.attempt import Attempt, BandRecord, BandStatus, stopping_is_final
from thess_agg_dagster.audit.tables import table_schema
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.checksums import BackgroundChecksums, ChangedError, checksum_of
from thess_agg_dagster.lake.layout import ITEM, MANIFEST, QUICKLOOK, DataLake
from thess_agg_dagster.lake.publish import staged_file, staged_folder
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.mosaic.engine import WriteError, write_mosaic
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.scl import cloud_share
from thess_agg_dagster.mosaic.tiles import SystemFaultError, TileError, first_line, gdal_name, is_transient
from thess_agg_dagster.products.pictures import Preview, first_look, quicklook, series_at_a_glance, thumbnail
from thess_agg_dagster.products.provenance import mosaic_tags, timestamp_manifest
from thess_agg_dagster.products.stac import series_collection, timestamp_item
from thess_agg_dagster.storage.paths import lake_path, stamp_of, stamps_below
from thess_agg_dagster.timestamp.plan import TimestampPlan

if TYPE_CHECKING:
    import pandas as pd
    from rasterio.io import DatasetReader

# Rows of each audit table shown as metadata; the event log is no place for long lists.
_FIRST_ROWS = 20
# A run tells how far it is no more often than this.
_TELL_SECONDS = 5


class AuditTables(dict[str, "pd.DataFrame"]):
    """The audit tables by short name, as the report asset hands them to the IO manager."""


@dataclass(frozen=True)
class TimestampMosaics:
    """The published mosaics of one timestamp, as a downstream asset receives them: paths, not arrays."""

    timestamp: str
    paths: Mapping[str, Path]

    def open(self, band: str) -> DatasetReader:
        """Open one band's mosaic; the caller closes it. Raises ``KeyError`` for a band that is not there."""
        import rasterio

        return rasterio.open(gdal_name(self.paths[band]))


class DataLakeIOManager(dg.ConfigurableIOManager):
    """Streams planned mosaics into the lake, writes the audit tables, and finds both again."""

    data_lake: str = Field(default="DATA_LAKE", description="Root of the lake: a folder, or s3://bucket/prefix.")
    tables: str | None = Field(default=None, description="Folder of the tables; unset: `tables` in the lake.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DataLakeIOManager:
        """``DATA_LAKE`` and ``THESS_TABLES``; ``./DATA_LAKE`` when unset."""
        return cls(
            data_lake=str(lake_path(environment.get("DATA_LAKE") or "DATA_LAKE")),
            tables=environment.get("THESS_TABLES") or None,
        )

    @property
    def lake(self) -> DataLake:
        return DataLake.at(self.data_lake, self.tables)

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        with stopping_is_final():
            self._write(obj, context)

    def load_input(self, context: dg.InputContext) -> Any:
        """``time_serie``: the parsed list. ``data_raw/aggregated``: the mosaics of the partition(s) asked for."""
        if context.asset_key == AGGREGATED:
            found = {key: self.mosaics(key) for key in context.asset_partition_keys}
            return found if len(found) != 1 else next(iter(found.values()))
        try:
            return read_time_serie(self.lake.time_serie)
        except TimeSerieError as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    def mosaics(self, timestamp: str) -> TimestampMosaics:
        """What is published of a timestamp. Raises ``FileNotFoundError`` where nothing is."""
        folder = self.lake.timestamp_folder(timestamp)
        paths = {path.stem: path for path in sorted(folder.glob("*.tif"))}
        if not paths or not stamp_of(self.lake.manifest(timestamp)):
            raise FileNotFoundError(
                f"{folder}: no mosaics of {timestamp}; materialize data_raw/aggregated for it first"
            )
        return TimestampMosaics(timestamp, paths)

    @singledispatchmethod
    def _write(self, obj: object, context: dg.OutputContext) -> None:
        raise TypeError(f"{type(self).__name__} writes mosaics and audit tables, not {type(obj).__name__}")

    @_write.register
    def _(self, obj: None, context: dg.OutputContext) -> None:
        """An asset that keeps its result elsewhere has nothing to store here."""

    @_write.register
    def _(self, obj: AuditTables, context: dg.OutputContext) -> None:
        for name, table in obj.items():
            self._write_table(self.lake.audit_table(name), table.to_csv(index=False).encode())
        stamps = stamps_below([self.lake.aggregated])
        items = [path for key in obj["status"]["timestamp"] if stamps(path := self.lake.item(key))]
        collection = series_collection(items)
        if collection is not None:
            self._write_table(self.lake.collection, collection.encode())
        else:
            with suppress(OSError):
                self.lake.collection.unlink()  # its items are gone
        picture = series_at_a_glance(obj["status"], obj["band_report"])
        data = io.BytesIO()
        picture.save(data, "PNG")
        self._write_table(self.lake.glance, data.getvalue())
        states = obj["status"]["status"]
        counts = {
            "timestamps": len(states),
            "successful": int((states == "success").sum()),
            "failed": int((~states.isin(["success", "not_run"])).sum()),
            "not_run": int((states == "not_run").sum()),
        }
        seen: dict[str, Any] = {"series": dg.MetadataValue.md(first_look(picture)), **counts}
        if collection is not None:
            seen["stac_collection"] = dg.MetadataValue.path(str(self.lake.collection))
        for name, table in obj.items():
            seen[name] = dg.MetadataValue.path(str(self.lake.audit_table(name)))
            seen[f"{name}_first_rows"] = dg.MetadataValue.table(_records(table.head(_FIRST_ROWS)), table_schema(name))
        context.add_output_metadata(seen)

    def _write_table(self, path: Path, data: bytes) -> None:
        try:
            with staged_file(path) as file:
                file.write_bytes(data)
        except OSError as error:
            raise dg.Failure(
                f"{path}: cannot be written ({first_line(error)}); it takes {len(data) / 1e3:.0f} KB; check disk space, "
                "quota and permissions (the old file stays)",
                allow_retries=False,
            ) from error

    @_write.register
    def _(self, obj: TimestampPlan, context: dg.OutputContext) -> None:
        """Write every band into a staging folder; publish the folder when all of them stand."""
        target = self.lake.timestamp_folder(obj.timestamp)
        records: list[BandRecord] = []
        previews: dict[str, Preview] = {}
        picture = None
        errors: list[Exception] = []
        try:
            with (
                staged_folder(target, self.lake.staging, last=MANIFEST) as folder,
                BackgroundChecksums(obj.input_files()) as checksums,
            ):
                context.log.info(obj.summary())
                told = time.monotonic()
                for band, plan in obj.mosaics.items():
                    try:
                        final = target / f"{band}.tif"
                        record, previews[band] = _write_band(plan, folder / final.name, final, obj, checksums)
                        records.append(record)
                        if time.monotonic() - told > _TELL_SECONDS:
                            told = time.monotonic()
                            context.log.info(f"{band} is merged, {len(records)} of {len(obj.mosaics)} bands")
                    except Exception as error:  # the other bands are tried, too, so that one report shows every problem
                        errors.append(error)
                        records.append(obj.band_record(plan, *_fault(error, folder, target)))
                if errors:
                    raise _UnpublishedError from errors[0]
                try:
                    picture = quicklook(previews)
                except Exception as error:  # a picture is no reason to lose mosaics
                    context.log.warning(f"no quicklook: {type(error).__name__}: {first_line(error)}")
                if picture:
                    picture.save(folder / QUICKLOOK, quality=90, subsampling=0)
                manifest = timestamp_manifest(obj, records, checksums, self.lake.root)
                (folder / MANIFEST).write_text(manifest)
                if obj.stac:
                    item = timestamp_item(obj, records, folder, target.name)
                    (folder / ITEM).write_text(item)
        except _UnpublishedError as unpublished:
            # A tile whose pixels turned out to be damaged can be fetched again before the next try.
            again = obj.refetchable and any(isinstance(error, TileError) for error in errors)
            self._fail(context, obj.failed_attempt(records), unpublished.__cause__, again)
        except (OSError, ChangedError) as error:
            why = f"{target}: cannot be published ({first_line(error)}); check disk space and permissions"
            faults = [obj.band_record(plan, "write_failed", why) for plan in obj.mosaics.values()]
            self._fail(context, obj.failed_attempt(faults), error)
        seen: dict[str, Any] = {}
        if picture:
            seen["quicklook"] = dg.MetadataValue.md(thumbnail(picture))
            seen["quicklook_file"] = dg.MetadataValue.path(str(self.lake.quicklook(obj.timestamp)))
        context.add_output_metadata(seen | obj.successful_attempt(records, target).metadata())

    def _fail(
        self, context: dg.OutputContext, attempt: Attempt, cause: BaseException | None, again: bool = False
    ) -> NoReturn:
        context.log_event(attempt.observation())
        raise dg.Failure(
            attempt.message,
            allow_retries=again or isinstance(cause, ChangedError) or (cause is not None and is_transient(cause)),
        ) from cause


def _records(table: pd.DataFrame) -> list[dg.TableRecord]:
    """Rows as Dagster shows them: plain values, nothing for what is missing."""
    return [
        dg.TableRecord(
            {
                str(name): value if isinstance(value, str | int | float | None) else str(value)
                for name, value in row.items()
            }
        )
        for row in table.to_dict("records")
    ]


class _UnpublishedError(Exception):
    """Some band could not be made, so the staged folder is thrown away."""


def _write_band(
    plan: MosaicPlan, staged: Path, final: Path, timestamp: TimestampPlan, checksums: BackgroundChecksums
) -> tuple[BandRecord, Preview]:
    stats = write_mosaic(plan, staged, lambda: mosaic_tags(plan, timestamp, checksums))
    notes = list(plan.notes)
    if stats.overwritten_pixels:
        notes.append(
            f"{stats.overwritten_pixels} valid pixels have the value of nodata ({plan.nodata:g}) and read as empty"
        )
    clouds = cloud_share(stats.histogram) if plan.band == "SCL" and stats.histogram is not None else None
    record = replace(
        timestamp.band_record(plan, "success", "; ".join(notes)),
        output_path=str(final),
        valid_share=round(stats.valid_share, 6),
        cloud_share=None if clouds is None else round(clouds, 6),
        masked_share=round(stats.masked_share, 6) if any(layer.scl for layer in plan.layers) else None,
        seconds=round(stats.seconds, 3),
        bytes=stats.bytes,
        input_checksums=[str(checksums.of(tile.path)) for tile in plan.tiles],
        output_checksum=str(checksum_of(staged)),
    )
    empty = np.isnan(stats.preview) if math.isnan(plan.nodata) else stats.preview == plan.nodata
    return record, np.ma.array(stats.preview, mask=empty)


def _fault(error: Exception, staging: Path, target: Path) -> tuple[BandStatus, str]:
    """Status and message of a band that could not be made."""
    if isinstance(error, TileError):
        return "unreadable_input", str(error)
    if isinstance(error, WriteError):
        return "write_failed", str(error).replace(str(staging), str(target))
    if isinstance(error, SystemFaultError | ChangedError):
        return "merge_failed", str(error)
    return "merge_failed", f"{type(error).__name__}: {first_line(error)}"
