"""Attempts: how the run of a timestamp or of a period goes, once it is known how to plan it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from thess_agg_dagster.audit.event_log import failure_observation
from thess_agg_dagster.audit.outcome import Attempt
from thess_agg_dagster.defs.checks import check_mosaics, check_plan, check_unmade, check_unplanned
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import TimeSerieError
from thess_agg_dagster.storage.errors import first_line, is_transient

if TYPE_CHECKING:
    from thess_agg_dagster.timestamp.plan import TimestampPlan

#: For faults of the system only; bad input fails at once (``allow_retries``).
RETRIES = dg.RetryPolicy(max_retries=3, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

AssetEvents = Iterator[dg.AssetCheckResult | dg.Output | dg.MaterializeResult]  # type: ignore[type-arg]


def attempted(
    context: dg.AssetExecutionContext,
    asset: dg.AssetKey,
    lake: DataLake,
    plan_it: Callable[[], TimestampPlan],
    scene_ids: Sequence[str] = (),
    of_period: bool = False,
) -> AssetEvents:
    """Plan a partition and have it made; whatever becomes of it is told to the event log.

    ``lake`` is where it will be published; ``scene_ids`` what is known of it by the time that planning fails.
    """
    from thess_agg_dagster.timestamp.keep import BandsLostError
    from thess_agg_dagster.timestamp.records import unplanned_attempt

    key = context.partition_key
    try:
        plan = plan_it()
    except Exception as error:
        message = (
            str(error)
            if isinstance(error, TimeSerieError | BandsLostError)
            else f"{type(error).__name__}: {first_line(error)}"
        )
        yield from check_unplanned(message, ["mosaics_stack"]) if of_period else check_unplanned(message)
        context.log_event(failure_observation(Attempt(key, "exception", message, scene_ids=scene_ids), asset))
        raise dg.Failure(message, allow_retries=is_transient(error)) from error
    if plan.problems or not plan.mosaics:
        attempt = unplanned_attempt(plan)
        yield from check_plan(plan)
        yield check_unmade(attempt.message)
        context.log_event(failure_observation(attempt, asset))
        raise dg.Failure(attempt.message, allow_retries=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        output = dg.Output(plan, data_version=dg.DataVersion(plan.inputs))
    yield output  # the IO manager makes the mosaics
    # Afterwards: a check counts to the materialization that is the latest when it is yielded.
    yield from check_plan(plan)
    yield check_mosaics(plan, lake.published(key).folder)
