"""Whether a Dagster instance may speak for a lake: where it does not know what the lake holds, its report would be a lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import dagster as dg

from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.lake.layout import DataLake, read_manifest

# Whatever became of a timestamp, a run of it leaves one of these; one that was killed, too.
_TRACES = (
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
)


def why_not_ours(instance: dg.DagsterInstance, lake: DataLake, published: Mapping[str, RecordedAttempt]) -> str | None:
    """Why an instance must not speak for a lake, naming both; ``None`` where it may. ``published`` are its successes."""
    here = f"the lake {lake.root}"
    home = f"the Dagster instance in {instance.root_directory}"
    if not os.environ.get("DAGSTER_HOME"):
        home += " (DAGSTER_HOME is not set)"
    if stranger := why_foreign(lake, published):
        return f"{home} is that of another lake: {stranger}. Set DAGSTER_HOME to the instance of {here}; nothing was changed"
    known = {key for kind in _TRACES for key in instance.get_latest_storage_id_by_partition(AGGREGATED, kind)}
    unknown = unknown_timestamps(lake, known)
    if not unknown:
        return None
    return (
        f"{home} knows nothing of {len(unknown)} timestamps that {here} holds, as {min(unknown)}. Set DAGSTER_HOME to the "
        f"instance of this lake; if that is lost, `python -m thess_agg_dagster rebuild --data-lake {lake.root}` reads it back "
        "from their manifests. Nothing was changed"
    )


def why_foreign(lake: DataLake, published: Mapping[str, RecordedAttempt]) -> str | None:
    """What shows that published timestamps are not of this lake: they lie elsewhere, and none of them is here, too.

    (An instance that was copied or moved along with its lake names the old place; the mosaics are the same.)
    """
    folders = {key: found.attempt.output_folder for key, found in published.items()}
    outside = {key: folder for key, folder in folders.items() if folder and not folder.startswith(f"{lake.root}/")}
    if not outside or any(_is_here(lake, published[key]) for key in outside):
        return None
    return f"its mosaics of {len(outside)} timestamps lie elsewhere, as {min(outside.values())}"


def _is_here(lake: DataLake, found: RecordedAttempt) -> bool:
    """Whether the mosaics of an attempt stand in the timestamp's folder of this lake, by their checksums."""
    outputs = read_manifest(lake.manifest(found.attempt.timestamp)).get("outputs", [])
    made = {band.output_checksum for band in found.attempt.bands}
    return bool(made) and made <= {each.get("checksum") for each in outputs}


def unknown_timestamps(lake: DataLake, known: Iterable[str]) -> set[str]:
    """Published timestamps of a lake, by their manifests, that are not among these."""
    folders = {lake.timestamp_folder(key).name for key in known}
    named = {path: read_manifest(path).get("timestamp") for path in lake.manifests() if path.parent.name not in folders}
    # A folder that somebody gave another name is no timestamp.
    return {key for path, key in named.items() if isinstance(key, str) and lake.manifest(key) == path}
