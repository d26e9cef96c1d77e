"""Downloading tiles again that are missing, unreadable or differ from what was published."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from thess_agg_dagster.lake.catalogue import item_asset, manifest_value, read_item
from thess_agg_dagster.lake.checksums import ChecksumError, checksum_of, expected_checksum
from thess_agg_dagster.lake.download import Downloader, Progress
from thess_agg_dagster.lake.download_policy import DownloadError, DownloadPolicy, shown
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import keep_aside, staged_file
from thess_agg_dagster.mosaic.bands import is_scl
from thess_agg_dagster.mosaic.blocks import Pixels, TileReader
from thess_agg_dagster.mosaic.grid import whole
from thess_agg_dagster.mosaic.sentinel2 import SENTINEL_2
from thess_agg_dagster.mosaic.tiles import Tile, TileError, inspect_tile
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.errors import SystemFaultError
from thess_agg_dagster.storage.gdal import gdal_env
from thess_agg_dagster.storage.paths import File, read_if_there

# A server that sends something else is asked so often.
_TRIES = 5

# Band names as they stand in the addresses of files.
_BANDS = re.compile(rf"(?<![A-Z0-9])({'|'.join(SENTINEL_2.bands)})(?![A-Z0-9])")


@dataclass(frozen=True)
class Refetched:
    """The record of a download, kept next to the tile: why, from where and when it was downloaded, and what arrived."""

    why: str
    source: str
    at: str
    bytes: int
    checksum: str

    def __str__(self) -> str:
        return f"{self.why}; from {self.source} at {self.at}"


def download_policy(
    params: TimestampsAggregationParams, environment: Mapping[str, str] = os.environ
) -> DownloadPolicy | None:
    """From where tiles may be downloaded, or ``None`` if downloads are off.

    User and password come only from the environment: ours, or else those used by the Copernicus Data Space's own tools.
    """
    if not params.download_from:
        return None
    user, password, code = environment.get("THESS_DOWNLOAD_USER"), environment.get("THESS_DOWNLOAD_PASSWORD"), None
    if not (user or password):
        user, password, code = map(environment.get, ("CDSE_USERNAME", "CDSE_PASSWORD", "CDSE_TOTP"))
    return DownloadPolicy(
        allowed=tuple(params.download_from),
        token_url=params.download_token_url,
        client_id=params.download_client_id,
        user=user,
        password=password,
        one_time_code=code,
        connections=params.download_connections,
    )


def refetch(
    tiles: Sequence[tuple[str, str]],
    lake: DataLake,
    downloader: Downloader,
    *,
    deep: bool = False,
    progress: Progress = lambda _: None,
    done: Callable[[], None] = lambda: None,
) -> dict[File, Refetched | str]:
    """Download broken tiles (scene id, band) again; ``deep`` decodes all pixels to find out which are broken.

    Returns, for the path of each broken tile, a record, or the reason why it could not be downloaded. The broken file
    is kept as ``<band>.tif.broken-<time>``; its replacement is verified and appears in one step.
    """

    def look(tile: tuple[str, str]) -> tuple[File, Refetched | str] | None:
        path = lake.tile(*tile)
        try:
            why = _fault(lake, *tile, deep)
            return None if why is None else (path, _fetched(lake, *tile, why, downloader, progress))
        except DownloadError as error:
            return path, str(error)
        except ChecksumError as error:
            return path, str(error)
        except Exception as error:  # what a catalogue says of one tile must not cost the others
            return path, f"it cannot be replaced ({error})"
        finally:
            done()

    with ThreadPoolExecutor(downloader.policy.connections) as pool:
        return dict(found for found in pool.map(look, dict.fromkeys(tiles)) if found)


def refetched(path: Path) -> Refetched | None:
    """The record of an earlier download, as long as the tile is still that file."""
    try:
        record = Refetched(**json.loads(read_if_there(_record(path)) or b"null"))
        return record if record.bytes == path.stat().st_size else None
    except (OSError, ValueError, TypeError):
        return None


def _fault(lake: DataLake, scene_id: str, band: str, deep: bool) -> str | None:
    """Why a tile has to be fetched; ``None``: it need not."""
    path = lake.tile(scene_id, band)
    if lake.leads_outside(path) or lake.source(scene_id, band) != path:
        return None  # somebody else's file
    if not path.exists():
        return "was missing"
    try:
        tile = inspect_tile(path)
        if deep:
            for _ in _decoded(tile):
                pass
    except TileError as error:
        return error.problem.reason.split(";")[0]
    expected = expected_checksum(lake, scene_id, band)
    if expected is not None and checksum_of(path, expected[0].algorithm) != expected[0]:
        return f"did not match the published checksum ({expected[0]})"
    return None


def _fetched(
    lake: DataLake, scene_id: str, band: str, why: str, downloader: Downloader, progress: Progress
) -> Refetched:
    path = lake.tile(scene_id, band)
    sources = [href for href in hrefs(lake, scene_id, band) if downloader.policy.allows(href)]
    if not sources:
        raise DownloadError(
            f"no allowed address in {lake.assets_manifest} (href_{band.lower()}) or {lake.scene_item(scene_id)}"
        )
    with staged_file(path) as part:
        href = _first_good(sources, part, lake, (scene_id, band), downloader, progress)
        now = datetime.now(UTC)
        record = Refetched(
            why, shown(href), now.isoformat(timespec="seconds"), part.stat().st_size, str(checksum_of(part))
        )
        keep_aside(path, f"{path.name}.broken-{now:%Y%m%dT%H%M%S%f}")
    with staged_file(_record(path)) as file:
        file.write_text(json.dumps(asdict(record), allow_nan=False) + "\n")
    return record


def _first_good(
    sources: Sequence[str],
    part: Path,
    lake: DataLake,
    tile: tuple[str, str],
    downloader: Downloader,
    progress: Progress,
) -> str:
    """Fetch a tile from the first source that has it, and verify it. Raises what the last one failed for."""
    failure = DownloadError("there is no source")
    for href in sources:
        for _ in range(_TRIES):
            try:
                downloader.fetch(href, part, progress)
                _verify(part, lake, *tile, href)
                return href
            except _OtherError as error:  # a page for everyone who comes too often, another's file: once more
                failure = error
            except DownloadError as error:
                failure = error
                break
    raise failure


class _OtherError(DownloadError):
    """The downloaded file is not the tile."""


def _verify(part: Path, lake: DataLake, scene_id: str, band: str, href: str) -> None:
    """Raise :class:`_OtherError` unless a file is the tile that was asked for, whole."""

    def refuse(why: str) -> DownloadError:
        return _OtherError(f"{shown(href)}: the download {why}")

    named = _BANDS.findall(urlsplit(href).path.rpartition("/")[2].upper())
    if named and band not in named and _BANDS.fullmatch(band):
        raise refuse(f"is {named[-1]} according to its name, not {band}")
    size = item_asset(read_item(lake.scene_item(scene_id), lake.folders), band).get("file:size")
    if isinstance(size, int) and part.stat().st_size != size:
        raise refuse(f"has {part.stat().st_size} bytes, but {size} were published")
    expected = expected_checksum(lake, scene_id, band)
    if expected is not None and (found := checksum_of(part, expected[0].algorithm)) != expected[0]:
        raise refuse(f"has {found}, but {expected[0]} was published (in {expected[1]})")
    try:
        tile = inspect_tile(part)
        for pixels in _decoded(tile):
            if is_scl(band) and not np.isin(pixels, list(SENTINEL_2.classes)).all():
                raise refuse("has values that are not classes of SCL")
    except TileError as error:
        start = part.read_bytes()[:200].lstrip().lower()
        page = " (it is a web page)" if start.startswith((b"<!doctype", b"<html")) else ""
        raise refuse(f"{error.problem.reason.split(';')[0]}{page}") from error
    zone = re.search(r"_T(\d\d)([C-X])[A-Z]{2}_", scene_id)
    if zone and tile.crs.to_epsg() != (expected_epsg := (32600 if zone[2] >= "N" else 32700) + int(zone[1])):
        raise refuse(f"is in EPSG:{tile.crs.to_epsg()}, the scene's is EPSG:{expected_epsg}")
    for other in _others(lake, scene_id, band):
        bounds = np.subtract(tile.geobox.boundingbox.bbox, other.geobox.boundingbox.bbox)
        if tile.geobox.crs == other.geobox.crs and np.abs(bounds).max() > abs(other.geobox.resolution.x):
            raise refuse(f"is not in the same place as {other.path.name} of the scene")


def _others(lake: DataLake, scene_id: str, band: str) -> Iterable[Tile]:
    """The other tiles of a scene that can be read."""
    for path in sorted(lake.tile(scene_id, band).parent.glob(f"*{lake.tile(scene_id, band).suffix}")):
        if path.stem != band:
            try:
                yield inspect_tile(path)
            except (TileError, SystemFaultError):
                continue


def _decoded(tile: Tile) -> Iterator[Pixels]:
    """All pixels of a tile, chunk by chunk. Raises :class:`TileError`."""
    reader = TileReader(tile)
    try:
        with gdal_env():
            for chunk in reader.chunks(whole(tile.geobox)):
                yield reader.decode(chunk)
    finally:
        reader.close()


def hrefs(lake: DataLake, scene_id: str, band: str) -> list[str]:
    """The addresses of a tile: first from the asset manifest, then from the scene's STAC item."""
    found = [manifest_value(lake, "href", scene_id, band)]
    asset = item_asset(read_item(lake.scene_item(scene_id), lake.folders), band)
    found.append(str(asset.get("href", "")))
    alternates = asset.get("alternate")
    if isinstance(alternates, dict):
        found += [str(each.get("href", "")) for each in alternates.values() if isinstance(each, dict)]
    return list(dict.fromkeys(href for href in found if urlsplit(href).scheme))


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.fetched.json")
