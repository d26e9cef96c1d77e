"""Requests to a catalogue, and their outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

from thess_agg_dagster.catalogue.area import SearchArea
from thess_agg_dagster.catalogue.choose import Seen, Thresholds
from thess_agg_dagster.catalogue.scene import Scene


@dataclass(frozen=True)
class Request:
    """What to search for, and what to choose. Both dates are inclusive, in UTC."""

    url: str
    collection: str
    area: SearchArea
    first: date
    last: date
    bands: tuple[str, ...] = ("B04", "B08", "SCL")
    thresholds: Thresholds = field(default_factory=Thresholds)
    #: One overpass, the best, for each anchor date, which come every so many days since ``first``.
    every: int | None = None
    upgrade: bool = False


@dataclass(frozen=True)
class Verdict:
    """The verdict on one scene: chosen, or why not. ``scene`` is missing for unusable items."""

    scene_id: str
    taken: bool
    reason: str
    timestamp: str = ""
    scene: Scene | None = None
    seen: Seen | None = None


@dataclass(frozen=True)
class Choice:
    """A chosen overpass, and its anchor date."""

    seen: Seen
    anchor: date

    @property
    def timestamp(self) -> str:
        return self.seen.overpass.timestamp


@dataclass
class Outcome:
    """The outcome of a search: every scene found, and why it was chosen or left out."""

    scenes: list[Verdict] = field(default_factory=list)
    #: Timestamps that are new in the list.
    added: list[Choice] = field(default_factory=list)
    #: Timestamps of the list for which there are better products: the change in words. Taken only with ``upgrade``.
    better: dict[str, str] = field(default_factory=dict)
    upgraded: list[str] = field(default_factory=list)
    #: Overpasses left out, with why.
    left: dict[str, str] = field(default_factory=dict)
    listed: int = 0
    items: int = 0
