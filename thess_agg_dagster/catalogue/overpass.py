"""Grouping scenes: one overpass is one timestamp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import shapely

from thess_agg_dagster.catalogue.scene import OverpassKey, Scene

# A product whose footprint lies so far under newer ones is an older edition of them; less, another part of the tile.
_SAME = 0.5


@dataclass(frozen=True)
class Overpass:
    """The scenes of one platform, orbit and datatake: of each tile, and of each half of a tile, the newest product.

    In merge order: by tile from the last name to the first (``35TKF`` before ``34TFL``: as in the lists of the pipeline
    before us), halves of a tile by their datastrip, then by name. The first one sets the mosaic's grid.
    """

    key: OverpassKey
    scenes: tuple[Scene, ...]
    #: Older products, and those that replace each.
    replaced: Mapping[Scene, tuple[Scene, ...]]

    @property
    def acquired(self) -> datetime:
        """The start of the datatake: the same, whichever of its tiles an area touches. With fractions of a second
        where the catalogue tells them."""
        every = [*self.scenes, *self.replaced]
        exact = [each.acquired for each in every if each.acquired.replace(microsecond=0) == self.key.datatake]
        return min(exact, default=self.key.datatake)

    @property
    def timestamp(self) -> str:
        """``acq_datetime`` as written in ``time_serie.csv``."""
        return self.acquired.isoformat(sep=" ")


def group_overpasses(scenes: Iterable[Scene]) -> list[Overpass]:
    """The overpasses that scenes belong to, in order of time. Duplicate scenes count once."""
    groups: dict[OverpassKey, dict[str, Scene]] = {}
    for scene in scenes:
        groups.setdefault(scene.overpass, {}).setdefault(scene.scene_id, scene)
    found = [_overpass(key, list(group.values())) for key, group in groups.items()]
    return sorted(found, key=lambda each: (each.key.datatake, each.key.platform, each.key.orbit or 0))


def _overpass(key: OverpassKey, scenes: Sequence[Scene]) -> Overpass:
    tiles: dict[str, list[Scene]] = {}
    for scene in scenes:
        tiles.setdefault(scene.tile, []).append(scene)
    kept: list[Scene] = []
    replaced: dict[Scene, tuple[Scene, ...]] = {}
    for tile in sorted(tiles, reverse=True):
        newest, older = _newest(tiles[tile])
        kept += sorted(newest, key=lambda each: (each.strip or "", each.scene_id), reverse=True)
        replaced |= older
    return Overpass(key, tuple(kept), replaced)


def _newest(products: Sequence[Scene]) -> tuple[list[Scene], dict[Scene, tuple[Scene, ...]]]:
    """For one tile and datatake, the newest product of each part of the tile, and the older products with the newer
    ones that replace them."""
    kept: list[Scene] = []
    replaced: dict[Scene, tuple[Scene, ...]] = {}
    for product in sorted(products, key=lambda each: each.age, reverse=True):
        successors = _successors(product, kept)
        if successors:
            replaced[product] = successors
        else:
            kept.append(product)
    return kept, replaced


def _successors(product: Scene, newer: Sequence[Scene]) -> tuple[Scene, ...]:
    """The newer products that show the same as a product; empty where it shows another part of the tile."""
    # 1. The same datastrip, processed again.
    same = tuple(each for each in newer if product.strip and each.strip == product.strip)
    if same:
        return same
    # 2. Other datastrips of one processing are halves of the tile, whatever their footprints say.
    others = [each for each in newer if not (product.strip and each.strip and each.baseline == product.baseline)]
    # 3. Else the footprints tell.
    over = tuple(each for each in others if each.footprint.intersects(product.footprint))
    shared = shapely.union_all([each.footprint for each in over]).intersection(product.footprint)
    return over if shared.area >= _SAME * product.footprint.area else ()
