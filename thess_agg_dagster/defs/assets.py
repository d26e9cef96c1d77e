"""The assets of a lake: ``catalogue`` -> ``time_serie`` -> ``data_raw/aggregated`` (per timestamp) -> ``data_raw/composites``
(per period) -> ``timestamps_aggregation``, and a verification."""

from __future__ import annotations

import warnings

import dagster as dg

from thess_agg_dagster.defs.catalogue import catalogue_of
from thess_agg_dagster.defs.composites import composites_of, mosaics_by_period_of
from thess_agg_dagster.defs.inputs import raw_tiles_of, time_serie_of
from thess_agg_dagster.defs.lake_definition import LakeDefinition
from thess_agg_dagster.defs.mosaics import aggregated_of
from thess_agg_dagster.defs.report import report_of, verification_of


def pipeline_of(definition: LakeDefinition) -> dg.Definitions:
    """The assets of a lake and what they need, without what starts them by itself."""
    made = [each(definition) for each in (time_serie_of, aggregated_of, composites_of, report_of, verification_of)]
    with warnings.catch_warnings():
        # Links from an asset to its code are a beta feature of Dagster 1.13; the warning says nothing to a user.
        warnings.simplefilter("ignore", dg.BetaWarning)
        linked = dg.with_source_code_references(made)
    return dg.Definitions(
        assets=[catalogue_of(definition), *linked, raw_tiles_of(definition), mosaics_by_period_of(definition)],
        resources=definition.resources,
        # A run is already a process of its own; another one per step would only cost start-up.
        executor=dg.in_process_executor,
    )
