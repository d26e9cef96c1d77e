"""Inspections: what the headers of one band's tiles say, and all that is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from odc.geo.geobox import GeoBox

from thess_agg_dagster.mosaic.bands import role_of
from thess_agg_dagster.mosaic.choices import NoteKind
from thess_agg_dagster.mosaic.grid import footprint_on, whole
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.rules import fits, resolve_empty_value
from thess_agg_dagster.mosaic.tiles import PlanError, Problem, Tile, TileError, inspect_tile
from thess_agg_dagster.storage.paths import File


@dataclass(frozen=True)
class Source:
    """The input for one layer: a tile, the SCL tile of its scene, the offset of its reflectance bands, and the scene."""

    path: File
    scl: File | None = None
    offset: int | None = 0
    scene_id: str = ""


@dataclass(frozen=True)
class Note:
    """A difference between tiles that was reconciled: its kind for programs, its text for people."""

    kind: NoteKind
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Inspected:
    """The tiles of one band, as described by their headers."""

    tiles: tuple[Tile, ...]
    empty_values: tuple[float, ...]
    scl: tuple[Tile | None, ...]
    offsets: tuple[int, ...]
    notes: tuple[Note, ...]

    @property
    def geoboxes(self) -> list[GeoBox]:
        return [tile.geobox for tile in self.tiles]


def inspect(sources: Sequence[Source], band: str, options: MosaicOptions) -> Inspected:
    """Inspect the tiles of one band, and the SCL that masks them. Raises :class:`PlanError` with all problems found."""
    tiles: list[Tile] = []
    empty_values: list[float] = []
    scl: list[Tile | None] = []
    problems: list[Problem] = []
    notes: list[Note] = []
    masked = bool(options.mask_scl_classes) and role_of(band) != "classes"
    harmonized = options.harmonize and role_of(band) == "reflectance"
    for source in sources:
        try:
            tile = replace(inspect_tile(source.path), scene_id=source.scene_id)
        except TileError as error:
            problems.append(error.problem)
            continue
        tiles.append(tile)
        try:
            empty_values.append(resolve_empty_value(tile.dtype, tile.nodata_tag))
        except ValueError as error:
            problems.append(Problem("dtype_conflict", str(error), source.path))
        if harmonized and source.offset is None:
            why = (
                "its processing baseline is unknown (the scene id has no Nxxxx), so its offset cannot be removed; "
                "use the full scene id, or turn harmonize off"
            )
            problems.append(Problem("unknown_baseline", why, source.path))
        if harmonized and source.offset and (tile.dtype.startswith("float") or not fits(source.offset, tile.dtype)):
            why = (
                f"has dtype {tile.dtype}; the offset of {source.offset} applies to Sentinel-2's digital numbers, which are "
                "uint16; turn harmonize off"
            )
            problems.append(Problem("dtype_conflict", why, source.path))
        scl.append(None)
        if masked and source.scl is not None:
            try:
                scl[-1] = _inspect_scl(source.scl, tile)
            except TileError as error:
                if options.missing_scl == "fail":
                    problems.append(error.problem)
                notes.append(
                    Note("unmasked", f"{source.scene_id or source.path} is not masked: {error.problem.reason}")
                )
    if problems or not tiles:
        raise PlanError(problems or [Problem("missing_input", "no tiles are listed")])
    offsets = [source.offset or 0 if harmonized else 0 for source in sources]
    carried = sorted({source.offset for source in sources if source.offset is not None})
    if role_of(band) == "reflectance" and not options.harmonize and len(carried) > 1:
        mixed = f"tiles with and without the offset of {carried[-1]} (processing baseline 04.00) are mixed"
        notes.append(Note("mixed_baselines", f"{mixed}; harmonize removes it"))
    return Inspected(tuple(tiles), tuple(empty_values), tuple(scl), tuple(offsets), tuple(notes))


def _inspect_scl(path: File, tile: Tile) -> Tile:
    """The SCL that masks a tile. Raises :class:`TileError` where it does not hold classes for all of it."""
    scl = inspect_tile(path)
    if scl.dtype not in ("uint8", "int8", "uint16", "int16"):
        raise TileError(
            Problem("dtype_conflict", f"has dtype {scl.dtype}; the classes of SCL are small integers", path)
        )
    why = f"does not cover {tile.path}, so it cannot mask it; download both again"
    try:
        needed = footprint_on(scl.geobox, tile.geobox)
    except ValueError as error:
        raise TileError(Problem("unreadable_input", why, path)) from error
    if needed.overlap(whole(scl.geobox)) != needed:
        raise TileError(Problem("unreadable_input", why, path))
    return scl
