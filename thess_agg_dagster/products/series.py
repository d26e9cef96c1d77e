"""A series of mosaics as one array, for further processing: indices, composites, anomalies."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.periods import kind_of, span_of
from thess_agg_dagster.lake.time_serie import instant_of
from thess_agg_dagster.storage.gdal import gdal_name, tell_all_of_the_endpoint
from thess_agg_dagster.storage.paths import lake_path

if TYPE_CHECKING:
    import xarray as xr

# Blocks of the mosaics that are read at once: four of them a side.
_CHUNK = 2048


def open_series(
    data_lake: str | Path, band: str, *, masked: bool = True, chunk: int = _CHUNK, composites: str | None = None
) -> xr.DataArray:
    """All published mosaics of a band, lazily, as one array over time.

    Parameters
    ----------
    data_lake
        Root of the lake: a folder, or ``s3://bucket/prefix``.
    band
        For example ``B04``.
    masked
        Whether empty pixels become NaN, which makes integers floats (as ``rioxarray`` does); otherwise they keep the
        mosaics' nodata, and the array their dtype.
    chunk
        Pixels a side of what dask reads at once.
    composites
        ``month`` or ``quarter``: the composites of these instead, each at the first second of its period.

    Returns
    -------
    xarray.DataArray
        Dimensions ``(time, y, x)``: times in UTC, in order; ``y`` and ``x`` the pixels' centres in units of the CRS, which
        ``.rio.crs`` and ``.odc`` tell. Nothing is read before it is computed.

    Raises
    ------
    FileNotFoundError
        No mosaic of that band is published.
    ValueError
        The mosaics do not share one grid (and dtype; unmasked: and nodata), or two are of one instant; it names those.
        Nothing is resampled here.
    """
    import rioxarray
    import xarray as xr

    tell_all_of_the_endpoint()  # what is read lazily is opened by dask's threads, maybe again
    found = _published(DataLake(lake_path(data_lake)), band, composites)
    _check_one_grid(band, list(found.values()), masked)
    layers = []
    for _, path in found.values():
        layer = rioxarray.open_rasterio(gdal_name(path), chunks={"x": chunk, "y": chunk}, masked=masked)
        assert isinstance(layer, xr.DataArray)
        layers.append(layer.squeeze("band", drop=True))
    times = xr.DataArray(np.array(list(found), "datetime64[ns]"), dims="time", name="time")
    return xr.concat(layers, times, combine_attrs="drop_conflicts", join="exact").rename(band)


def _published(lake: DataLake, band: str, composites: str | None) -> dict[datetime, tuple[str, Path]]:
    """The timestamp (or period) and mosaic of each instant, in order of time."""
    lake = lake.composites if composites else lake
    found: dict[datetime, tuple[str, Path]] = {}
    for timestamp, published in lake.all_published():
        if f"{band}.tif" not in published.names:
            continue
        path = published.mosaic(band)
        try:
            if composites and kind_of(timestamp) != composites:
                continue
            start = span_of(timestamp)[0] if composites else instant_of(timestamp)
            instant = start.replace(tzinfo=None)  # as numpy wants it
        except (ValueError, OverflowError):
            continue  # a folder of another origin
        if instant in found:
            raise ValueError(
                f"{found[instant][1].parent} and {path.parent} are of the same instant; remove one of them"
            )
        found[instant] = timestamp, path
    if not found:
        raise FileNotFoundError(f"{lake.aggregated}: no mosaics of {band}; aggregate some first")
    return dict(sorted(found.items()))


def _check_one_grid(band: str, mosaics: Sequence[tuple[str, Path]], masked: bool) -> None:
    grids: dict[tuple[object, ...], list[str]] = {}
    for timestamp, path in mosaics:
        with rasterio.open(gdal_name(path)) as mosaic:
            key = (mosaic.crs, mosaic.transform, mosaic.shape, mosaic.dtypes, None if masked else str(mosaic.nodata))
            grids.setdefault(key, []).append(timestamp)
    if len(grids) > 1:
        most = max(grids.values(), key=len)
        others = [timestamp for keys in grids.values() if keys is not most for timestamp in keys]
        raise ValueError(
            f"{band} has {len(grids)} different grids (or dtypes), so its mosaics do not stack; aggregate them with grid=fixed. "
            f"Not on the grid of {most[0]}: {', '.join(others[:10])}{', ...' if len(others) > 10 else ''}"
        )
