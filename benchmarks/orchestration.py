"""``python -m benchmarks.orchestration``: what Dagster costs around the engine, as JSON.

46 timestamps of three small tiles through ``python -m thess_agg_dagster``, against the seconds its own engine reports;
and the time to import the definitions, against ``import dagster`` alone.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import seconds
from benchmarks.tiles import CASES
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.sample import TILE_SIZE, TILES
from thess_agg_dagster_tests.processes import clean_environment
from thess_agg_dagster_tests.rasters import write_tile

TIMESTAMPS = 46
ROUNDS = 5


def make_lake(root: Path, timestamps: int = TIMESTAMPS) -> DataLake:
    lake = DataLake(root)
    rng = np.random.default_rng(1)
    for scene in write_list(lake, timestamps):
        epsg, left, top = TILES[scene[-6:]]
        for band, pixel, dtype in (("B04", 200, "uint16"), ("B08", 200, "uint16"), ("SCL", 400, "uint8")):
            size = TILE_SIZE // pixel
            pixels = rng.integers(1, 12, (size, size)).astype(dtype)
            place: dict[str, Any] = {"crs": f"EPSG:{epsg}", "corner": (left, top), "pixel": pixel}
            write_tile(lake.tile(scene, band), pixels, **place, tiled=False, compress="none")
    return lake


def write_list(lake: DataLake, timestamps: int) -> list[str]:
    """List so many timestamps, a minute apart, of three tiles in two zones; returns their scenes, which end in the tile's name."""
    rows, listed = ["acq_datetime,tile_ids"], []
    for number in range(timestamps):
        scenes = [f"S2A_{number:03d}_{tile}" for tile in CASES["two zones"]]
        rows.append(f"2024-01-01 10:{number:02d}:00+00:00,{'|'.join(scenes)}")
        listed += scenes
    lake.tables_folder.mkdir(parents=True)
    lake.time_serie.write_text("\n".join(rows) + "\n")
    return listed


def python(*arguments: str) -> float:
    """How long a fresh Python takes for this, in an environment without settings of ours."""
    return seconds([sys.executable, *arguments], clean_environment(), quiet=True)


def main() -> None:
    figures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        lake = make_lake(Path(folder))
        wall = python("-m", "thess_agg_dagster", "--data-lake", folder)
        report = pd.read_csv(lake.audit_table("band_report"))
        workers = min(os.cpu_count() or 1, 4)
        engine = report["seconds"].sum() / workers
        assert (report["status"] == "success").all()
        figures[f"`python -m thess_agg_dagster`, {TIMESTAMPS} timestamps of small tiles"] = (
            f"{wall:.1f} s, of which the engine {engine:.1f} s; {(wall - engine) / TIMESTAMPS:.2f} s a timestamp around it"
        )
    plain, ours = [], []
    for _ in range(ROUNDS):
        plain.append(python("-c", "import dagster"))
        ours.append(python("-c", "import thess_agg_dagster.definitions"))
    ratio = statistics.median(b / a for a, b in zip(plain, ours, strict=True))
    figures["importing the definitions"] = (
        f"{statistics.median(ours):.2f} s, {ratio:.2f} times `import dagster` alone ({statistics.median(plain):.2f} s)"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
