"""The IO manager: knows the layout of the DATA_LAKE, writes to it and reads from it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from pydantic import Field

from thess_agg_dagster.audit.digest import period_standings_of, standings_of
from thess_agg_dagster.audit.event_log import (
    attempt_metadata,
    changes_since,
    failure_observation,
    latest_successes,
    stopping_is_final,
)
from thess_agg_dagster.audit.metrics import exposition
from thess_agg_dagster.audit.tables import EVENTS_UP_TO, TABLES_DIGEST, table_schema, tables_digest
from thess_agg_dagster.audit.telling import tell
from thess_agg_dagster.defs.checks import check_plan, check_unmade, record_checks
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.checksums import ChangedError
from thess_agg_dagster.lake.layout import TILES, DataLake
from thess_agg_dagster.lake.periods import MONTH, kind_of
from thess_agg_dagster.lake.publish import staged_file, staged_folder
from thess_agg_dagster.lake.published import MANIFEST, QUICKLOOK
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.storage.errors import first_line
from thess_agg_dagster.storage.fingerprints import fingerprint_of
from thess_agg_dagster.storage.paths import lake_path, read_if_there

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rasterio.io import DatasetReader

    from thess_agg_dagster.products import stac
    from thess_agg_dagster.timestamp.build import Outcome, Tell
    from thess_agg_dagster.timestamp.plan import TimestampPlan

# What plans, builds and draws is imported where it is needed: every process that loads the definitions imports this module,
# and few of them make anything. (Those that fork runs import it before: `runs/ahead.py`.)

# Rows of each audit table shown as metadata; the event log is no place for long lists.
_FIRST_ROWS = 20
#: Metadata key of the report: why somebody was not told of it.
NOT_TOLD = "not_told"
# What can be loaded, whichever lake it is of: a key without the lake's name.
_MOSAICS, _COMPOSITES = LakeKeys().aggregated.path, LakeKeys().composites.path
# A run tells how far it is no more often than this.
_TELL_SECONDS = 5


class AuditTables(dict[str, "pd.DataFrame"]):
    """The audit tables by short name, as passed from the report asset to the IO manager.

    ``up_to`` is the id of the newest event in them, ``as_of`` the time at which they were begun. ``stale`` says of stale
    timestamps what has changed (``None``: unknown), ``metrics`` whether Prometheus is to get the numbers.
    """

    def __init__(
        self,
        tables: Mapping[str, pd.DataFrame],
        up_to: int,
        as_of: datetime,
        stale: Mapping[str, str] | None = None,
        metrics: bool = False,
    ) -> None:
        super().__init__(tables)
        self.up_to, self.as_of, self.stale, self.metrics = up_to, as_of, stale, metrics


@dataclass(frozen=True)
class TimestampMosaics:
    """The published mosaics of one timestamp, or composites of one period, as passed to a downstream asset: paths, not
    arrays."""

    timestamp: str
    paths: Mapping[str, Path]

    def open(self, band: str) -> DatasetReader:
        """Open the mosaic of one band; the caller closes it. Raises ``KeyError`` if there is no such band."""
        import rasterio

        from thess_agg_dagster.storage.gdal import gdal_name, store_env

        with store_env():
            return rasterio.open(gdal_name(self.paths[band]))

    def read(self, band: str) -> np.ma.MaskedArray[Any, Any]:
        """All pixels of one band, with empty ones masked. Raises ``KeyError`` if there is no such band."""
        with self.open(band) as mosaic:
            return cast("np.ma.MaskedArray[Any, Any]", mosaic.read(1, masked=True))


class DataLakeIOManager(dg.ConfigurableIOManager):
    """Builds planned mosaics in the lake, writes the audit tables, and loads both."""

    data_lake: str = Field(default="DATA_LAKE", description="Root of the lake: a folder, or s3://bucket/prefix.")
    tables: str | None = Field(default=None, description="Folder of the tables; unset: `tables` in the lake.")
    tiles: str | None = Field(
        default=None, description=f"Where the tiles are: a template, or `remote`; unset: `{TILES}`."
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DataLakeIOManager:
        """From ``DATA_LAKE`` (``./DATA_LAKE`` if unset), ``THESS_TABLES`` and ``THESS_TILES``."""
        return cls(
            data_lake=str(lake_path(environment.get("DATA_LAKE") or "DATA_LAKE")),
            tables=environment.get("THESS_TABLES") or None,
            tiles=environment.get("THESS_TILES") or None,
        )

    @property
    def lake(self) -> DataLake:
        return DataLake.at(self.data_lake, self.tables, self.tiles)

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        from thess_agg_dagster.timestamp.plan import TimestampPlan

        with stopping_is_final():
            if isinstance(obj, TimestampPlan):  # or a period's
                self._write_timestamp(obj, context)
            elif isinstance(obj, AuditTables):
                self._write_tables(obj, context)
            elif obj is not None:  # an asset that keeps its result elsewhere has nothing to store here
                raise TypeError(f"{type(self).__name__} writes mosaics and audit tables, not {type(obj).__name__}")

    def load_input(self, context: dg.InputContext) -> Any:
        """For ``time_serie`` the parsed list; for ``data_raw/aggregated`` and ``data_raw/composites`` the files of the
        requested partition, or a mapping for several.

        As with Dagster's own IO managers, a partition without mosaics is an error unless the input's metadata set
        ``allow_missing_partitions``: then it is ``None``, or left out of the mapping.
        """
        if context.asset_key.path[-2:] in (_MOSAICS, _COMPOSITES):
            keys = list(context.asset_partition_keys)
            found = {key: mosaics for key in keys if (mosaics := self._mosaics_asked_for(key, context))}
            return found if len(keys) != 1 else found.get(keys[0])
        try:
            return read_time_serie(self.lake.time_serie)
        except TimeSerieError as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    def _mosaics_asked_for(self, timestamp: str, context: dg.InputContext) -> TimestampMosaics | None:
        try:
            return self.mosaics(timestamp, context.asset_key.path[-2:] == _COMPOSITES)
        except FileNotFoundError as error:
            if not (context.definition_metadata or {}).get("allow_missing_partitions"):
                raise
            context.log.warning(f"left out because of allow_missing_partitions: {error}")
            return None

    def mosaics(self, timestamp: str, composites: bool = False) -> TimestampMosaics:
        """The published mosaics of a timestamp, or composites of a period. Raises ``FileNotFoundError`` if there are none."""
        shelf = self.lake.composites if composites else self.lake
        found = shelf.published(timestamp)
        paths = {band: found.mosaic(band) for band in found.bands}
        if not paths or not fingerprint_of(shelf.manifest(timestamp)):
            what = shelf.aggregated.relative_to(shelf.root)
            raise FileNotFoundError(
                f"{shelf.timestamp_folder(timestamp)}: no mosaics of {timestamp}; materialize {what} for it first"
            )
        return TimestampMosaics(timestamp, paths)

    def _write_tables(self, obj: AuditTables, context: dg.OutputContext) -> None:
        from thess_agg_dagster.products import stac
        from thess_agg_dagster.products.quicklook import as_markdown
        from thess_agg_dagster.products.series_plot import first_look, series_at_a_glance
        from thess_agg_dagster.products.year import year_at_a_glance

        for name, table in obj.items():
            self._write_table(self.lake.audit_table(name), table.to_csv(index=False).encode())
        collection = self._write_collection(self.lake, stac.MOSAICS)
        if "composites" in obj:
            self._write_collection(self.lake.composites, stac.COMPOSITES)
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
        if "composites" in obj and (months := self._pictures_of_months(obj["composites"])):
            seen["year"] = dg.MetadataValue.md(as_markdown(year_at_a_glance(months), "WEBP", quality=60))
        if collection:
            seen["stac_collection"] = dg.MetadataValue.path(str(self.lake.collection))
        for name, table in obj.items():
            seen[name] = dg.MetadataValue.path(str(self.lake.audit_table(name)))
            seen[f"{name}_first_rows"] = dg.MetadataValue.table(_records(table.head(_FIRST_ROWS)), table_schema(name))
        seen |= self._tell(obj, context)
        context.add_output_metadata(seen | {TABLES_DIGEST: tables_digest(self.lake), EVENTS_UP_TO: obj.up_to})

    def _tell(self, obj: AuditTables, context: dg.OutputContext) -> dict[str, Any]:
        """Tell receivers and Prometheus, if they are to be told; returns what the report shows of that."""
        timestamps, periods = standings_of(obj, obj.stale or {}), period_standings_of(obj)
        told, faults = tell([*timestamps, *periods], self.lake, obj.as_of)
        for fault in faults:
            context.log.warning(fault)
        seen: dict[str, Any] = {}
        if obj.metrics:
            unlisted = len(obj["status"]) - len(timestamps)
            known = obj.stale is not None
            text = exposition(str(self.lake.root), timestamps, periods, unlisted, known, obj.as_of, len(faults))
            self._write_table(self.lake.metrics, text.encode())
            seen["metrics"] = dg.MetadataValue.path(str(self.lake.metrics))
        if told:
            seen["told"] = "; ".join(told)
        return seen | ({NOT_TOLD: "; ".join(faults)} if faults else {})

    def _pictures_of_months(self, composites: pd.DataFrame) -> dict[str, bytes]:
        """The quicklooks of the published months of the latest year."""
        from thess_agg_dagster.products.year import months_until

        made = composites.loc[composites["status"] == "success", "period"]
        months = [period for period in made if kind_of(period) == MONTH]
        shown = months_until(max(months)) if months else []
        paths = {month: self.lake.composites.published(month).folder / QUICKLOOK for month in months if month in shown}
        found = {month: read_if_there(path) for month, path in paths.items()}
        return {month: data for month, data in found.items() if data}

    def _write_collection(self, shelf: DataLake, kind: stac.Kind) -> bool:
        """The STAC collection of what is published with items, and its indices, where there are any."""
        from thess_agg_dagster.products import stac
        from thess_agg_dagster.products.series_index import series_parquet, tile_indices

        paths = shelf.items()
        items = stac.published_items(paths, shelf.aggregated)
        if items:
            collection = stac.series_collection(items, kind)
            indices = tile_indices(items)
            for name, data in indices.items():
                self._write_table(shelf.aggregated / name, data)
            self._write_table(shelf.series_parquet, series_parquet(items, collection))
            self._write_table(shelf.collection, collection.encode())
            _remove(path for path in shelf.tile_indices() if path.name not in indices)
        elif not paths:
            _remove([shelf.collection, shelf.series_parquet, *shelf.tile_indices()])
        return bool(items)

    def _write_table(self, path: Path, data: bytes) -> None:
        try:
            with staged_file(path) as file:
                file.write_bytes(data)
        except OSError as error:
            raise dg.Failure(
                f"{path}: cannot be written ({first_line(error)}); it needs {len(data) / 1e3:.0f} KB; check disk space, "
                "quota and permissions (the old file stays)",
                allow_retries=False,
            ) from error

    def _write_timestamp(self, obj: TimestampPlan, context: dg.OutputContext) -> None:
        from thess_agg_dagster.products.quicklook import thumbnail

        instance, asset = context.step_context.instance, context.asset_key
        before = latest_successes(instance, asset, [obj.timestamp]).get(obj.timestamp)
        outcome = self.publish(obj, context.log.info)
        if outcome.attempt.status != "success":
            record_checks(context, [*check_plan(obj), check_unmade(outcome.attempt.message, merging=True)])
            context.log_event(failure_observation(outcome.attempt, asset))
            raise dg.Failure(outcome.attempt.message, allow_retries=outcome.worth_a_retry) from outcome.error
        seen: dict[str, Any] = {}
        if outcome.picture:
            seen["quicklook"] = dg.MetadataValue.md(thumbnail(outcome.picture))
            seen["quicklook_file"] = dg.MetadataValue.path(f"{outcome.attempt.output_folder}/{QUICKLOOK}")
        seen |= attempt_metadata(outcome.attempt)
        if before:
            seen["changed_since_last"] = changes_since(before.attempt, outcome.attempt)
        context.add_output_metadata(seen)

    def publish(self, plan: TimestampPlan, tell: Tell = lambda _: None) -> Outcome:
        """Build a timestamp (or a period) in a staging folder, and publish the folder once all bands are complete."""
        from thess_agg_dagster.period.build import build_period
        from thess_agg_dagster.period.plan import PeriodPlan
        from thess_agg_dagster.timestamp.build import BuildError, build_timestamp, unpublished

        shelf = self.lake.composites if plan.composed else self.lake
        target = shelf.new_folder(plan.timestamp)
        try:
            with staged_folder(target, shelf.staging, MANIFEST, plan.replaces) as folder:
                if isinstance(plan, PeriodPlan):
                    return build_period(plan, folder, target, self.lake.root, tell)
                return build_timestamp(plan, folder, target, self.lake.root, tell)
        except BuildError as error:
            return error.outcome
        except (OSError, ChangedError) as error:
            return unpublished(plan, target, error)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


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
