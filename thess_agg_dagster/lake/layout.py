"""The path of everything in a DATA_LAKE.

In a folder, a timestamp's files are those in its own folder, which is replaced as a whole. A bucket has no such step:
each run stores its files under a name of its own, ``<timestamp>/<run>/<band>.tif``, and ``<timestamp>/manifest.json``
says which run's files are valid. (0.1.0 stored them next to the manifest, where they are still found.)

Composites lie in ``data_raw/composites/<period>`` in the same way: ``lake.composites`` is the lake with periods in place of
timestamps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

from thess_agg_dagster.lake.published import ITEM, MANIFEST, Published, published_in
from thess_agg_dagster.lake.run_names import is_run, run_name
from thess_agg_dagster.lake.tile_template import TILES, folder_and_suffix, template_and_remote
from thess_agg_dagster.storage.conditional import version_of
from thess_agg_dagster.storage.fingerprints import Fingerprints, fingerprints_below
from thess_agg_dagster.storage.paths import (
    REQUESTS,
    File,
    files_below,
    is_remote,
    lake_path,
    leads_out_of,
    names_in,
)

#: The audit tables by short name.
AUDIT_TABLES: Mapping[str, str] = MappingProxyType(
    {
        "status": "timestamps_aggregation_status.csv",
        "summary": "timestamps_aggregation_summary.csv",
        "band_report": "timestamps_aggregation_band_report.csv",
        "composites": "composites_status.csv",
    }
)

COLLECTION = "collection.json"

# GDAL knows a tile index by this end of its name.
_INDEX_BEGINS, _INDEX_ENDS = "series_", ".gti.gpkg"


def tile_index_name(what: str) -> str:
    """The name of a tile index of, say, a band."""
    return f"{_INDEX_BEGINS}{what}{_INDEX_ENDS}"


# Where the mosaics of timestamps lie, and the composites of periods.
_SHELVES = _MOSAICS, _COMPOSITES = "aggregated", "composites"

# A scene or band is one name in a path: no separators, no leading dot, ASCII only (no look-alikes), no surprises.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)


@lru_cache  # a scene is asked about for each of its tiles
def is_plain_name(text: str) -> bool:
    """Whether ``text`` can be part of a path as a single, harmless name."""
    return _PLAIN_NAME.fullmatch(text) is not None


def _plain(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError(f"{name[:80]!r} is not a plain name")
    return name


def folder_name(timestamp: str) -> str:
    """The name of the folder with a timestamp's mosaics: the partition key with ``:`` and ``/`` turned into ``_``."""
    return timestamp.replace(":", "_").replace("/", "_")


def name_in(root: Path, path: File | str) -> str:
    """The name of a file in records next to the mosaics: its path below the root of the lake, or the full path if it is
    elsewhere."""
    return str(path).removeprefix(f"{root}/")


def path_in(root: Path, name: str) -> Path:
    """The file with a name from :func:`name_in`."""
    if "://" in name or name.startswith(("/", "~")):
        return lake_path(name)
    return root / name if name else root


def scene_of(tile: File) -> str:
    """The scene id in the path of a tile."""
    return tile.parent.name


@dataclass(frozen=True)
class DataLake:
    """The layout of one lake, in a folder or a bucket.

    ``tables`` overrides the tables folder (default ``<root>/tables``), ``tiles`` is the template of tile paths. Each
    may be in another place than the mosaics.
    """

    root: Path
    tables: Path | None = None
    tiles: str = TILES
    #: Whether a tile that is not there is read at its address.
    remote: bool = False
    #: What is published: the name of its folder in ``data_raw``.
    shelf: str = _MOSAICS

    @classmethod
    def at(cls, root: str, tables: str | None = None, tiles: str | None = None) -> DataLake:
        """The lake in a folder, or at an address such as ``s3://bucket/prefix``. ``tiles`` is a template, ``remote``,
        or both, separated by a comma. Raises :class:`TemplateError`."""
        template, remote = template_and_remote(tiles)
        lake = cls(lake_path(root), lake_path(tables) if tables else None, template, remote)
        _ = lake.tiles_folder
        return lake

    @cached_property
    def tiles_folder(self) -> Path:
        """The folder that contains the folders of the scenes."""
        folder, _ = folder_and_suffix(self.tiles)
        return path_in(self.root, folder)

    @property
    def tables_folder(self) -> Path:
        return self.tables or self.root / "tables"

    @property
    def time_serie(self) -> Path:
        return self.tables_folder / "time_serie.csv"

    @property
    def composites(self) -> DataLake:
        """The same lake, where what is published are composites: each method takes a period for a timestamp."""
        return replace(self, shelf=_COMPOSITES)

    @property
    def aggregated(self) -> Path:
        """The folder of what is published, timestamp by timestamp."""
        return self.root / "data_raw" / self.shelf

    @property
    def staging(self) -> Path:
        """Unfinished timestamps; on the same file system as the finished ones, hidden from ``aggregated/*``."""
        return self.aggregated / ".staging"

    def audit_table(self, name: str) -> Path:
        return self.tables_folder / AUDIT_TABLES[name]

    @property
    def glance(self) -> Path:
        """The picture of the whole series."""
        return self.tables_folder / "timestamps_aggregation.png"

    @property
    def told(self) -> Path:
        """What receivers of digests have been told."""
        return self.tables_folder / "timestamps_aggregation_told.json"

    @property
    def metrics(self) -> Path:
        """The tables' numbers for Prometheus."""
        return self.tables_folder / "timestamps_aggregation.prom"

    @cached_property
    def assets_manifest(self) -> Path:
        """The addresses of the tiles, and their checksums: a table that a catalogue step may write."""
        return self.tables_folder / "assets_manifest_selected.csv"

    @property
    def catalogue_scenes(self) -> Path:
        """Every scene found by a catalogue step, and why it was chosen or left out."""
        return self.tables_folder / "catalogue_scenes.csv"

    def tile(self, scene_id: str, band: str) -> Path:
        """The raw tile of a scene and band. Raises ``ValueError`` unless both are plain names."""
        return self.tiles_folder / self._in_tiles_folder(scene_id, band)

    def tile_path(self, scene_id: str, band: str) -> str:
        """The same as text, for who asks for the tiles of ten thousand timestamps."""
        return f"{self._tiles_folder_path}/{self._in_tiles_folder(scene_id, band)}"

    def _in_tiles_folder(self, scene_id: str, band: str) -> str:
        return f"{_plain(scene_id)}/{_plain(band)}{self._tile_suffix}"

    @cached_property
    def _tile_suffix(self) -> str:
        return folder_and_suffix(self.tiles)[1]

    @cached_property
    def _tiles_folder_path(self) -> str:
        return str(self.tiles_folder)

    def source(self, scene_id: str, band: str) -> File:
        """Where a raw tile is read: at its place, see :meth:`tile`."""
        return self.tile(scene_id, band)

    def fingerprints(self, scene_ids: Iterable[str] | None = None) -> Fingerprints:
        """The fingerprints that the tiles and STAC items of some scenes (or of all, and the mosaics) have now."""
        if scene_ids is None:
            return fingerprints_below([self.tiles_folder, self._items, self.aggregated])
        return fingerprints_below([folder for each in scene_ids for folder in self._of_scene(each)])

    def published_fingerprints(self) -> Fingerprints:
        """The same for what is published."""
        return fingerprints_below([self.aggregated])

    def _of_scene(self, scene_id: str) -> tuple[Path, Path]:
        return self.tile(scene_id, "item").parent, self.scene_item(scene_id)

    def scene_item(self, scene_id: str) -> Path:
        """The STAC item of a scene, if a download step wrote one. Raises ``ValueError`` unless it is a plain name."""
        return self._items / f"{_plain(scene_id)}.json"

    def scene_item_path(self, scene_id: str) -> str:
        """The same as text, as :meth:`tile_path`."""
        return f"{self._items_path}/{_plain(scene_id)}.json"

    @cached_property
    def _items_path(self) -> str:
        return str(self._items)

    @cached_property
    def _items(self) -> Path:
        return self.root / "cache" / "s2" / "stac_items"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that contain a lake's files, following links. (``cache`` as a whole may be elsewhere, as may the
        tiles if the template says so.)"""
        return self.root, self.root / "cache", *([self.tiles_folder] if self.tiles != TILES else [])

    def leads_outside(self, path: File) -> bool:
        """Whether a tile's path is a symbolic link out of the lake."""
        return leads_out_of(path, self.folders)

    def timestamp_folder(self, timestamp: str) -> Path:
        """The folder of a timestamp's mosaics: see :func:`folder_name`."""
        return self.aggregated / folder_name(timestamp)

    def timestamp_of(self, folder: Path) -> str:
        """The timestamp, in ISO 8601, of a folder with mosaics. (Listed timestamps contain neither ``/`` nor ``_``.)"""
        return folder.name.replace("_", ":")

    def published(self, timestamp: str) -> Published:
        """Which files belong to a timestamp now; in a bucket, one read of its manifest. Raises ``OSError``."""
        return published_in(self.timestamp_folder(timestamp))

    def version(self, timestamp: str) -> str | None:
        """The version of a timestamp's manifest in a bucket; ``None`` if there is none, and in a folder."""
        return version_of(self.manifest(timestamp))

    def new_folder(self, timestamp: str) -> Path:
        """The folder for the files of a timestamp in a run that begins now; in a bucket, no other run uses it."""
        folder = self.timestamp_folder(timestamp)
        return folder / run_name() if is_remote(folder) else folder

    def folder_of(self, timestamp: str, recorded: str) -> Path:
        """The folder with the files of the run that recorded this output folder, whether they still exist or not."""
        folder, name = self.timestamp_folder(timestamp), recorded.rpartition("/")[2]
        return folder / name if is_run(name) else folder

    def mosaic(self, timestamp: str, band: str) -> Path:
        """One published mosaic; for several files of a timestamp, ask :meth:`published` once."""
        return self.published(timestamp).mosaic(band)

    @property
    def collection(self) -> Path:
        """The STAC collection of all published timestamps."""
        return self.aggregated / COLLECTION

    @property
    def series_parquet(self) -> Path:
        """The same items as a table."""
        return self.aggregated / "series.parquet"

    def tile_indices(self) -> list[Path]:
        """The tile indices of all bands that are there. Raises ``OSError``."""
        names = names_in(self.aggregated)
        return [
            self.aggregated / name for name in names if name.startswith(_INDEX_BEGINS) and name.endswith(_INDEX_ENDS)
        ]

    def manifest(self, timestamp: str) -> Path:
        """The inputs of a timestamp's mosaics, and all checksums."""
        return self.timestamp_folder(timestamp) / MANIFEST

    def here(self, recorded: str) -> str:
        """The path in this lake for a recorded path, which may date from when the lake was elsewhere."""
        if recorded.startswith(("https://", "http://")):
            return recorded
        for folder, below in self._places:
            _, found, rest = recorded.rpartition(below)
            if found:
                return f"{folder}/{rest}"
        return recorded

    @cached_property
    def _places(self) -> Sequence[tuple[str, str]]:
        """The folders within this lake that tiles and mosaics lie in, and how the paths of those end, wherever the lake is."""
        folders = (self.tiles_folder, *(self.root / "data_raw" / name for name in _SHELVES))
        named = [(str(folder), name_in(self.root, folder)) for folder in folders]
        return [(folder, f"/{below}/") for folder, below in named if below != folder]

    def manifests(self) -> list[Path]:
        """The manifests of all published timestamps."""
        return files_below(self.aggregated, MANIFEST)

    def items(self) -> list[Path]:
        """The STAC items of all timestamps that have one."""
        if not is_remote(self.aggregated):
            return files_below(self.aggregated, ITEM)
        found = files_below(self.aggregated, ITEM, depths=(1, 2))
        valid = {each.folder for each in self._published_below({self._below_aggregated(path) for path in found})}
        return [path for path in found if path.parent in valid]

    def all_published(self) -> list[tuple[str, Published]]:
        """The files of each published timestamp (see :meth:`timestamp_of`). Raises ``OSError``."""
        folders = [path.parent for path in self.manifests() if not path.parent.name.startswith(".")]
        return list(zip(map(self.timestamp_of, folders), self._published_below(folders), strict=True))

    def _below_aggregated(self, path: Path) -> Path:
        return self.aggregated / path.relative_to(self.aggregated).parts[0]

    def _published_below(self, folders: Iterable[Path]) -> Iterator[Published]:
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(published_in, folders)
