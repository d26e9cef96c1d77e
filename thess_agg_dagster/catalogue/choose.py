"""Choosing overpasses, and their tiles, by coverage of the area and by clouds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from thess_agg_dagster.catalogue.area import SearchArea
from thess_agg_dagster.catalogue.overpass import Overpass
from thess_agg_dagster.catalogue.scene import Scene

# Less of the area than this is nothing, neither as what a tile adds nor as what is missing: what edges leave over.
_NOTHING = 1e-4


@dataclass(frozen=True)
class Seen:
    """The part of an area that an overpass shows, and the scenes needed for it, in merge order."""

    overpass: Overpass
    scenes: tuple[Scene, ...]
    #: Those that lie beside the area, and those that show nothing of it that the taken ones do not.
    outside: tuple[Scene, ...]
    superfluous: tuple[Scene, ...]
    #: Square metres, and as a share of the area.
    coverage_area: float
    coverage_frac: float
    #: Percent, weighted by the part of the area that each scene adds; ``None`` where no scene tells.
    cloud: float | None

    @property
    def clear(self) -> float:
        """The share of the area seen without clouds; with unknown cloud cover, zero."""
        return self.coverage_frac * (1 - (100 if self.cloud is None else self.cloud) / 100)


@dataclass(frozen=True)
class Thresholds:
    """Requirements on an overpass: the highest percentage of clouds and the smallest share of the area."""

    max_cloud: float = 60
    min_coverage: float = 0.5

    def refuse(self, seen: Seen) -> str | None:
        """Why an overpass is left out, or ``None`` if it is not. Unknown cloud cover passes."""
        if not seen.scenes or seen.coverage_frac < self.min_coverage:
            return f"covers {seen.coverage_frac:.1%} of the area; at least {self.min_coverage:.1%} is required"
        if seen.cloud is not None and seen.cloud > self.max_cloud:
            return f"{seen.cloud:.1f} % clouds; at most {self.max_cloud:g} % is allowed"
        return None


def look(overpass: Overpass, area: SearchArea) -> Seen:
    """Measure an overpass over an area. Of overlapping scenes, those that show most of it come first."""
    order = {scene.scene_id: number for number, scene in enumerate(overpass.scenes)}
    parts = {scene: area.project(scene.footprint).intersection(area.shape) for scene in overpass.scenes}
    total = area.shape.area
    left, taken, superfluous, outside = area.shape, [], [], []
    covered, clouds = 0.0, []
    for scene in sorted(parts, key=lambda each: (-parts[each].area, order[each.scene_id])):
        if parts[scene].area < _NOTHING * _NOTHING * total:
            outside.append(scene)
            continue
        gain = left.intersection(parts[scene]).area
        if gain < _NOTHING * total:
            superfluous.append(scene)
            continue
        left = left.difference(parts[scene])
        covered += gain
        taken.append(scene)
        if scene.cloud is not None:
            clouds.append((gain, scene.cloud))
    if left.area < _NOTHING * total:
        covered = total
    weight = sum(gain for gain, _ in clouds)
    return Seen(
        overpass,
        tuple(sorted(taken, key=lambda each: order[each.scene_id])),
        tuple(outside),
        tuple(superfluous),
        covered,
        covered / total,
        sum(gain * cloud for gain, cloud in clouds) / weight if weight else None,
    )


def anchor_of(day: date, first: date, every: int) -> date:
    """The anchor date nearest to a day, where anchor dates are equally spaced from the first day on; of two equally
    near, the earlier."""
    return first + timedelta(days=every * max(0, -(-(2 * (day - first).days - every) // (2 * every))))


def best_per_anchor(
    candidates: Sequence[Seen], first: date, every: int, served: Collection[date]
) -> tuple[dict[date, Seen], list[tuple[Seen, str]]]:
    """The best overpass of each anchor date that is not yet ``served``, and the others with the reason why they are
    left out.

    The best shows most of the area without clouds; then the nearest to the anchor counts, then the earlier.
    """
    groups: dict[date, list[Seen]] = {}
    for seen in candidates:
        groups.setdefault(anchor_of(seen.overpass.acquired.date(), first, every), []).append(seen)
    best: dict[date, Seen] = {}
    others: list[tuple[Seen, str]] = []
    for anchor, group in sorted(groups.items()):
        if anchor in served:
            others += [(seen, f"the list already has one for the anchor date {anchor}") for seen in group]
            continue
        best[anchor] = min(
            group,
            key=lambda seen: (
                -round(seen.clear, 6),
                abs(seen.overpass.acquired.date() - anchor),
                seen.overpass.acquired,
            ),
        )
        won = best[anchor].overpass.timestamp
        others += [
            (seen, f"{won} is better for the anchor date {anchor}") for seen in group if seen is not best[anchor]
        ]
    return best, others
