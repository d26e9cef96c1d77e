"""``python -m thess_agg_dagster --composites month,quarter``: timestamps, then the periods that are due."""

from __future__ import annotations

import io
import shutil

import pandas as pd

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster_tests.conftest import SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.defs.test_composites import APRIL, SPRING, TIMES, add
from thess_agg_dagster_tests.processes import invoke
from thess_agg_dagster_tests.rasters import noise

ON_ONE_GRID = ("--grid", "fixed", "--bounds", "690000,4488000,702000,4500000", "--target-crs", "EPSG:32634")


def made(lake: DataLake) -> dict[str, str]:
    """The run that made each period."""
    table = pd.read_csv(io.BytesIO(lake.audit_table("composites").read_bytes()), dtype=str, keep_default_na=False)
    assert set(table["status"]) == {"success"}
    return dict(zip(table["period"], table["run_id"], strict=True))


@in_folder_and_bucket
def test_timestamps_then_what_is_due_of_their_periods(small_lake: SmallLake) -> None:
    small_lake.list_rows(*((key, add(small_lake, key, seed)) for seed, key in enumerate(TIMES)))
    command = ["--data-lake", str(small_lake.root), *ON_ONE_GRID]

    alone = invoke(*command)
    assert alone.exit_code == 0, alone.output
    assert "periods" not in alone.stdout
    assert not small_lake.lake.audit_table("composites").exists()

    command += ["--composites", "month,quarter"]
    assert f"5 of 5 periods due: {APRIL}, 2023-05" in invoke(*command, "--dry-run").stdout
    first = invoke(*command)
    assert first.exit_code == 0, first.output
    assert "6 timestamps, 6 unchanged and skipped" in first.stdout
    assert "5 periods, 0 unchanged and skipped" in first.stdout
    before = made(small_lake.lake)
    assert list(before) == [APRIL, "2023-05", "2023-07", SPRING, "2023-Q3"]

    second = invoke(*command)
    assert "5 periods, 5 unchanged and skipped" in second.stdout
    assert made(small_lake.lake) == before

    # A timestamp made anew makes its month and its quarter due.
    small_lake.add_tile(scene(TIMES[0], "T34TFL"), "B04", pixels=noise(99, (120, 120)))
    assert f"2 of 5 periods due: {APRIL}, {SPRING}" in invoke(*command, "--dry-run").stdout
    third = invoke(*command)
    assert third.exit_code == 0, third.output
    assert "6 timestamps, 5 unchanged and skipped" in third.stdout
    after = made(small_lake.lake)
    assert [key for key in after if after[key] != before[key]] == [APRIL, SPRING]

    # So does a file that is gone, and a parameter makes all due; fewer bands none.
    (small_lake.lake.composites.published(APRIL).folder / "count.tif").unlink()
    assert "5 periods, 4 unchanged and skipped" in invoke(*command).stdout
    assert "5 periods, 5 unchanged" in invoke(*command, "--bands", "B04,SCL").stdout
    assert "5 periods, 0 unchanged" in invoke(*command, "--composite-method", "mean").stdout


def test_a_period_that_fails_is_told(small_lake: SmallLake) -> None:
    small_lake.list_rows(*((key, add(small_lake, key, seed)) for seed, key in enumerate(TIMES[:4])))
    command = ("--data-lake", str(small_lake.root), *ON_ONE_GRID, "--composites", "month", "--bands", "B04")
    assert invoke(*command).exit_code == 0
    path = small_lake.lake.mosaic(TIMES[0], "B04")
    path.write_bytes(small_lake.lake.mosaic(TIMES[1], "B04").read_bytes())
    found = invoke(*command, "--min-observations", "1")
    assert found.exit_code == 1
    assert f"{APRIL}  B04: {path}: has xxh128:" in found.stdout
    assert "2 periods, 0 unchanged" in found.stdout
    assert "composites need grid=fixed" in invoke("--data-lake", str(small_lake.root), "--composites", "month").output


def test_a_lost_instance_is_read_back_and_what_rots_is_found(small_lake: SmallLake) -> None:
    small_lake.list_rows(*((key, add(small_lake, key, seed)) for seed, key in enumerate(TIMES[:2])))
    command = ["--data-lake", str(small_lake.root), *ON_ONE_GRID, "--composites", "month,quarter"]
    assert invoke(*command).exit_code == 0
    assert "14 mosaics checked" in invoke("--data-lake", str(small_lake.root), "--verify").stderr
    shutil.rmtree(small_lake.root / ".dagster")
    found = invoke("rebuild", "--data-lake", str(small_lake.root))
    assert found.exit_code == 0, found.output
    assert f"{APRIL}  restored" in found.stdout
    assert "2 periods, 2 unchanged and skipped" in invoke(*command).stdout
    path = small_lake.lake.composites.published(SPRING).folder / "count.tif"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    rotten = invoke("--data-lake", str(small_lake.root), "--verify")
    assert rotten.exit_code == 1
    assert f"{SPRING}: {path}: has xxh128:" in rotten.stderr
    assert "run the period again, with --force" in rotten.stderr
