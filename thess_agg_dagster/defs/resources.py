"""Resources that configure runs."""

from __future__ import annotations

import dagster as dg

from thess_agg_dagster.params import TimestampsAggregationParams


class ParamsResource(TimestampsAggregationParams, dg.ConfigurableResource):  # type: ignore[type-arg]
    __doc__ = TimestampsAggregationParams.__doc__
