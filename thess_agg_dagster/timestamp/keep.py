"""Published bands that stay: those that are not requested now, while they are up to date (none is removed without notice), and
those that are, where only NDVI is to be made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio

from thess_agg_dagster.audit.outcome import Attempt, BandRecord
from thess_agg_dagster.lake.checksums import checksum_of
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import NDVI, Published
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.mosaic.preview import PREVIEW
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.products.quicklook import Preview
from thess_agg_dagster.storage.gdal import gdal_env
from thess_agg_dagster.storage.paths import lake_path, link_or_copy
from thess_agg_dagster.timestamp.freshness import current_bands


class BandsLostError(Exception):
    """Publishing would remove bands, and ``drop_bands`` is not set."""


class KeepError(Exception):
    """A band that should stay differs from what was published."""


def kept_bands(
    acquisition: Acquisition,
    lake: DataLake,
    params: TimestampsAggregationParams,
    made: Attempt | None,
    published: Published,
) -> dict[str, BandRecord]:
    """The records of published bands that stay; ``made`` is the latest success.

    Raises :class:`BandsLostError` if a band that is not in ``params`` cannot stay because its tiles or parameters have
    changed, unless ``drop_bands`` is set.
    """
    others = set(published.bands) - set(params.outputs)
    if not others and not params.ndvi:
        return {}
    records = {record.band: record for record in (made.bands if made else ())}
    current = set()
    if made is not None:
        current = current_bands(made, acquisition, lake, params, lake.fingerprints(acquisition.scene_ids))
    stay = current & others
    if params.ndvi and NDVI not in current and set(params.bands) <= current & set(published.bands):
        stay |= set(params.bands)
    if (lost := sorted(others - stay)) and not params.drop_bands:
        index = [f"ndvi to {records[band].dtype}" for band in lost if band in records and records[band].derived_from]
        merged = [band for band in lost if not (band in records and records[band].derived_from)]
        bands = [f"bands to {', '.join([*params.bands, *merged])}"] if merged else []
        raise BandsLostError(
            f"{', '.join(lost)} in {lake.timestamp_folder(acquisition.timestamp)} would be removed: not among the bands, and made from other tiles or "
            f"parameters, or not by this lake's runs; set {' and '.join([*bands, *index])}, or set drop_bands"
        )
    return {band: replace(records[band], output_path=str(published.mosaic(band))) for band in records if band in stay}


def keep_band(record: BandRecord, planned: BandRecord, staged: Path) -> tuple[BandRecord, Preview]:
    """Put a published mosaic next to those that are made again. Returns its record and a preview.

    ``planned`` is what it would be now. Raises :class:`KeepError` if its grid or dtype would differ or the file is not
    the recorded one, and ``OSError``.
    """
    old = lake_path(record.output_path)
    for name in ("crs", "bounds", "width", "height", "dtype", "nodata"):
        before, now = getattr(record, name), getattr(planned, name)
        if (list(before), list(now)) != (list(now), list(before)) if name == "bounds" else before != now:
            raise KeepError(
                f"{old}: has {name} {before}, with the other bands it would have {now}; include it in the bands"
            )
    link_or_copy(old, staged)
    if (found := str(checksum_of(staged))) != record.output_checksum:
        staged.unlink()  # it may be the published file itself, by another name
        raise KeepError(
            f"{old}: has {found}, but {record.output_checksum} was published; include {record.band} in the bands"
        )
    with gdal_env(), rasterio.open(staged, driver="GTiff") as mosaic:
        step = max(1, -(-max(mosaic.shape) // PREVIEW))
        preview = mosaic.read(1, out_shape=(-(-mosaic.height // step), -(-mosaic.width // step)), masked=True)
    return replace(record, output_path=planned.output_path, inputs=planned.inputs), np.ma.masked_invalid(preview)
