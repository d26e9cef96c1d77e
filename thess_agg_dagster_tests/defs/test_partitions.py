"""Runs and inputs of several timestamps: each is an attempt of its own, and one that is missing may be left out."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from thess_agg_dagster.audit.event_log import latest_attempts
from thess_agg_dagster.definitions import defs
from thess_agg_dagster.defs.environment import lake_of_environment
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.mosaics import aggregated_of
from thess_agg_dagster.keys import AGGREGATED, timestamps
from thess_agg_dagster_tests.conftest import FIRST, SECOND, THIRD, SmallLake


def test_inputs_that_may_be_missing(small_lake: SmallLake) -> None:
    """As Dagster's own IO managers do it: one is None, several are without it."""
    small_lake.list_rows(*((key, small_lake.add_timestamp(FIRST)) for key in (FIRST, SECOND, THIRD)))
    small_lake.read_list()
    small_lake.aggregate(FIRST)
    may_be_missing = {"mosaics": dg.AssetIn(AGGREGATED, metadata={"allow_missing_partitions": True})}
    received: list[Any] = []

    @dg.asset(ins=may_be_missing, partitions_def=timestamps)
    def one(mosaics):  # type: ignore[no-untyped-def]
        received.append(mosaics)

    @dg.asset(ins=may_be_missing)
    def several(mosaics):  # type: ignore[no-untyped-def]
        received.append(mosaics)

    for asset, partition in ((one, SECOND), (several, None)):
        dg.materialize(
            [asset, dg.AssetSpec(AGGREGATED, partitions_def=timestamps)],
            selection=[asset],
            partition_key=partition,
            instance=small_lake.instance,
            resources={"io_manager": DataLakeIOManager(data_lake=str(small_lake.root))},
        )
    assert received == [None, {FIRST: DataLakeIOManager(data_lake=str(small_lake.root)).mosaics(FIRST)}]


def test_several_timestamps_in_one_run_are_an_attempt_each(small_lake: SmallLake) -> None:
    """The one in the middle fails: its neighbours are made, and only it is failed in Dagster."""
    ids = {key: small_lake.add_timestamp(key) for key in (FIRST, SECOND, THIRD)}
    small_lake.lake.tile(ids[SECOND][0], "B04").unlink()
    small_lake.list_rows(*ids.items())
    small_lake.read_list()

    def run_range() -> dg.ExecuteInProcessResult:
        tags = {"dagster/asset_partition_range_start": FIRST, "dagster/asset_partition_range_end": THIRD}
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=small_lake.instance,
            asset_selection=[AGGREGATED],
            tags=tags,
            run_config={"resources": small_lake.resources(bands=["B04"])},
            raise_on_error=False,
        )

    failed = run_range()
    assert not failed.success
    found = latest_attempts(small_lake.instance, AGGREGATED)
    assert [found[key].attempt.status for key in ids] == ["success", "failed_missing_inputs", "success"]
    assert len({found[key].run_id for key in ids} | {failed.run_id}) == 4
    partitions = small_lake.instance.get_status_by_partition(AGGREGATED, list(ids), timestamps)
    assert partitions
    assert [status.value for status in partitions.values() if status] == ["MATERIALIZED", "FAILED", "MATERIALIZED"]
    assert small_lake.tables()["status"]["status"].tolist() == ["success", "failed_missing_inputs", "success"]

    small_lake.add_tile(ids[SECOND][0], "B04", east=True)
    assert run_range().success
    assert small_lake.tables()["band_report"][["band", "status"]].to_numpy().tolist() == [["B04", "success"]] * 3
    events = small_lake.instance.fetch_materializations(AGGREGATED, limit=10).records
    assert [record.partition_key for record in events][::-1] == [FIRST, THIRD, FIRST, SECOND, THIRD]


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ("", None),
        ("1", None),
        ("20", dg.BackfillPolicy.multi_run(20)),
        ("all", dg.BackfillPolicy.single_run()),
        ("many", "not a number of timestamps"),
    ],
)
def test_timestamps_per_run(given: str, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THESS_TIMESTAMPS_PER_RUN", given)
    if isinstance(policy, str):
        with pytest.raises(ValueError, match=policy):
            lake_of_environment()
    else:
        assert aggregated_of(lake_of_environment()).backfill_policy == policy
