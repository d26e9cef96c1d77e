"""Periods whose timestamps were published anew."""

from __future__ import annotations

import json
from collections.abc import Mapping

import dagster as dg

from thess_agg_dagster.audit.event_log import latest_attempts, published_since
from thess_agg_dagster.audit.outcome import Attempt
from thess_agg_dagster.defs.composites import observed, published_in
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.sensors.common import Tick, concerns, newest_of, request_of, sensor_of
from thess_agg_dagster.lake.periods import QUARTER, period_of, periods_of
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.period.freshness import identify_period, is_current
from thess_agg_dagster.runs.instance import UNFINISHED
from thess_agg_dagster.timestamp.freshness import together


def composites_sensor_of(definition: LakeDefinition) -> dg.SensorDefinition:
    return sensor_of(
        definition,
        "composites_sensor",
        _tick,
        target=[definition.keys.composites],
        needs=definition.needs,
        description="Launches the composites of months and quarters whose timestamps were published since, once none of them is at "
        "work any more. Does nothing unless `THESS_COMPOSITES` names the kinds of periods.",
    )


def _tick(context: dg.SensorEvaluationContext, definition: LakeDefinition) -> Tick:
    keys, params = definition.keys, definition.params_of(context)
    if not params.composites:
        return dg.SkipReason("No composites are asked for; THESS_COMPOSITES=month,quarter asks for both")
    instance = context.instance
    cursor = json.loads(context.cursor) if context.cursor else {}
    asked = " ".join([*params.composites, *params.bands, params.composite_identity()])
    since = int(cursor.get("event", 0)) if cursor.get("asked") == asked else 0
    newest = newest_of(instance.fetch_materializations(keys.aggregated, limit=1).records)
    if newest <= since:
        return dg.SkipReason("No timestamp was published since")
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    busy = sum(concerns(run, definition, {keys.aggregated, keys.composites}) for run in unfinished)
    if busy:
        return dg.SkipReason(f"{busy} runs are not finished; composites wait for them")
    try:
        listed = read_time_serie(definition.lake_of(context).time_serie).acquisitions
    except TimeSerieError as error:
        return dg.SkipReason(str(error))
    # A quarter's timestamps may stand in for those of any of its months.
    quarters = {period_of(key, QUARTER) for key in published_since(instance, keys.aggregated, since) if key in listed}
    published = published_in(instance, keys, quarters, listed)
    requests = _due(instance, definition, params, published)
    now = requests[: definition.pace.most_runs]
    registered = set(instance.get_dynamic_partitions(str(keys.periods.name)))
    new = [key for request in now if (key := str(request.partition_key)) not in registered]
    up_to = newest if len(now) == len(requests) else since  # the rest is asked for when these are done
    return dg.SensorResult(
        run_requests=now,
        dynamic_partitions_requests=[keys.periods.build_add_request(new)] if new else [],
        asset_events=list(observed(instance, keys, new, listed)),
        cursor=json.dumps({"asked": asked, "event": up_to}),
    )


def _due(
    instance: dg.DagsterInstance,
    definition: LakeDefinition,
    params: TimestampsAggregationParams,
    published: Mapping[str, Attempt],
) -> list[dg.RunRequest]:
    """Requests for the periods of published timestamps that are missing, failed or changed."""
    asset = definition.keys.composites
    wanted = periods_of(published, params.composites)
    latest = latest_attempts(instance, asset, among=list(wanted))
    return [
        request_of(
            asset,
            key,
            latest.get(key),
            together(identify_period(key, published, params)),
            "timestamps changed" if key in latest else "new",
        )
        for key in wanted
        if key not in latest
        or latest[key].attempt.status != "success"
        or not is_current(latest[key].attempt, published, params)
    ]
