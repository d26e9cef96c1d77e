"""The search as an asset: nothing where nothing is configured, else rows that the list's sensor finds."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import dagster as dg
import pytest
import shapely
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from thess_agg_dagster.catalogue_params import CatalogueParams
from thess_agg_dagster.definitions import defs
from thess_agg_dagster.defs.catalogue import catalogue_of
from thess_agg_dagster.defs.environment import LAKE
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.keys import AGGREGATED, CATALOGUE, TIME_SERIE
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster_tests.catalogue.items import item, product_name, square
from thess_agg_dagster_tests.catalogue.stac_api import StacApi, serving_stac
from thess_agg_dagster_tests.conftest import FIRST, SmallLake


def materialize(
    lake: Path, existing: dg.DagsterInstance | None = None, *, raise_on_error: bool = True
) -> dg.ExecuteInProcessResult:
    with nullcontext(existing) if existing else dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [catalogue_of(LAKE)],
            instance=instance,
            resources={
                "catalogue_params": CatalogueParams(),  # as a new process makes them
                "params": TimestampsAggregationParams(),
                "io_manager": DataLakeIOManager(data_lake=str(lake)),
            },
            raise_on_error=raise_on_error,
        )


def test_nothing_happens_where_nothing_is_configured(tmp_path: Path) -> None:
    (event,) = materialize(tmp_path / "lake").asset_materializations_for_node("catalogue")
    assert event.metadata["configured"].value is False
    assert not (tmp_path / "lake").exists()


def test_it_stands_before_the_list_and_runs_when_it_is_switched_on() -> None:
    graph = defs.resolve_asset_graph()
    assert graph.get(TIME_SERIE).parent_keys == {CATALOGUE}
    schedule = defs.resolve_schedule_def("update_catalogue_schedule")
    assert (schedule.default_status, schedule.cron_schedule) == (dg.DefaultScheduleStatus.STOPPED, "30 4 * * *")


def test_a_catalogue_that_does_not_answer_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AOI": "POLYGON((22 40,23 40,23 41,22 40))", "FROM": "2023-02-01", "TO": "2023-01-01"}.items():
        monkeypatch.setenv(f"THESS_CATALOGUE_{name}", value)
    result = materialize(tmp_path, raise_on_error=False)
    assert "to=2023-01-01 is before from=2023-02-01" in str(result.failure_data_for_node("catalogue"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StacApi]:
    with serving_stac(tmp_path_factory.mktemp("stac")) as opened:
        yield opened


@pytest.mark.stac
def test_what_is_new_is_added(api: StacApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "AOI": square("34TFL").buffer(-0.2).wkt,
        "FROM": "2023-02-01",
        "TO": "2023-02-28",
        "STAC_URL": api.url,
        "COLLECTION": api.fill("asset", [item("34TFL")]),
    }
    for name, value in options.items():
        monkeypatch.setenv(f"THESS_CATALOGUE_{name}", value)
    assert isinstance(shapely.from_wkt(options["AOI"]), shapely.Polygon)
    for new in (1, 0):
        (event,) = materialize(tmp_path).asset_materializations_for_node("catalogue")
        assert event.metadata["new_timestamps"].value == new
    with (tmp_path / "tables" / "time_serie.csv").open(newline="") as file:
        assert [row["tile_ids"] for row in csv.DictReader(file)] == [product_name("34TFL")]


def test_a_search_makes_no_published_timestamp_stale(small_lake: SmallLake) -> None:
    """As the UI asks Dagster for it; the list is read anew when a row came."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    small_lake.read_list()
    small_lake.aggregate(FIRST)

    def statuses() -> tuple[str, str]:
        with dg.build_sensor_context(small_lake.instance, definitions=defs) as context:
            assert context.repository_def is not None
            loading = LoadingContextForTest(small_lake.instance)
            resolver = CachingStaleStatusResolver(small_lake.instance, context.repository_def.asset_graph, loading)
            return resolver.get_status(TIME_SERIE).value, resolver.get_status(AGGREGATED, FIRST).value

    for _ in range(2):
        materialize(small_lake.root, small_lake.instance)
        small_lake.read_list()
        assert statuses() == ("FRESH", "FRESH")
    materialize(small_lake.root, small_lake.instance)
    assert statuses() == ("FRESH", "FRESH")
