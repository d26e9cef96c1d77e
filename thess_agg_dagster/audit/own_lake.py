"""Whether a Dagster instance knows a lake well enough to report on it."""

from __future__ import annotations

import os
from collections.abc import Iterable

import dagster as dg

from thess_agg_dagster.audit.attempts import Attempts
from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake, folder_name
from thess_agg_dagster.lake.published import MANIFEST, read_manifest
from thess_agg_dagster.storage.paths import names_in

# Whatever became of a timestamp, a run of it leaves one of these; one that was killed, too.
_TRACES = (
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
)


def why_not_ours(instance: dg.DagsterInstance, keys: LakeKeys, lake: DataLake, published: Attempts) -> str | None:
    """Why an instance must not report on a lake, naming both, or ``None`` if it may. ``published`` are the instance's
    successes."""
    here = f"the lake {lake.root}"
    home = f"the Dagster instance in {instance.root_directory}"
    if not os.environ.get("DAGSTER_HOME"):
        home += " (DAGSTER_HOME is not set)"
    if stranger := why_foreign(lake, published):
        return f"{home} belongs to another lake: {stranger}. Set DAGSTER_HOME to the instance of {here}; nothing was changed"
    unknown = unknown_timestamps(lake, published)
    if unknown:  # unless it knows them otherwise: their runs were killed, or somebody marked them in the UI
        known = {key for kind in _TRACES for key in instance.get_latest_storage_id_by_partition(keys.aggregated, kind)}
        unknown = unknown_timestamps(lake, known)
    if not unknown:
        return None
    named = f"THESS_LAKE={keys.name} " if keys.name else ""
    return (
        f"{home} knows nothing of {len(unknown)} timestamps that {here} holds, e.g. {min(unknown)}. Set DAGSTER_HOME to the "
        f"instance of this lake; if that is lost, `{named}python -m thess_agg_dagster rebuild --data-lake {lake.root}` "
        "restores it from their manifests. Nothing was changed"
    )


def why_foreign(lake: DataLake, published: Attempts) -> str | None:
    """Evidence that published timestamps belong to another lake: they are stored elsewhere, and none of them is also
    here.

    (An instance that was copied or moved along with its lake names the old location, but the mosaics are the same.)
    """
    outside = {
        key: folder for key, folder in published.folders.items() if folder and not folder.startswith(f"{lake.root}/")
    }
    if not outside or any(_is_here(lake, published[key]) for key in outside):
        return None
    return f"the mosaics of {len(outside)} of its timestamps are elsewhere, e.g. {min(outside.values())}"


def _is_here(lake: DataLake, found: RecordedAttempt) -> bool:
    """Whether the mosaics of an attempt stand in the timestamp's folder of this lake, by their checksums."""
    outputs = read_manifest(lake.manifest(found.attempt.timestamp)).get("outputs", [])
    made = {band.output_checksum for band in found.attempt.bands}
    return bool(made) and made <= {each.get("checksum") for each in outputs}


def unknown_timestamps(lake: DataLake, known: Iterable[str]) -> set[str]:
    """Timestamps (or periods, in ``lake.composites``) that are published in a lake, according to their manifests, but not
    among these."""
    names = set(names_in(lake.aggregated)) - set(map(folder_name, known))
    unknown = {path: read_manifest(path) for path in (lake.aggregated / name / MANIFEST for name in names)}
    named = {path: found.get("timestamp") or found.get("period") for path, found in unknown.items()}
    # A folder that somebody gave another name is no timestamp.
    return {key for path, key in named.items() if isinstance(key, str) and lake.manifest(key) == path}
