"""``python -m thess_agg_dagster`` and ``dagster asset materialize`` as a user runs them: as subprocesses."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

import dagster as dg
import pytest

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.parameter import Group
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.runs import summary
from thess_agg_dagster.runs.command import main
from thess_agg_dagster.runs.options import data_lake_option
from thess_agg_dagster_tests.conftest import FIRST, SECOND, THIRD, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.processes import invoke, run, status_table, statuses
from thess_agg_dagster_tests.rasters import noise


def finished(lake: DataLake) -> dict[str, str]:
    table = status_table(lake)
    return dict(zip(table["timestamp"], table["finished_at"] + table["run_id"], strict=True))


@in_folder_and_bucket
def test_a_whole_lake_then_only_what_changed(small_lake: SmallLake, tmp_path: Path) -> None:
    rows = [(key, small_lake.add_timestamp(key)) for key in (FIRST, SECOND, THIRD)]
    missing = small_lake.lake.tile(rows[1][1][0], "SCL")
    missing.unlink()
    small_lake.list_rows(*rows)
    command = ("--data-lake", str(small_lake.root))

    first = invoke(*command)
    assert first.exit_code == 1, first.output
    assert "failed" in first.stderr
    assert f"SCL of {rows[1][1][0]}: no such file" in first.stdout
    assert statuses(small_lake.lake) == {FIRST: "success", SECOND: "failed_missing_inputs", THIRD: "success"}
    before = finished(small_lake.lake)

    # Its tile arrives, and another's changes: those two are made again, the third is left alone.
    small_lake.add_tile(rows[1][1][0], "SCL", east=True)
    small_lake.add_tile(rows[2][1][0], "B04", east=True, pixels=noise(77, (120, 120)))
    second = invoke(*command)
    assert second.exit_code == 0, second.output
    assert "1 unchanged and skipped" in second.stdout
    assert set(statuses(small_lake.lake).values()) == {"success"}
    after = finished(small_lake.lake)
    assert [key for key in after if after[key] != before[key]] == [SECOND, THIRD]

    # Fewer bands are no change. Other parameters: all again.
    assert "3 unchanged" in invoke(*command, "--bands", "B04").stdout
    # One timestamp by name, by force: only that.
    assert "0 unchanged" in invoke(*command, "--merge-method", "max").stdout
    before = finished(small_lake.lake)
    assert invoke(*command, "--merge-method", "max", "--timestamps", FIRST, "--force").exit_code == 0
    after = finished(small_lake.lake)
    assert [key for key in after if after[key] != before[key]] == [FIRST]
    # A mosaic that someone removed is made again.
    small_lake.lake.mosaic(THIRD, "B04").unlink()
    assert "2 unchanged" in invoke(*command, "--merge-method", "max").stdout
    assert small_lake.lake.mosaic(THIRD, "B04").exists()


def test_of_very_many_those_have_a_line_that_were_made_or_failed(
    small_lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "_MOST_LINES", 2)
    rows = [(key, small_lake.add_timestamp(key, ["B04"])) for key in (FIRST, SECOND)]
    small_lake.list_rows(*rows, (THIRD, [scene(THIRD, "T34TFL")]))
    command = ("--data-lake", str(small_lake.root), "--bands", "B04")
    lines = invoke(*command).stdout.splitlines()
    assert [key for key in (FIRST, SECOND, THIRD) if any(line.startswith(f"{key}  ") for line in lines)] == [
        FIRST, SECOND, THIRD,
    ]  # fmt: skip
    small_lake.add_tile(rows[1][1][0], "B04", east=True, pixels=noise(77, (120, 120)))
    again = invoke(*command).stdout
    assert FIRST not in again
    assert f"{SECOND}  success" in again
    assert f"{THIRD}  failed_missing_inputs" in again
    assert "3 timestamps, 1 unchanged and skipped" in again
    assert THIRD in (good := invoke(*command, "--timestamps", f"{FIRST},{THIRD}").stdout)
    assert "no such file" in good


def test_environment_and_another_dagster_home(small_lake: SmallLake, tmp_path: Path) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    home = tmp_path / "another-home"
    tables = tmp_path / "tables"
    tables.mkdir()
    small_lake.lake.time_serie.rename(tables / "time_serie.csv")
    result = run(
        "thess_agg_dagster", DATA_LAKE=str(small_lake.root), DAGSTER_HOME=str(home), THESS_TABLES=str(tables),
        THESS_BANDS="B04", THESS_COMPRESS="none",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert home.is_dir()
    assert not (small_lake.root / ".dagster").exists()
    assert {path.name for path in small_lake.lake.timestamp_folder(FIRST).iterdir()} == {
        "B04.tif",
        "manifest.json",
        "quicklook.jpg",
    }
    assert statuses(DataLake(small_lake.root, tables)) == {FIRST: "success"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merge-method", "mean"], "'mean' is not one of"),
        (["--bands", "../B04"], "is not a plain name"),
        (["--max-workers", "0"], "give 1 or more"),
        (["--timestamps", "2031-01-01"], "not in"),
    ],
)
def test_bad_usage_is_exit_2(small_lake: SmallLake, arguments: list[str], message: str) -> None:
    small_lake.list_rows((FIRST, []))
    result = invoke("--data-lake", str(small_lake.root), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


#: The options of the first release: scripts know them.
FIRST_RELEASE = """
--data-lake --timestamps --force --verify --bands --merge-method --resampling --nodata --dtype --compress --target-crs --grid
--bounds --aoi --aoi-mask --no-aoi-mask --resolution --reduction --overviews --no-overviews --match-band --mask-scl-classes
--missing-scl --harmonize --no-harmonize --format --stac --no-stac --download-from --download-token-url --download-client-id
--download-connections --max-workers --threads --debug --no-debug
"""


def test_options_stay_and_each_parameter_is_one_under_its_heading() -> None:
    options = {option for each in main.params for option in (*each.opts, *each.secondary_opts)}
    assert set(FIRST_RELEASE.split()) <= options
    given = {each.name: each for each in main.params}
    for name, declared in TimestampsAggregationParams.declared().items():
        assert f"--{name.replace('_', '-')}" in given[name].opts
        assert given[name].default is None  # so that the environment has its say
        assert bool(given[name].secondary_opts) == (declared.kind is bool)
    shown = invoke("--help").stdout
    sections = dict(part.split(":\n", 1) for part in re.split(r"\n\n(?=\w+:\n)", shown)[1:])
    assert list(sections) == ["Options", *get_args(Group), "Commands"]
    assert "--aoi-mask / --no-aoi-mask" in sections["Area"]
    assert "[default: zstd]" in sections["Output"]


def test_an_option_before_a_subcommand_is_refused_and_not_lost() -> None:
    @main.command("nothing")
    @data_lake_option
    def nothing() -> None:
        print(os.environ["DATA_LAKE"])

    try:
        for arguments in (["--data-lake", "/some/lake", "nothing"], ["nothing", "--data-lake", "/some/lake"]):
            assert invoke(*arguments, DATA_LAKE="").stdout == "/some/lake\n"
        result = invoke("--force", "--merge-method", "max", "nothing")
    finally:
        del main.commands["nothing"]
    assert result.exit_code == 2
    assert "--force, --merge-method: not an option of nothing" in " ".join(result.stderr.split())


def test_an_unusable_list_is_exit_2(small_lake: SmallLake) -> None:
    result = invoke("--data-lake", str(small_lake.root))
    assert result.exit_code == 2
    assert "time_serie.csv: no such file" in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_a_refused_row_is_told_and_is_exit_1(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST, ["B04"])), ("nonsense", ["a"]))
    result = invoke("--data-lake", str(small_lake.root), "--bands", "B04")
    assert result.exit_code == 1
    assert "line 3" in result.stderr
    assert statuses(small_lake.lake) == {FIRST: "success"}


def test_debug_stops_at_the_first_error_with_its_traceback(small_lake: SmallLake) -> None:
    ids = small_lake.add_timestamp(FIRST)
    path = small_lake.lake.tile(ids[0], "B04")
    path.write_bytes(path.read_bytes()[:2000])
    small_lake.list_rows((FIRST, ids), (SECOND, small_lake.add_timestamp(SECOND)))
    result = run("thess_agg_dagster", "--data-lake", str(small_lake.root), "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "blocks.py" in result.stderr
    assert "TileError" in result.stderr
    assert not small_lake.lake.timestamp_folder(SECOND).exists()


def test_definitions_validate() -> None:
    result = run("dagster", "definitions", "validate")
    assert result.returncode == 0, result.stderr


def test_several_lakes_share_one_dagster(small_lake: SmallLake, tmp_path: Path) -> None:
    """The same timestamps in two lakes: each keeps its own attempts, partitions and tables."""
    ids = small_lake.add_timestamp(FIRST)
    small_lake.list_rows((FIRST, ids))
    other = SmallLake(tmp_path / "other", small_lake.instance)
    other.list_rows((FIRST, [scene(FIRST, "T34TFL")]), (SECOND, other.add_timestamp(SECOND)))
    home = str(tmp_path / "shared")
    for lake, name in ((small_lake, "thrace"), (other, "crete")):
        run("thess_agg_dagster", DATA_LAKE=str(lake.root), DAGSTER_HOME=home, THESS_LAKE=name)
    assert statuses(small_lake.lake) == {FIRST: "success"}
    assert statuses(other.lake) == {FIRST: "failed_missing_inputs", SECOND: "success"}
    with dg.DagsterInstance.from_config(home) as instance:
        keys = {key.to_user_string() for key in instance.all_asset_keys()}
        assert {"thrace/data_raw/aggregated", "crete/data_raw/aggregated", "crete/timestamps_aggregation"} <= keys
        assert "data_raw/aggregated" not in keys
        assert instance.get_dynamic_partitions("thrace_timestamp") == [FIRST]
    again = run("thess_agg_dagster", DATA_LAKE=str(small_lake.root), DAGSTER_HOME=home, THESS_LAKE="thrace")
    assert "1 unchanged and skipped" in again.stdout
    assert "THESS_LAKE='Thrace!' is not a name" in run("thess_agg_dagster", THESS_LAKE="Thrace!").stderr
