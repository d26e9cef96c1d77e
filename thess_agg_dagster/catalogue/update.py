"""Updating a lake's list from a catalogue: new rows are added, existing ones stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from types import MappingProxyType
from typing import Any

from thess_agg_dagster.catalogue.choose import Seen, anchor_of, best_per_anchor, look
from thess_agg_dagster.catalogue.listed import REMOVED, Listed
from thess_agg_dagster.catalogue.outcome import Choice, Outcome, Request, Verdict
from thess_agg_dagster.catalogue.overpass import Overpass, group_overpasses
from thess_agg_dagster.catalogue.scene import Scene, UnusableItemError, scene_of
from thess_agg_dagster.catalogue.search import SearchProgress, find_items
from thess_agg_dagster.catalogue.write import write_catalogue
from thess_agg_dagster.lake.layout import DataLake

# An overpass lasts for minutes: one that began within the dates has scenes beyond midnight.
_LONGEST_OVERPASS = timedelta(hours=1)


def update_catalogue(
    lake: DataLake,
    request: Request,
    progress: SearchProgress = lambda found, of: None,
    *,
    dry_run: bool = False,
    first_wait: float = 1.0,
) -> Outcome:
    """Search, decide and write. Raises ``CatalogueError``, ``TimeSerieError`` and ``OSError``; in these cases nothing
    was added to the list."""
    between = (
        datetime.combine(request.first, time(), UTC) - _LONGEST_OVERPASS,
        datetime.combine(request.last, time.max, UTC) + _LONGEST_OVERPASS,
    )
    items = find_items(request.url, request.collection, request.area, between, progress, first_wait)
    return take_items(lake, request, items, dry_run=dry_run)


def take_items(
    lake: DataLake, request: Request, items: Iterable[Mapping[str, Any]], *, dry_run: bool = False
) -> Outcome:
    """Decide about STAC items, whatever their source, and write the result."""
    outcome, scenes = Outcome(), []
    for item in items:
        outcome.items += 1
        try:
            scenes.append(scene_of(item))
        except UnusableItemError as error:
            outcome.scenes.append(Verdict(str(item.get("id"))[:200], False, f"cannot be used: {error}"))
    # The list is read after the search, which takes long: what somebody saved meanwhile counts.
    listed = Listed.read(lake)
    decide(outcome, request, group_overpasses(scenes), listed)
    if not dry_run:
        write_catalogue(lake, request, outcome, listed)
    return outcome


def decide(outcome: Outcome, request: Request, overpasses: Iterable[Overpass], listed: Listed) -> None:
    """Decide which overpasses to choose, given what the list contains."""
    candidates: list[Seen] = []
    for overpass in overpasses:
        if not request.first <= overpass.acquired.date() <= request.last:
            continue
        seen = look(overpass, request.area)
        if listed.has(overpass):
            outcome.listed += 1
            _compare(outcome, request, seen, listed)
        elif any(map(listed.was_removed, seen.scenes)):
            _leave(outcome, seen, REMOVED)
        elif refusal := request.thresholds.refuse(seen):
            _leave(outcome, seen, refusal)
        else:
            candidates.append(seen)
    chosen, others = _chosen(request, candidates, listed)
    for seen, reason in others:
        _leave(outcome, seen, reason)
    for choice in chosen:
        outcome.added.append(choice)
        _judge(outcome, choice.seen, {scene.scene_id for scene in choice.seen.scenes}, "")


def _chosen(
    request: Request, candidates: Sequence[Seen], listed: Listed
) -> tuple[list[Choice], list[tuple[Seen, str]]]:
    if request.every is None:
        return [Choice(seen, seen.overpass.acquired.date()) for seen in candidates], []
    served = {anchor_of(day, request.first, request.every) for day in listed.days() if day >= request.first}
    best, others = best_per_anchor(candidates, request.first, request.every, served | listed.anchors())
    return [Choice(seen, anchor) for anchor, seen in best.items()], others


def _leave(outcome: Outcome, seen: Seen, reason: str) -> None:
    outcome.left[seen.overpass.timestamp] = reason
    _judge(outcome, seen, set(), reason)


def _compare(outcome: Outcome, request: Request, seen: Seen, listed: Listed) -> None:
    """An overpass that the list has: its row stays, unless there is something better, and that is wanted."""
    row = listed.row_of(seen.overpass)
    before = listed.scene_ids(row)
    after = listed.upgraded(row, seen)
    if after != before:
        gone, come = [each for each in before if each not in after], [each for each in after if each not in before]
        words = " and ".join(come) + (f" instead of {' and '.join(gone)}" if gone else " beside the others")
        outcome.better[listed.timestamp(row)] = words
        if request.upgrade:
            known = {scene.scene_id: scene for scene in seen.overpass.scenes}
            listed.replace(row, after, _measured(request, seen, after, known))
            outcome.upgraded.append(listed.timestamp(row))
            before = after
    removed = {scene.scene_id: REMOVED for scene in seen.overpass.scenes if listed.was_removed(scene)}
    without = "time_serie.csv lists this overpass without it"
    _judge(outcome, seen, set(before), without, listed.timestamp(row), removed)


def _measured(request: Request, seen: Seen, ids: Sequence[str], known: Mapping[str, Scene]) -> Seen | None:
    if not all(each in known for each in ids):
        return None  # something that this search did not find: its part of the area is not known
    return look(Overpass(seen.overpass.key, tuple(known[each] for each in ids), {}), request.area)


def _judge(
    outcome: Outcome,
    seen: Seen,
    taken: set[str],
    otherwise: str,
    timestamp: str = "",
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A verdict on every scene of an overpass."""
    timestamp = timestamp or seen.overpass.timestamp
    reasons = {scene.scene_id: "lies outside the area" for scene in seen.outside}
    reasons |= {scene.scene_id: "adds nothing to what the others show of the area" for scene in seen.superfluous}
    reasons |= {
        scene.scene_id: f"is an older product of {' and '.join(each.scene_id for each in newer)}"
        for scene, newer in seen.overpass.replaced.items()
    }
    reasons |= more
    for scene in [*seen.overpass.scenes, *seen.overpass.replaced]:
        name = scene.scene_id
        reason = "" if name in taken else reasons.get(name, otherwise)
        outcome.scenes.append(Verdict(name, name in taken, reason, timestamp, scene, seen))
