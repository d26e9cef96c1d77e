"""Periods whose timestamps were published anew."""

import json

import dagster as dg

from thess_agg_dagster.audit.event_log import latest_attempts, published_since
from thess_agg_dagster.defs.composites import observed, published_in
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.sensors import common
from thess_agg_dagster.defs.sensors.common import Tick, newest_of, request_of
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, periods
from thess_agg_dagster.lake.periods import QUARTER, period_of, periods_of
from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.period.freshness import identify_period, is_current
from thess_agg_dagster.runs.instance import UNFINISHED
from thess_agg_dagster.timestamp.freshness import together

_MAKES = {AGGREGATED, COMPOSITES}


@dg.sensor(
    target=[COMPOSITES],
    minimum_interval_seconds=common.SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches the composites of months and quarters whose timestamps were published since, once none of them is at "
    "work any more. Does nothing unless `THESS_COMPOSITES` names the kinds of periods.",
)
def composites_sensor(
    context: dg.SensorEvaluationContext,
    io_manager: dg.ResourceParam[DataLakeIOManager],
    params: dg.ResourceParam[TimestampsAggregationParams],
) -> Tick:
    if not params.composites:
        return dg.SkipReason("No composites are asked for; THESS_COMPOSITES=month,quarter asks for both")
    instance = context.instance
    cursor = json.loads(context.cursor) if context.cursor else {}
    asked = " ".join([*params.composites, *params.bands, params.composite_identity()])
    since = int(cursor.get("event", 0)) if cursor.get("asked") == asked else 0
    newest = newest_of(instance.fetch_materializations(AGGREGATED, limit=1).records)
    if newest <= since:
        return dg.SkipReason("No timestamp was published since")
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    # (Which assets a job without a selection makes, it does not say.)
    busy = sum(run.asset_selection is None or bool(run.asset_selection & _MAKES) for run in unfinished)
    if busy:
        return dg.SkipReason(f"{busy} runs are not finished; composites wait for them")
    try:
        listed = read_time_serie(io_manager.lake.time_serie).acquisitions
    except TimeSerieError as error:
        return dg.SkipReason(str(error))
    # A quarter's timestamps may stand in for those of any of its months.
    quarters = {period_of(key, QUARTER) for key in published_since(instance, since) if key in listed}
    published = published_in(instance, quarters, listed)
    wanted = periods_of(published, params.composites)
    latest = latest_attempts(instance, among=list(wanted), asset=COMPOSITES)
    due = [
        key
        for key in wanted
        if key not in latest
        or latest[key].attempt.status != "success"
        or not is_current(latest[key].attempt, published, params)
    ]
    now = due[: common.MOST_RUNS]
    registered = set(instance.get_dynamic_partitions(str(periods.name)))
    new = [key for key in now if key not in registered]
    requests = [
        request_of(
            key,
            latest.get(key),
            together(identify_period(key, published, params)),
            "timestamps changed" if key in latest else "new",
            COMPOSITES,
        )
        for key in now
    ]
    up_to = newest if len(now) == len(due) else since  # the rest is asked for when these are done
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[periods.build_add_request(new)] if new else [],
        asset_events=list(observed(instance, new, listed)),
        cursor=json.dumps({"asked": asked, "event": up_to}),
    )
