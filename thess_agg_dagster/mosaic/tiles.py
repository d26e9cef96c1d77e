"""Tiles: one raster file of one scene and one band, as its header describes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from thess_agg_dagster.mosaic.choices import SUPPORTED_DTYPES, ProblemKind
from thess_agg_dagster.storage.errors import SystemFaultError, first_line, is_transient
from thess_agg_dagster.storage.gdal import gdal_env, gdal_name, may_misjudge
from thess_agg_dagster.storage.paths import File, NotAFileError, first_bytes, local_copy

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

# First bytes of a JPEG 2000 file (boxed, or a bare codestream), whatever its name.
_JPEG2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")

# A header can claim any size; no Sentinel-2 tile or mosaic comes near this (131 072 pixels squared).
MAX_PIXELS = 2**34
# What a codec unpacks at once sits in memory whole, three times over: a tile of 10980 x 10980 uint16 in one strip may.
MAX_BLOCK_BYTES = 2**28

# Pixels smaller than this part of their coordinates cannot be told apart by floats; larger ones (in metres or degrees)
# than half the Earth have no place on it.
_LEAST_PIXEL = 1e-10
_LARGEST_PIXEL = 2e7


@dataclass(frozen=True)
class Problem:
    """Why a mosaic cannot be made: what kind of fault, what to do about it, and in which file (if in one)."""

    kind: ProblemKind
    reason: str
    path: File | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class TileError(Exception):
    """A tile cannot be used. Carries the :class:`Problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class PlanError(Exception):
    """A mosaic cannot be planned. Carries every :class:`Problem` found, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Tile:
    """What the header of a tile says.

    ``geobox`` holds CRS, affine transform and shape ``(rows, cols)``; ``nodata_tag`` is ``None``
    where the file carries none; ``block_shape`` is ``(rows, cols)`` of what the codec decodes at once.
    ``scene_id`` is the scene it is of, where that is known.
    ``overview`` is the level of the overview (or JPEG 2000 resolution level) that this describes, ``None``: the tile
    at full resolution.
    """

    path: File
    geobox: GeoBox
    crs: CRS
    dtype: str
    nodata_tag: float | None
    driver: str
    block_shape: tuple[int, int]
    overview: int | None = None
    scene_id: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.geobox.shape
        return int(rows), int(cols)


def open_tile(path: File, driver: str, overview: int | None = None) -> DatasetReader:
    """Open a tile, or one of its overviews. Call inside :func:`gdal_env`.

    GDAL left to itself sniffs content, so a "tile" could be a VRT that names other files or URLs;
    naming the driver leaves it no choice.
    """
    options: dict[str, object] = {} if overview is None else {"overview_level": overview}
    opener = getattr(path, "opener", None)  # of one that GDAL must not ask for by itself
    if opener is not None:
        options |= {"opener": opener}
    return rasterio.open(gdal_name(path), driver=driver, **options)


def _driver(path: File) -> str | None:
    """The driver that a tile's first bytes ask for, GeoTIFF or JPEG 2000; ``None`` where it is empty."""
    signature = first_bytes(path, 12)
    if not signature:
        return None
    return "JP2OpenJPEG" if signature.startswith(_JPEG2000) else "GTiff"


def crs_name(crs: CRS) -> str:
    """``EPSG:32635`` where the CRS has a code, else its WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())


def inspect_tile(path: File) -> Tile:
    """Read a tile's header and validate it, without reading pixels.

    Raises
    ------
    TileError
        ``missing_input``: no such file. ``unreadable_input``: empty, not a GeoTIFF or JPEG 2000 file,
        more than one band, a mask, rotated or south-up, or absurdly large. ``unknown_crs``: no CRS, no
        transform, or a CRS that is not tied to the Earth. ``dtype_conflict``: a dtype no mosaic keeps exactly.
    SystemFaultError
        The system is at fault, not the file.
    """

    try:
        return _inspect(path)
    except TileError as error:
        if not may_misjudge(path) or error.problem.kind != "unreadable_input":
            raise
    try:
        with local_copy(path) as copy:
            return replace(_inspect(copy), path=path)
    except TileError as error:
        raise TileError(replace(error.problem, path=path)) from error


def _inspect(path: File) -> Tile:
    def refuse(kind: ProblemKind, why: str) -> TileError:
        return TileError(Problem(kind, why, path))

    with gdal_env():
        try:
            if (driver := _driver(path)) is None:
                raise refuse("unreadable_input", "the file is empty; download the tile again")
            with open_tile(path, driver) as source:
                _check(source, refuse)
                return Tile(
                    path=path,
                    geobox=GeoBox.from_rio(source),
                    crs=source.crs,
                    dtype=str(np.dtype(source.dtypes[0])),
                    nodata_tag=source.nodata,
                    driver=source.driver,
                    block_shape=source.block_shapes[0],
                )
        except FileNotFoundError as error:
            why = "no such file; download the tile again or take the scene off the list"
            raise refuse("missing_input", why) from error
        except NotAFileError as error:
            raise refuse("unreadable_input", error.why) from error
        except PermissionError as error:
            raise refuse("unreadable_input", "permission denied; correct the permissions") from error
        except (RasterioError, OSError) as error:
            if is_transient(error):
                raise SystemFaultError(path, error) from error
            raise refuse(
                "unreadable_input",
                f"is not a readable GeoTIFF or JPEG 2000 file ({first_line(error)}); download the tile again",
            ) from error


def _check(source: DatasetReader, refuse: Callable[[ProblemKind, str], TileError]) -> None:
    """Raise what a header says against using its tile."""
    if source.count != 1:
        raise refuse("unreadable_input", f"has {source.count} bands; a tile holds exactly one")
    if source.crs is None or not (source.crs.is_geographic or source.crs.is_projected):
        what = "has no CRS" if source.crs is None else "has a CRS that is not tied to the Earth"
        raise refuse("unknown_crs", f"{what}; assign the tile's UTM zone, e.g. with `rio edit-info --crs`")
    transform = source.transform
    if transform.is_identity or not all(map(math.isfinite, transform)):
        raise refuse("unknown_crs", "has no geotransform; download the tile again")
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise refuse("unreadable_input", "is rotated or not north-up; warp it north-up with `gdalwarp`")
    size, place = (transform.a, -transform.e), (transform.c, transform.f)
    if min(size) < _LEAST_PIXEL * max(1.0, *map(abs, place)) or max(size) > _LARGEST_PIXEL:
        where = f"pixels of {size[0]:g} x {size[1]:g} at {place[0]:g}, {place[1]:g}"
        raise refuse("unreadable_input", f"claims {where}; not a tile, download it again")
    if source.dtypes[0] not in SUPPORTED_DTYPES:
        allowed = ", ".join(SUPPORTED_DTYPES)
        raise refuse("dtype_conflict", f"has dtype {source.dtypes[0]}; supported are {allowed}")
    if source.width * source.height > MAX_PIXELS:
        raise refuse("unreadable_input", f"claims {source.width} x {source.height} pixels; not a tile")
    block = math.prod(source.block_shapes[0]) * np.dtype(source.dtypes[0]).itemsize
    if block > MAX_BLOCK_BYTES:
        much = f"{block / 1e6:.0f} MB, more than the {MAX_BLOCK_BYTES / 1e6:.0f} that are read at once"
        raise refuse(
            "unreadable_input",
            f"is packed in pieces of {much}; rewrite it with `gdal_translate -co TILED=YES`",
        )
    if MaskFlags.per_dataset in source.mask_flag_enums[0]:
        how = "write it into the pixels, e.g. with `gdalwarp -dstnodata 0`"
        raise refuse("unreadable_input", f"has an internal mask, which is not supported; {how}")


def overview_of(tile: Tile, factor: float) -> Tile:
    """The tile's coarsest overview (or JPEG 2000 resolution level) that is reduced by at most ``factor``, or the tile
    itself.

    An overview of which ``factor`` is a whole multiple is preferred, since the remaining step is then a mean of whole
    pixels.
    """
    # A factor between two CRSs is not quite a whole number.
    with gdal_env(), open_tile(tile.path, tile.driver) as source:
        found = [(size, level) for level, size in enumerate(source.overviews(1)) if size <= factor * 1.01]
    if not found:
        return tile
    _, level = max(found, key=lambda each: (abs(factor / each[0] - round(factor / each[0])) < 0.01, each))
    with gdal_env(), open_tile(tile.path, tile.driver, level) as source:
        return replace(tile, geobox=GeoBox.from_rio(source), block_shape=source.block_shapes[0], overview=level)
