"""Ticks of sensors, as a code server evaluates them: with one instance for all, whose databases stay open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from thess_agg_dagster.definitions import defs
from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster.runs.private import InstanceRef
from thess_agg_dagster.runs.sqlite import kept_open

SENSORS = sorted(each.name for each in defs.sensors or ())


def home(tmp_path: Path, name: str = "home") -> InstanceRef:
    """Of an instance that Dagster has begun, as its daemon hands it to a code server."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    ref = InstanceRef.from_dir(str(folder), overrides={"telemetry": {"enabled": False}})
    with dg.DagsterInstance.from_ref(ref) as instance:
        instance.add_dynamic_partitions("timestamp", [name])
        instance.all_instigator_state()
    return ref


def tick(name: str, ref: InstanceRef, lake: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dg.DagsterInstance, Any]:
    monkeypatch.setenv("DATA_LAKE", str(lake))
    repository = defs.get_repository_def()
    sensor = repository.get_sensor_def(name)
    resources = repository.get_top_level_resources()
    given = {key: resources[key] for key in sensor.required_resource_keys}
    with dg.SensorEvaluationContext(ref, resources=given, repository_def=repository) as context:
        told = sensor.evaluate_tick(context)
        return context.instance, told


@pytest.mark.parametrize("name", SENSORS)
def test_ticks_share_an_open_instance(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = home(tmp_path)
    first, told = tick(name, ref, tmp_path / "lake", monkeypatch)
    second, _ = tick(name, ref, tmp_path / "lake", monkeypatch)
    assert told.skip_message
    assert first is second
    assert type(first.run_storage).__module__ == "thess_agg_dagster.runs.sqlite"
    assert first.get_dynamic_partitions("timestamp") == ["home"]
    other, _ = tick(name, home(tmp_path, "another"), tmp_path / "lake", monkeypatch)
    assert other.get_dynamic_partitions("timestamp") == ["another"]


def test_what_others_write_meanwhile_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = home(tmp_path)
    kept, _ = tick("report_sensor", ref, tmp_path / "lake", monkeypatch)
    with dg.DagsterInstance.from_ref(ref) as instance:  # as the daemon or a run has it
        for number in range(3):
            instance.add_dynamic_partitions("timestamp", [f"later {number}"])
            instance.report_runless_asset_event(dg.AssetMaterialization(AGGREGATED, partition=f"later {number}"))
            assert f"later {number}" in kept.get_dynamic_partitions("timestamp")
            (made,) = kept.fetch_materializations(AGGREGATED, limit=1).records
            assert made.partition_key == f"later {number}"


def test_databases_that_were_put_in_the_place_of_others_are_opened(tmp_path: Path) -> None:
    home(tmp_path, "one")
    with dg.DagsterInstance.from_ref(kept_open(home(tmp_path, "two"))) as kept:
        assert kept.get_dynamic_partitions("timestamp") == ["two"]
        (tmp_path / "two" / "history").rename(tmp_path / "away")
        (tmp_path / "one" / "history").rename(tmp_path / "two" / "history")
        assert kept.get_dynamic_partitions("timestamp") == ["one"]
