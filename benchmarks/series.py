"""``python -m benchmarks.series``: a whole series at full size through ``python -m thess_agg_dagster``.

46 timestamps of three tiles in two zones, B04, B08 and SCL. The tiles are hard links of three, so a disk need not hold 138; the
mosaics are all written, and removed at the end (40 GB). Beside it, what the common recipe takes
for the three bands of one timestamp, times as many.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import click
import pandas as pd
import psutil

from benchmarks.orchestration import TIMESTAMPS, write_list
from benchmarks.run import HERE, machine, measure
from benchmarks.tiles import CASES, make_scl, make_tile
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster_tests.processes import clean_environment

NAMES = CASES["two zones"]
RECIPE = "common recipe"


def make_lake(root: Path, tiles: Path, timestamps: int, jpeg2000: bool) -> DataLake:
    lake = DataLake(root)
    for scene in write_list(lake, timestamps):
        name = scene[-6:]
        made = {"B04": make_tile(tiles, name, 10, jpeg2000), "SCL": make_scl(tiles, name, 10, jpeg2000)}
        for band, tile in (made | {"B08": made["B04"]}).items():
            place = lake.tile(scene, band)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(tile, place)
    return lake


def run_command(lake: DataLake) -> tuple[float, float, float]:
    """Seconds, and the memory in MB of the largest process and of all together, at their peaks."""
    command = [sys.executable, "-m", "thess_agg_dagster", "--data-lake", str(lake.root)]
    started = time.perf_counter()
    process = psutil.Popen(command, cwd=HERE.parent, env=clean_environment(), stdout=sys.stderr)
    largest = together = 0.0
    while process.poll() is None:
        sizes = []
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):  # one that has ended meanwhile
                sizes.append(each.memory_full_info().pss / 1e6)
        largest, together = max(largest, *sizes, 0), max(together, sum(sizes))
        time.sleep(0.5)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - started, largest, together


def recipe_seconds(tiles: Path, jpeg2000: bool) -> float:
    """The common recipe for the three bands of one timestamp, one after the other. SCL has a quarter of the pixels."""
    band = [make_tile(tiles, name, 10, jpeg2000) for name in NAMES]
    scl = [make_scl(tiles, name, 10, jpeg2000) for name in NAMES]
    out = tiles / "recipe.tif"
    total = 2 * measure(RECIPE, out, band)[0] + measure(RECIPE, out, scl)[0]
    out.unlink()
    return total


@click.command()
@click.option("--timestamps", default=TIMESTAMPS, show_default=True)
@click.option("--formats", default="geotiff,jpeg2000", show_default=True)
@click.option(
    "--lake", "tiles", type=click.Path(path_type=Path), default=HERE.parent / "bench-lake", help="Where tiles are kept."
)
def main(timestamps: int, formats: str, tiles: Path) -> None:
    """Measure, and print a table for benchmarks/README.md."""
    facts = machine()
    print(f"{timestamps} timestamps, commit {facts['commit']}, {facts['cores']} cores, {facts['cpu']}\n")
    print(
        "| tiles | minutes | seconds a timestamp | largest process, MB | all, MB | mosaics, GB | common recipe, minutes |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in formats.split(","):
        root = tiles / f"series-{kind}"
        shutil.rmtree(root, ignore_errors=True)
        try:
            lake = make_lake(root, tiles, timestamps, kind == "jpeg2000")
            seconds, largest, together = run_command(lake)
            report = pd.read_csv(lake.audit_table("band_report"))
            assert (report["status"] == "success").all()
            size = report["bytes"].sum() / 1e9
        finally:
            shutil.rmtree(root, ignore_errors=True)
        recipe = recipe_seconds(tiles, kind == "jpeg2000") * timestamps
        row = [f"{seconds / 60:.1f}", f"{seconds / timestamps:.2f}", f"{largest:.0f}", f"{together:.0f}", f"{size:.1f}"]
        print(f"| {kind} | {' | '.join(row)} | {recipe / 60:.1f} (calculated from one timestamp) |", flush=True)


if __name__ == "__main__":
    main()
