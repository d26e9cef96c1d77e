"""Recovery of a lake whose Dagster instance is lost: its attempts are restored from the manifests next to the mosaics."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterator

import click
import dagster as dg

from thess_agg_dagster.audit.event_log import attempt_metadata, first_sight, latest_successes
from thess_agg_dagster.audit.own_lake import unknown_timestamps, why_foreign
from thess_agg_dagster.defs.composites import observed
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.registering import register
from thess_agg_dagster.keys import AGGREGATED, COMPOSITES, HERE, REPORT, TIME_SERIE, periods, timestamps
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import read_manifest
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.batch import resources_config, run_asset
from thess_agg_dagster.runs.instance import open_instance
from thess_agg_dagster.runs.options import data_lake_option
from thess_agg_dagster.storage.errors import first_line


@click.command(
    help="Restore the audit trail of a lake from its manifests after its Dagster instance was lost. Published files do not "
    "change."
)
@data_lake_option
def rebuild() -> None:
    io_manager, params, bad = DataLakeIOManager.from_environment(), TimestampsAggregationParams(), 0
    with open_instance(io_manager.lake.root) as instance:
        resources = resources_config(io_manager, params)
        try:
            for number, (key, fault) in enumerate(rebuilt(instance, io_manager.lake, params), 1):
                click.echo(f"{number:>5}  {key}  {fault or 'restored'}", err=bool(fault))
                bad += fault is not None
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        try:
            run_asset(instance, resources, TIME_SERIE)
        except dg.Failure as failure:  # what is published can be told of without a list
            click.echo(failure.description, err=True)
        if not bad:
            run_asset(instance, resources, REPORT)
        click.echo(f"Dagster's instance is in {instance.root_directory}, the tables in {io_manager.lake.tables_folder}")
    sys.exit(1 if bad else 0)


def rebuilt(
    instance: dg.DagsterInstance, lake: DataLake, params: TimestampsAggregationParams
) -> Iterator[tuple[str, str | None]]:
    """Record the attempts of published timestamps and periods for which an instance has no success; yields each one, with the error
    if it failed.

    Raises ``ValueError`` if the instance belongs to another lake.
    """
    published = latest_successes(instance, AGGREGATED)
    if stranger := why_foreign(lake, published):
        raise ValueError(
            f"the Dagster instance in {instance.root_directory} belongs to another lake: {stranger}. Set DAGSTER_HOME to a "
            f"folder of this lake's own, e.g. {lake.root}/.dagster"
        )
    yield from _read_back(instance, lake, params, AGGREGATED, timestamps, published)
    composed = latest_successes(instance, COMPOSITES)
    yield from _read_back(instance, lake.composites, params, COMPOSITES, periods, composed)


def _read_back(
    instance: dg.DagsterInstance,
    lake: DataLake,
    params: TimestampsAggregationParams,
    asset: dg.AssetKey,
    partitions: dg.DynamicPartitionsDefinition,
    published: Collection[str],
) -> Iterator[tuple[str, str | None]]:
    from thess_agg_dagster.products.readback import read_back  # here: the command itself does without rasterio

    registered = set(instance.get_dynamic_partitions(str(partitions.name)))
    for key in sorted(unknown_timestamps(lake, published)):
        try:
            attempt = read_back(read_manifest(lake.manifest(key)), lake, params)
        except Exception as error:  # whatever stands in a file that calls itself a manifest: the others are read back
            yield key, f"{lake.manifest(key)}: cannot be restored ({type(error).__name__}: {first_line(error)})"
            continue
        if key not in registered:
            register(instance, partitions, [key])
            if asset == AGGREGATED:
                seen = [first_sight(HERE, key)]
            else:
                seen = list(observed(instance, HERE, [key], latest_successes(instance, AGGREGATED)))
            for observation in seen:
                instance.report_runless_asset_event(observation)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            tags = {"dagster/data_version": attempt.inputs} if attempt.inputs else {}
            event = dg.AssetMaterialization(asset, partition=key, metadata=attempt_metadata(attempt), tags=tags)
        instance.report_runless_asset_event(event)
        yield key, None
