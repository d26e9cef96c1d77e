"""The content of a lake's list, and the rows that a catalogue step added to it earlier."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime

from thess_agg_dagster.catalogue.choose import Seen
from thess_agg_dagster.catalogue.overpass import Overpass
from thess_agg_dagster.catalogue.scene import OverpassKey, Scene, UnusableItemError, read_product_name
from thess_agg_dagster.catalogue.tables import Table
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import TimeSerieError, instant_of, read_time_serie, split_scene_ids

#: The columns of ``time_serie.csv`` that are written; others stay.
COLUMNS = (
    "anchor_date",
    "acq_datetime",
    "tile_ids",
    "tiles_count",
    "cloud_score",
    "coverage_frac",
    "coverage_area",
)
#: Those of the table of all scenes found.
SCENE_COLUMNS = (
    "scene_id",
    "acq_datetime",
    "tile",
    "processing_baseline",
    "cloud_cover",
    "timestamp_coverage_frac",
    "timestamp_cloud_score",
    "taken",
    "reason",
)

#: Why a scene is left out that a person did not want. Read back later: it stays so.
REMOVED = "was taken off time_serie.csv by hand"


class Listed:
    """The rows of ``time_serie.csv`` by overpass, recognized by the names of their scenes, otherwise by the instant."""

    def __init__(self, lake: DataLake) -> None:
        self.table = Table(lake.time_serie, COLUMNS)
        self.scenes = Table(lake.catalogue_scenes, SCENE_COLUMNS)
        self._by_overpass: dict[OverpassKey, list[str]] = {}
        self._by_instant: dict[datetime, list[str]] = {}
        for row in self.table.rows:
            with suppress(ValueError, OverflowError):
                self._by_instant.setdefault(instant_of(self.timestamp(row)), row)
            for name in self.scene_ids(row):
                if product := _product(name):
                    self._by_overpass.setdefault(product[0], row)
        # The tiles of each overpass that a catalogue step once put into the list.
        self._taken_before: dict[OverpassKey, set[str]] = {}
        for row in self.scenes.rows:
            product = _product(self.scenes.get(row, "scene_id"))
            if product and (self.scenes.get(row, "taken") == "True" or self.scenes.get(row, "reason") == REMOVED):
                self._taken_before.setdefault(product[0], set()).add(product[1])

    @classmethod
    def read(cls, lake: DataLake) -> Listed:
        """Raises :class:`TimeSerieError` for a list that cannot be used, which then is not touched."""
        try:
            listed = cls(lake)
        except (UnicodeDecodeError, csv.Error) as error:
            raise TimeSerieError(f"{lake.tables_folder}: a table cannot be read as UTF-8 CSV ({error})") from error
        if listed.table.is_there:
            read_time_serie(lake.time_serie)
        return listed

    def timestamp(self, row: Sequence[str]) -> str:
        return self.table.get(row, "acq_datetime")

    def scene_ids(self, row: Sequence[str]) -> list[str]:
        return split_scene_ids(self.table.get(row, "tile_ids"))

    def has(self, overpass: Overpass) -> bool:
        return overpass.key in self._by_overpass or overpass.acquired in self._by_instant

    def row_of(self, overpass: Overpass) -> list[str]:
        found = self._by_overpass.get(overpass.key)
        return found if found is not None else self._by_instant[overpass.acquired]

    def was_removed(self, scene: Scene) -> bool:
        """Whether a catalogue step once listed the tile for this overpass, and it has been removed since."""
        if not self.table.is_there:
            return False  # the whole list is gone: that says nothing about single tiles
        listed = self._tiles(self._by_overpass.get(scene.overpass, []))
        return scene.tile in self._taken_before.get(scene.overpass, ()) and scene.tile not in listed

    def _tiles(self, row: Sequence[str]) -> set[str]:
        return {product[1] for name in self.scene_ids(row) if (product := _product(name))}

    def days(self) -> set[date]:
        return {instant.date() for instant in self._by_instant}

    def anchors(self) -> set[date]:
        """The anchor dates that rows stand for."""
        found = set()
        for row in self.table.rows:
            with suppress(ValueError):
                found.add(date.fromisoformat(self.table.get(row, "anchor_date")))
        return found

    def upgraded(self, row: Sequence[str], seen: Seen) -> list[str]:
        """The scenes of a row, with newer products replacing older ones, followed by tiles that came late.

        A removed tile stays removed, as does everything missing from a row that no catalogue step wrote.
        """
        names = [new for name in self.scene_ids(row) for new in _newer(name, seen.overpass)]
        tiles = self._tiles(row)
        late = [
            scene.scene_id
            for scene in seen.scenes
            if scene.overpass in self._taken_before and scene.tile not in tiles and not self.was_removed(scene)
        ]
        return list(dict.fromkeys([*names, *late]))

    def replace(self, row: list[str], names: Sequence[str], seen: Seen | None) -> None:
        values: dict[str, object] = {"tile_ids": "|".join(names), "tiles_count": len(names)}
        self.table.set(row, values | (measures(seen) if seen else {}))

    def add(self, seen: Seen, anchor: date) -> None:
        names = [scene.scene_id for scene in seen.scenes]
        row = {"anchor_date": anchor, "acq_datetime": seen.overpass.timestamp, "tile_ids": "|".join(names)}
        self.table.add(row | {"tiles_count": len(names)} | measures(seen))


def measures(seen: Seen) -> dict[str, object]:
    cloud = "" if seen.cloud is None else round(seen.cloud, 6)
    frac, area = round(seen.coverage_frac, 6), round(seen.coverage_area, 2)
    return {"cloud_score": cloud, "coverage_frac": frac, "coverage_area": area}


def _product(name: str) -> tuple[OverpassKey, str] | None:
    try:
        found = read_product_name(name)
    except UnusableItemError:
        return None
    return (found.overpass, found.tile) if found else None


def _newer(name: str, overpass: Overpass) -> list[str]:
    """The newest products of what a listed one shows; itself where there are none."""
    if any(scene.scene_id == name for scene in overpass.scenes):
        return [name]
    for old, newer in overpass.replaced.items():
        if old.scene_id == name:
            return [scene.scene_id for scene in newer]
    # The catalogue does not show it any more: archives drop what they processed again.
    product = read_product_name(name)
    if product is None:
        return [name]
    age = (product.baseline, product.made, name)
    same: list[Scene] = [scene for scene in overpass.scenes if scene.tile == product.tile and scene.age > age]
    return [scene.scene_id for scene in same] or [name]
