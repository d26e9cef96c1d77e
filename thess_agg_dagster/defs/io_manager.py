"""The IO manager: knows the layout of the DATA_LAKE, writes to it and reads from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from pydantic import Field

from thess_agg_dagster.audit.event_log import (
    attempt_metadata,
    changes_since,
    failure_observation,
    latest_successes,
    stopping_is_final,
)
from thess_agg_dagster.audit.tables import AuditTables
from thess_agg_dagster.defs.checks import check_plan, check_unmade, record_checks
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.checksums import ChangedError
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import staged_folder
from thess_agg_dagster.lake.published import MANIFEST, QUICKLOOK
from thess_agg_dagster.lake.tile_template import TILES
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.storage.fingerprints import fingerprint_of
from thess_agg_dagster.storage.paths import lake_path

if TYPE_CHECKING:
    import numpy as np
    from rasterio.io import DatasetReader

    from thess_agg_dagster.timestamp.build import Outcome, Tell
    from thess_agg_dagster.timestamp.plan import TimestampPlan

# What plans, builds and draws is imported where it is needed: every process that loads the definitions imports this module,
# and few of them make anything. (Those that fork runs import it before: `runs/ahead.py`.)

# What can be loaded, whichever lake it is of: a key without the lake's name.
_MOSAICS, _COMPOSITES = LakeKeys().aggregated.path, LakeKeys().composites.path
# A run tells how far it is no more often than this.
_TELL_SECONDS = 5


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
        if obj is None:  # an asset that keeps its result elsewhere has nothing to store here
            return
        with stopping_is_final():
            if isinstance(obj, AuditTables):
                from thess_agg_dagster.defs.report_files import write_report  # a timestamp needs none of its pictures

                context.add_output_metadata(write_report(obj, self.lake, context.log.warning))
                return
            from thess_agg_dagster.timestamp.plan import TimestampPlan  # and the tables nothing of its pixels

            if not isinstance(obj, TimestampPlan):  # or a period's
                raise TypeError(f"{type(self).__name__} writes mosaics and audit tables, not {type(obj).__name__}")
            self._write_timestamp(obj, context)

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
