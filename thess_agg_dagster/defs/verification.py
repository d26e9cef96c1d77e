"""The check of published files against their records, down to the last byte."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import dagster as dg

from thess_agg_dagster.audit.outcome import BandRecord, RecordedAttempt
from thess_agg_dagster.defs.checks import result_of
from thess_agg_dagster.lake.checksums import checksum_of
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import is_beside, named_by, outputs_of, read_manifest
from thess_agg_dagster.storage.paths import as_os_errors


def check_published(
    published: Mapping[str, RecordedAttempt], composites: Mapping[str, RecordedAttempt], lake: DataLake
) -> dg.AssetCheckResult:
    """Compare every published mosaic and composite, and what describes their pixels, with what was recorded, down to the last
    byte."""
    faults = []
    for what, recorded, shelf in (("timestamp", published, lake), ("period", composites, lake.composites)):
        faults += [f"{fault}; run the {what} again, with --force" for fault in _changes(recorded, shelf)]
    return result_of("unchanged", faults)


class _Expected(NamedTuple):
    """A published file: its size and checksum, and the record of its band, if it is one."""

    path: Path
    bytes: int | None
    checksum: str
    band: BandRecord | None = None


def _changes(recorded: Mapping[str, RecordedAttempt], lake: DataLake) -> Iterator[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        expected = pool.map(lambda key: list(_expected(recorded[key], lake)), recorded)
        files = [(key, each) for key, found in zip(recorded, expected, strict=True) for each in found]
        changes = pool.map(lambda file: _changed(*file[1]), files)
        for (key, file), fault in zip(files, changes, strict=True):
            if fault:
                yield f"{key}: {file.path}: {fault}"


def _expected(found: RecordedAttempt, lake: DataLake) -> Iterator[_Expected]:
    """The files of a success: its bands, as they were recorded, and what describes their pixels, as its manifest has it."""
    attempt = found.attempt
    manifest = read_manifest(lake.manifest(attempt.timestamp))
    folder = named_by(manifest, lake.timestamp_folder(attempt.timestamp)).folder
    for band in attempt.bands:
        yield _Expected(folder / f"{band.band}.tif", band.bytes, band.output_checksum, band)
    for entry in outputs_of(manifest):
        path = folder / str(entry.get("file", "")).rpartition("/")[2]
        if is_beside(path.stem):
            yield _Expected(path, entry.get("bytes"), str(entry.get("checksum", "")))


def _changed(path: Path, size: int | None, checksum: str, band: BandRecord | None) -> str:
    """How a published file differs from what is expected; empty where it does not."""
    import rasterio

    from thess_agg_dagster.mosaic.tiles import crs_name
    from thess_agg_dagster.storage.gdal import gdal_env, gdal_name

    try:
        with as_os_errors(path):
            found = path.stat().st_size
    except OSError as error:
        return f"cannot be found ({error.strerror})"
    if found != size:
        return f"has {found} bytes, but {size} were published"
    try:
        with gdal_env(), rasterio.open(gdal_name(path), driver="GTiff") as mosaic:
            crs = crs_name(mosaic.crs) if mosaic.crs else "no CRS"
            header = (mosaic.width, mosaic.height, mosaic.dtypes[0], crs)
    except (rasterio.errors.RasterioError, OSError) as error:
        return f"cannot be opened ({error})"
    if checksum and (now := str(checksum_of(path))) != checksum:
        return f"has {now}, but {checksum} was published: its bytes have changed"
    recorded = header if band is None else (band.width, band.height, band.dtype, band.crs)
    return "" if header == recorded else f"is {header}, but {recorded} was published"
