"""Lakes in YAML: several in one set of definitions, each by itself; and Dagster's own commands on them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import rasterio
import yaml

import thess_agg_dagster
from thess_agg_dagster import definitions
from thess_agg_dagster.audit.event_log import latest_attempts
from thess_agg_dagster.catalogue_params import CatalogueParams
from thess_agg_dagster.defs.component import ThessLake
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs.instance import BATCH, CAUSE
from thess_agg_dagster.storage import fingerprints
from thess_agg_dagster_tests.conftest import FIRST, SECOND, SmallLake, scene
from thess_agg_dagster_tests.lakes_project import MODULE, environment_of, write_lake, write_project
from thess_agg_dagster_tests.processes import run, statuses
from thess_agg_dagster_tests.test_docs import blocks

CRETE, THRACE = LakeKeys("crete"), LakeKeys("thrace")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], dg.Definitions]]:
    """The definitions of a project in this process."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("lakes_project")]:
            del sys.modules[name]

    def loaded(project: Path) -> dg.Definitions:
        forget()
        monkeypatch.syspath_prepend(project)
        found: dg.Definitions = importlib.import_module(MODULE).defs
        return found

    yield loaded
    forget()


@pytest.fixture
def lakes(small_lake: SmallLake, tmp_path: Path) -> tuple[SmallLake, SmallLake]:
    """Two lakes with a timestamp in common, of which the second lacks the tiles, and one of its own."""
    crete, thrace = small_lake, SmallLake(tmp_path / "thrace", small_lake.instance)
    crete.list_rows((FIRST, crete.add_timestamp(FIRST)))
    thrace.list_rows((FIRST, [scene(FIRST, "T34TFL")]), (SECOND, thrace.add_timestamp(SECOND)))
    return crete, thrace


@pytest.fixture
def defs(lakes: tuple[SmallLake, SmallLake], tmp_path: Path, load: Callable[[Path], dg.Definitions]) -> dg.Definitions:
    project = write_project(
        tmp_path / "project",
        crete={"name": "crete", "root": str(lakes[0].root), "params": {"bands": ["B04"], "dtype": "float32"}},
        thrace={"name": "thrace", "root": "../thrace", "timestamps_per_run": "all", "owners": ["team:eo"]},
    )
    return load(project)


def run_asset(
    defs: dg.Definitions, instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str | None = None, **tags: str
) -> dg.ExecuteInProcessResult:
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance, asset_selection=[asset], partition_key=partition, tags=tags, raise_on_error=False
    )


def test_each_lake_makes_its_own_mosaics_and_tables(defs: dg.Definitions, lakes: tuple[SmallLake, SmallLake]) -> None:
    crete, thrace = lakes
    instance = crete.instance
    for keys in (CRETE, THRACE):
        assert run_asset(defs, instance, keys.time_serie).success
    assert instance.get_dynamic_partitions("crete_timestamp") == [FIRST]
    assert run_asset(defs, instance, CRETE.aggregated, FIRST).success
    assert not run_asset(defs, instance, THRACE.aggregated, FIRST).success
    assert run_asset(defs, instance, THRACE.aggregated, SECOND).success
    # By the parameters of each.
    with rasterio.open(crete.lake.mosaic(FIRST, "B04")) as mosaic:
        assert mosaic.dtypes == ("float32",)
    assert [path.stem for path in crete.lake.timestamp_folder(FIRST).glob("*.tif")] == ["B04"]
    with rasterio.open(thrace.lake.mosaic(SECOND, "B04")) as mosaic:
        assert mosaic.dtypes == ("uint16",)
    assert not crete.lake.timestamp_folder(SECOND).exists()
    assert not thrace.lake.timestamp_folder(FIRST).exists()
    for keys in (CRETE, THRACE):
        assert run_asset(defs, instance, keys.report).success
        assert run_asset(defs, instance, keys.verification).success
    assert statuses(crete.lake) == {FIRST: "success"}
    assert statuses(thrace.lake) == {FIRST: "failed_missing_inputs", SECOND: "success"}
    assert {key.path[0] for key in instance.all_asset_keys()} == {"crete", "thrace"}
    # The command knows the same lake by its name.
    home = instance.root_directory
    command = ("thess_agg_dagster", "--bands", "B04", "--dtype", "float32")
    done = run(*command, THESS_LAKE="crete", DATA_LAKE=str(crete.root), DAGSTER_HOME=home)
    assert "1 timestamps, 1 unchanged and skipped" in done.stdout, done.stderr


def test_sensors_launch_only_their_own(
    defs: dg.Definitions, lakes: tuple[SmallLake, SmallLake], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All files are older than sensors wait for.
    monkeypatch.setattr(fingerprints, "time", SimpleNamespace(time=lambda: time.time() + 60))
    instance = lakes[0].instance

    def launched(name: str) -> set[tuple[str, str | None]]:
        sensor = defs.resolve_sensor_def(name)
        resources = {key: (defs.resources or {})[key] for key in sensor.required_resource_keys}
        with dg.build_sensor_context(instance, resources=resources, definitions=defs) as context:
            found = sensor(context)
        assert isinstance(found, dg.SensorResult | dg.SkipReason)
        if isinstance(found, dg.SkipReason):
            return set()
        for added in found.dynamic_partitions_requests or ():
            instance.add_dynamic_partitions(added.partitions_def_name, list(added.partition_keys))
        return {
            (key.to_user_string(), request.partition_key)
            for request in found.run_requests or ()
            for key in request.asset_selection or ()
        }

    assert launched("crete_time_serie_sensor") == {("crete/time_serie", None), ("crete/data_raw/aggregated", FIRST)}
    assert launched("thrace_time_serie_sensor") == {
        ("thrace/time_serie", None),
        ("thrace/data_raw/aggregated", FIRST),
        ("thrace/data_raw/aggregated", SECOND),
    }
    assert set(instance.get_dynamic_partitions("crete_timestamp")) == {FIRST}
    run_asset(defs, instance, CRETE.aggregated, FIRST)
    assert launched("crete_report_sensor") == {("crete/timestamps_aggregation", None)}
    assert launched("thrace_report_sensor") == set()  # what failed or was made is another lake's
    run_asset(defs, instance, THRACE.aggregated, FIRST)
    lakes[1].add_timestamp(FIRST)
    assert launched("crete_late_tiles_sensor") == set()
    assert launched("thrace_late_tiles_sensor") == {("thrace/data_raw/aggregated", FIRST)}
    # A run that is at work in one lake keeps no other waiting.
    instance.create_run_for_job(defs.resolve_job_def("thrace_verify_published"), status=dg.DagsterRunStatus.STARTED)
    assert launched("crete_report_sensor") == {("crete/timestamps_aggregation", None)}
    assert launched("thrace_report_sensor") == set()


def test_a_job_finds_what_is_due_in_its_lake(defs: dg.Definitions, lakes: tuple[SmallLake, SmallLake]) -> None:
    job = defs.resolve_job_def("thrace_missing_or_failed")
    assert job.execute_in_process(instance=lakes[0].instance).success
    (found,) = lakes[0].instance.fetch_observations(THRACE.report, limit=5).records
    event = found.asset_observation
    assert event is not None
    assert event.description == "2 of 2 timestamps are missing, failed or changed"
    assert lakes[0].instance.fetch_observations(CRETE.report, limit=5).records == []


def test_a_run_of_several_timestamps_stays_in_its_lake(
    defs: dg.Definitions, lakes: tuple[SmallLake, SmallLake]
) -> None:
    instance = lakes[1].instance
    lakes[1].add_timestamp(FIRST)
    run_asset(defs, instance, THRACE.time_serie)
    tags = {"dagster/asset_partition_range_start": FIRST, "dagster/asset_partition_range_end": SECOND}
    assert run_asset(defs, instance, THRACE.aggregated, **tags).success
    found = latest_attempts(instance, THRACE.aggregated)
    assert {key: each.attempt.status for key, each in found.items()} == {FIRST: "success", SECOND: "success"}
    assert len(instance.get_runs(dg.RunsFilter(tags={CAUSE: BATCH}))) == 2
    assert not latest_attempts(instance, CRETE.aggregated)


def test_an_asset_of_the_same_project_reads_mosaics(defs: dg.Definitions, lakes: tuple[SmallLake, SmallLake]) -> None:
    @dg.asset(ins={"mosaics": dg.AssetIn(CRETE.aggregated)}, partitions_def=CRETE.timestamps)
    def seen(mosaics):  # type: ignore[no-untyped-def]
        return dg.MaterializeResult(metadata={"path": str(mosaics.paths["B04"])})

    both = dg.Definitions.merge(defs, dg.Definitions([seen]))
    for asset, partition in ((CRETE.time_serie, None), (CRETE.aggregated, FIRST), (seen.key, FIRST)):
        assert run_asset(both, lakes[0].instance, asset, partition).success
    event = lakes[0].instance.get_latest_materialization_event(seen.key)
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["path"].value == str(lakes[0].lake.mosaic(FIRST, "B04"))


def test_what_each_lake_is_given(defs: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert len(specs) == 16
    assert specs["thrace/data_raw/aggregated"].group_name == "thrace_mosaics"
    assert list(specs["thrace/time_serie"].owners) == ["team:eo"]
    assert list(specs["crete/time_serie"].owners) == []
    assert defs.resolve_assets_def(CRETE.aggregated).backfill_policy is None
    assert defs.resolve_assets_def(THRACE.aggregated).backfill_policy == dg.BackfillPolicy.single_run()


def test_a_lake_without_a_name_is_called_as_that_of_the_environment(
    tmp_path: Path, load: Callable[[Path], dg.Definitions]
) -> None:
    """So it can move to YAML, and keep what Dagster knows of it."""

    def names(defs: dg.Definitions) -> set[str]:
        found = defs.get_repository_def()
        keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
        sensors, schedules = ({each.name for each in some} for some in (found.sensor_defs, found.schedule_defs))
        return {*keys, *found.job_names, *sensors, *schedules, *(defs.resources or ())}

    project = write_project(tmp_path / "project", only={"root": "lake"})
    assert names(load(project)) == names(definitions.defs)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"params": {"bandss": ["B04"]}}, "bandss"),
        ({"params": {"merge_method": "maxi"}}, "merge_method"),
        ({"params": {"aoi_mask": True}}, "aoi_mask needs an aoi"),
        ({"catalogue": {"max_clouds": 3}}, "max_clouds"),
        ({"catalogue": {"max_cloud": 300}}, "max_cloud=300.0 is not between 0 and 100"),
        ({"roots": "lake"}, "roots"),
        ({"name": "Thrace!"}, "'Thrace!' is not a name of lowercase letters"),
        ({"tiles": "{band}.tif"}, "is not a template of tile paths"),
        ({"timestamps_per_run": 0}, "0 is not a number of timestamps"),
        ({"list_max_age_hours": 0}, "list_max_age_hours"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    attributes: Mapping[str, Any], message: str, tmp_path: Path, load: Callable[[Path], dg.Definitions]
) -> None:
    project = write_project(tmp_path / "project", lake={"root": "lake", **attributes})
    assert message in refusal(load, project)


def refusal(load: Callable[[Path], dg.Definitions], project: Path) -> str:
    """All that is said where a project cannot be loaded."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (Dagster's or pydantic's)
        load(project)
    return "\n".join(traceback.format_exception(caught.value))


def test_two_lakes_of_one_name_are_refused(tmp_path: Path, load: Callable[[Path], dg.Definitions]) -> None:
    project = write_project(tmp_path / "project", a={"name": "a", "root": "a"}, b={"name": "a", "root": "b"})
    assert "different resources with same key 'a_io_manager'" in refusal(load, project)


def test_templates_fill_in_any_parameter(
    tmp_path: Path, load: Callable[[Path], dg.Definitions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANDS", "B02,B03")
    monkeypatch.setenv("THESS_COMPRESS", "deflate")
    params = {"bands": "{{ env.BANDS.split(',') }}", "aoi": "{{ context.project_root }}/area.wkt"}
    catalogue = {"from_date": "2023-01-01", "max_cloud": "{{ 10 + 5 }}"}
    project = write_project(
        tmp_path / "project",
        lake={"name": "crete", "root": "{{ env.BANDS[:3] }}", "params": params, "catalogue": catalogue},
    )
    resources: Any = load(project).resources
    found = resources["crete_params"]
    assert (found.bands, found.aoi) == (["B02", "B03"], str(project / "area.wkt"))
    assert found.compress == "deflate"  # what YAML leaves open, the environment says
    assert resources["crete_catalogue_params"].max_cloud == 15
    assert resources["crete_io_manager"].data_lake == str(project / "B02")


def test_the_schema_tells_of_every_parameter() -> None:
    """As an editor shows it while YAML is written."""
    schema = ThessLake.model().model_json_schema()

    def described(name: str) -> dict[str, str]:
        kind = schema["$defs"][schema["properties"][name]["$ref"].rpartition("/")[2]]
        assert kind["additionalProperties"] is False
        return {each: field["description"] for each, field in kind["properties"].items()}

    params, catalogue = described("params"), described("catalogue")
    assert list(params) == list(TimestampsAggregationParams.model_fields)
    assert list(catalogue) == list(CatalogueParams.model_fields)
    assert all(map(str.strip, [*params.values(), *catalogue.values()]))
    assert params["merge_method"] == "Which pixel to use where tiles overlap, as in rasterio.merge. Default: first."
    assert all(field["description"] for field in schema["properties"].values())


def test_the_example_of_the_docs(
    tmp_path: Path, load: Callable[[Path], dg.Definitions], monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = blocks("docs/DAGSTER.md", "yaml")
    project = write_project(tmp_path / "project")
    write_lake(project, "crete", {}).write_text(example)
    resources: Any = load(project).resources
    assert resources["crete_params"].aoi == str(project / "crete.geojson")
    assert resources["crete_catalogue_params"].from_date == "2023-01-01"
    assert str(resources["crete_io_manager"].lake.tile("scene", "B04")) == "/archive/scene/B04.jp2"
    assert str(resources["crete_io_manager"].lake.time_serie) == "/data/lists/crete/time_serie.csv"


def test_who_imports_the_package_need_not_import_dagster() -> None:
    code = "import sys, thess_agg_dagster as t; print('ThessLake' in dir(t), 'dagster' in sys.modules, t.ThessLake.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "ThessLake"]
    with pytest.raises(AttributeError, match="has no attribute 'ThessSea'"):
        _ = thess_agg_dagster.ThessSea


def test_the_commands_of_dg(tmp_path: Path) -> None:
    """As docs/DAGSTER.md has them, and more; each is a process of seconds, so all in one."""
    (typed,) = (block for block in blocks("docs/DAGSTER.md") if "dg scaffold" in block)
    project = write_project(tmp_path / "project", thrace={"name": "thrace", "root": "thrace"})
    environment = environment_of(project, tmp_path / "home")

    def dg_command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["dg", *arguments], cwd=project, env=environment, capture_output=True, text=True)

    done = subprocess.run(["bash", "-euc", typed], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    written = yaml.safe_load((project / "lakes_project" / "defs" / "crete" / "defs.yaml").read_text())
    assert written == {
        "type": "thess_agg_dagster.ThessLake",
        "attributes": {"name": "crete", "root": "/data/crete"},
    }
    checked = dg_command("check", "yaml")
    assert checked.returncode == 0, checked.stdout
    listed = dg_command("list", "defs", "--json")
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert [len(found[kind]) for kind in ("assets", "sensors", "jobs")] == [16, 14, 12]
    assert "crete/data_raw/aggregated" in {asset["asset_key"] for asset in found["assets"]}
    path = write_lake(project, "crete", {"name": "crete", "root": "crete", "params": {"bandss": ["B04"]}})
    # (Unless it is told which file, `dg check yaml` of Dagster 1.13 looks at one file of each type.)
    refused = dg_command("check", "yaml", str(path.parent))
    assert refused.returncode == 1
    assert "attributes.params.bandss" in refused.stdout + refused.stderr
