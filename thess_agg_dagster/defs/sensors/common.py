"""Shared by the sensors: how one is made, and how they request runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence

import dagster as dg

from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.runs.instance import CAUSE
from thess_agg_dagster.runs.private.sensors import SensorOfOpenInstance

Tick = dg.SensorResult | dg.SkipReason


def sensor_of(
    definition: LakeDefinition,
    name: str,
    tick: Callable[[dg.SensorEvaluationContext, LakeDefinition], Tick],
    target: Sequence[dg.AssetKey],
    needs: set[str],
    description: str,
    seconds: int | None = None,
) -> dg.SensorDefinition:
    """A sensor of a lake, which looks at its pace, or every so many ``seconds``."""
    return SensorOfOpenInstance(
        definition.named(name),
        # (Called directly, as tests do, a sensor is given its resources a second time.)
        evaluation_fn=lambda context, **_: tick(context, definition),
        target=target,
        minimum_interval_seconds=seconds or definition.pace.seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys=needs,
        description=description,
    )


def concerns(run: dg.DagsterRun, definition: LakeDefinition, assets: Collection[dg.AssetKey]) -> bool:
    """Whether a run may make any of a lake's assets. (Which ones a job without a selection makes, it does not say.)"""
    if run.asset_selection is None:
        return run.job_name.startswith(definition.named(""))
    return not run.asset_selection.isdisjoint(assets)


def request_of(asset: dg.AssetKey, key: str, last: RecordedAttempt | None, what: str, cause: str) -> dg.RunRequest:
    """A request to run one partition of an asset. Dagster launches each run key once, so the same cause after the same
    attempt gives one run."""
    run_key = f"{key} after {last.storage_id if last else 0} {digest_of(what)}"
    return dg.RunRequest(run_key=run_key, partition_key=key, asset_selection=[asset], tags={CAUSE: cause})


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def newest_of(records: Iterable[dg.EventLogRecord]) -> int:
    return max((record.storage_id for record in records), default=0)
