"""``python -m benchmarks.run [--quick]``: ours, the others, and the bound, in one run; writes the results.

Ways are run in turn, round after round, so that a machine that changes its pace changes it for all. Every number is the
median of the rounds; memory is the largest process of a way, as the kernel counted it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import rasterio

from benchmarks import newest
from benchmarks.tiles import CASES, make_scl, make_tile

HERE = Path(__file__).parent
BOUND = ("bound: decode", "bound: warp", "bound: encode")
GDAL_TOOLS = {"gdalwarp -multi": "gdalwarp", "gdalbuildvrt + gdal_translate": "gdal_translate"}


@dataclass(frozen=True)
class Plan:
    """One table of the results: tiles, and the ways to merge them."""

    title: str
    case: str
    jpeg2000: bool
    ways: tuple[str, ...]


PEERS = (
    "common recipe",
    "reproject to a file, then rasterio.merge",
    "rasterio.merge to file",
    "odc-stac to file",
    "gdalwarp -multi",
    "gdalwarp -multi, newest GDAL",
)
OF_ONE_ZONE = (
    "gdalbuildvrt + gdal_translate",
    "gdalbuildvrt + gdal_translate, newest GDAL",
    "gdal raster mosaic, newest GDAL",
)
# Decoding is nearly all of the time there: not all of them over again.
OF_JPEG2000 = ("common recipe", "rasterio.merge to file", "gdalwarp -multi", "gdalwarp -multi, newest GDAL")
OPTIONS = ("ours, a third as aoi", "ours, SCL mask")
PLANS = (
    Plan("Three GeoTIFF tiles in two UTM zones", "two zones", False, ("ours", *PEERS, *BOUND)),
    Plan("Two GeoTIFF tiles of one zone", "one zone", False, ("ours", *PEERS, *OF_ONE_ZONE, *BOUND)),
    Plan("Three JPEG 2000 tiles in two UTM zones", "two zones", True, ("ours", *OF_JPEG2000, *BOUND)),
    Plan("Twelve GeoTIFF tiles in two UTM zones", "twelve tiles", False, ("ours",)),
)
OPTION_PLANS = (
    Plan(
        "Options, three GeoTIFF tiles in two UTM zones",
        "two zones",
        False,
        (
            "ours",
            *OPTIONS,
            "ours, harmonized",
            "ours, 20 m",
            "ours, cog",
            "ours, source",
            "ours, source and observations",
        ),
    ),
    Plan(
        "Options, three JPEG 2000 tiles in two UTM zones",
        "two zones",
        True,
        ("ours", *OPTIONS, "ours, 20 m", "ours, 20 m from levels", "ours, source", "ours, source and observations"),
    ),
)


@dataclass
class Result:
    way: str
    seconds: float
    megabytes: float
    output_megabytes: float | None = None
    equal_share: str = ""


def measure(way: str, out: Path, tiles: list[Path]) -> tuple[float, float]:
    """Seconds (as the way itself counts them) and peak memory in MB (of its largest process)."""
    command = [sys.executable, "-m", "benchmarks.ways", way, str(out), *map(str, tiles)]
    output = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True).stdout
    seconds, megabytes = output.split()[-2:]
    return float(seconds), float(megabytes)


def run_plan(plan: Plan, folder: Path, pixel: int, rounds: int) -> list[Result]:
    tiles = [make_tile(folder, name, pixel, plan.jpeg2000) for name in CASES[plan.case]]
    if "ours, SCL mask" in plan.ways:
        for name in CASES[plan.case]:
            make_scl(folder, name, pixel, plan.jpeg2000)
    ways = [way for way in plan.ways if way not in GDAL_TOOLS or shutil.which(GDAL_TOOLS[way])]
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    outputs = {way: folder / f"out-{number}.tif" for number, way in enumerate(ways)}
    for _ in range(rounds):
        for way in ways:
            outputs[way].unlink(missing_ok=True)
            found[way].append(measure(way, outputs[way], tiles))
            click.echo(f"  {plan.title}: {way}: {found[way][-1][0]:.2f} s, {found[way][-1][1]:.0f} MB", err=True)
    results = []
    for way in ways:
        result = Result(way, *(statistics.median(values) for values in zip(*found[way], strict=True)))
        if way not in BOUND:
            result.output_megabytes = outputs[way].stat().st_size / 1e6
            result.equal_share = "" if way.startswith("ours") else compare(outputs["ours"], outputs[way])
        results.append(result)
    for path in outputs.values():
        path.unlink(missing_ok=True)
    return results


def compare(ours: Path, theirs: Path) -> str:
    """Share of equal pixels on the common ground, and how far the other grid is off ours."""
    with rasterio.open(ours) as a, rasterio.open(theirs) as b:
        dx, dy = a.transform.c - b.transform.c, b.transform.f - a.transform.f
        col, row = round(dx / a.res[0]), round(dy / a.res[1])
        off = np.hypot(dx - col * a.res[0], dy - row * a.res[1])
        equal = total = 0
        for top in range(0, min(a.height, b.height) - abs(row), 2048):
            rows = min(2048, a.height - max(0, -row) - top, b.height - max(0, row) - top)
            cols = min(a.width - max(0, -col), b.width - max(0, col))
            mine = a.read(
                1, window=((max(0, -row) + top, max(0, -row) + top + rows), (max(0, -col), max(0, -col) + cols))
            )
            other = b.read(1, window=((max(0, row) + top, max(0, row) + top + rows), (max(0, col), max(0, col) + cols)))
            valid = (mine > 0) | (other > 0)
            equal += int(((mine == other) & valid).sum())
            total += int(valid.sum())
    grid = (
        "same grid" if off < 0.01 and (a.width, a.height) == (b.width, b.height) else f"its own grid, {off:.2f} m off"
    )
    return f"{equal / total:.2%}, {grid}"


def deflate_megabytes(folder: Path, pixel: int) -> float:
    """Size of the two-zone mosaic as deflate-6 with predictor, to compare ours with."""
    from thess_agg_dagster.mosaic.engine import write_mosaic
    from thess_agg_dagster.mosaic.options import MosaicOptions
    from thess_agg_dagster.mosaic.plan import plan_mosaic

    tiles = [make_tile(folder, name, pixel, False) for name in CASES["two zones"]]
    out = folder / "deflate.tif"
    size = write_mosaic(plan_mosaic(tiles, "B04", MosaicOptions(compress="deflate")), out).bytes
    out.unlink()
    return size / 1e6


def markdown(tables: dict[str, list[Result]], facts: dict[str, Any]) -> str:
    lines = [
        "# Benchmark results",
        "",
        f"`make {facts['target']}`, {facts['rounds']} rounds, tiles of {facts['tile']} x {facts['tile']} pixels, uint16, at "
        f"commit {facts['commit']}.",
        f"{facts['cores']} cores, {facts['cpu']}; Python {facts['python']}, rasterio {facts['rasterio']} with GDAL "
        f"{facts['gdal']}, numpy {facts['numpy']}; the command-line tools are GDAL {facts['gdal_tools']}, "
        f"the newest GDAL is that inside {newest.WHEEL.replace('==', ' ')}, called through its C API.",
        "",
        "Seconds are medians, imports not counted. The bound is what the same libraries need to decode each tile once, warp "
        "once (GDAL) the tiles that lie off the grid, and encode the mosaic once, all cores busy, each part "
        "measured alone. Memory is the largest process's peak. `make bench` runs it all again.",
    ]
    for title, results in tables.items():
        by_way = {result.way: result for result in results}
        ours = by_way["ours"]
        lines += [
            "",
            f"## {title}",
            "",
            "| way | seconds | x ours | peak MB | output MB | pixels equal to ours |",
            "|---|---|---|---|---|---|",
        ]
        for result in results:
            if result.way not in BOUND:
                lines.append(
                    f"| {result.way} | {result.seconds:.2f} | {result.seconds / ours.seconds:.2f} | {result.megabytes:.0f} "
                    f"| {result.output_megabytes:.0f} | {result.equal_share} |"
                )
        if BOUND[0] in by_way:
            bound = sum(by_way[part].seconds for part in BOUND)
            parts = ", ".join(f"{part.removeprefix('bound: ')} {by_way[part].seconds:.2f}" for part in BOUND)
            lines.append(f"| **bound** ({parts}) | {bound:.2f} | {bound / ours.seconds:.2f} | | | |")
    lines += ["", "## Other figures", ""]
    lines += [f"- {name}: {value}" for name, value in facts["figures"].items()]
    if facts["target"] == "bench":
        lines += ["", "![seconds by way](results.png)"]
        lines += ["", "Target by target, and what stands in the way: [README.md](README.md)."]
    return "\n".join(lines) + "\n"


def options_markdown(tables: dict[str, list[Result]], facts: dict[str, Any], tile: int, rounds: int) -> str:
    lines = [
        "# What the options cost",
        "",
        f"`make bench-options`, {rounds} rounds, tiles of {tile} x {tile} pixels, uint16, SCL of half that, at commit "
        f"{facts['commit']}. {facts['cores']} cores, "
        f"{facts['cpu']}; rasterio {facts['rasterio']} with GDAL {facts['gdal']}, numpy {facts['numpy']}.",
        "",
        "Seconds are medians, imports not counted; memory is the peak. The area is the middle third of the mosaic, from top "
        "to bottom; there the zones overlap, so more than a third of the blocks lie in it. About a third of SCL's "
        "pixels are masked, in patches of 2 km, so a tile behind is needed nearly everywhere that two overlap.",
    ]
    for title, results in tables.items():
        lines += ["", f"## {title}", "", "| | seconds | x without | peak MB | output MB |", "|---|---|---|---|---|"]
        for result in results:
            name = "no option" if result.way == "ours" else result.way.removeprefix("ours, ")
            lines.append(
                f"| {name} | {result.seconds:.2f} | {result.seconds / results[0].seconds:.2f} | {result.megabytes:.0f} "
                f"| {result.output_megabytes:.0f} |"
            )
    return "\n".join(lines) + "\n"


def plot(tables: dict[str, list[Result]], path: Path) -> None:
    import matplotlib.pyplot as plt

    shown = {title: results for title, results in tables.items() if any(result.way in BOUND for result in results)}
    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 3.4), layout="constrained")
    for axis, (title, results) in zip(np.atleast_1d(axes), shown.items(), strict=True):
        peers = [result for result in results if result.way not in BOUND]
        bound = sum(result.seconds for result in results if result.way in BOUND)
        colors = ["#1b7f5c" if result.way == "ours" else "#b8b8b8" for result in peers]
        axis.barh([result.way for result in peers], [result.seconds for result in peers], color=colors)
        axis.axvline(bound, color="#c0392b", linestyle="--", linewidth=1)
        axis.text(bound, len(peers) - 0.55, " bound", color="#c0392b", va="bottom", fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10, loc="right")
        axis.set_xlabel("seconds")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def orchestration() -> dict[str, str]:
    """What Dagster costs around the engine; see benchmarks/orchestration.py."""
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.orchestration"], cwd=HERE.parent, check=True, capture_output=True, text=True
    ).stdout
    return dict(json.loads(output))


def machine() -> dict[str, Any]:
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    tools = shutil.which("gdalwarp")
    version = (
        subprocess.run(["gdalwarp", "--version"], capture_output=True, text=True).stdout if tools else "not installed"
    )
    return {
        "cores": os.cpu_count(),
        "cpu": cpu[0] if cpu else platform.machine(),
        "python": platform.python_version(),
        "rasterio": importlib.metadata.version("rasterio"),
        "gdal": rasterio.__gdal_version__,
        "numpy": np.__version__,
        "gdal_tools": version.split(",")[0].removeprefix("GDAL "),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is measured, and whether files differ from it (other than results)."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True).stdout.strip()

    results = [f":!{name}" for name in ("*.md", "*.json", "*.png")]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *results)
    return (git("rev-parse", "--short=7", "HEAD") or "unknown") + (", with changes" if changed else "")


@click.command()
@click.option("--quick", is_flag=True, help="Tiles of a third of the size, one round: under two minutes.")
@click.option("--options", is_flag=True, help="Only what the options cost; writes OPTIONS.md.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--lake", type=click.Path(path_type=Path), default=HERE.parent / "bench-lake", help="Where tiles are kept."
)
def main(quick: bool, options: bool, rounds: int, lake: Path) -> None:
    """Measure, and write benchmarks/RESULTS.md, results.json and results.png (with --quick: print only)."""
    pixel, rounds = (30, 1) if quick else (10, rounds)
    if options:
        tables = {plan.title: run_plan(plan, lake, pixel, rounds) for plan in OPTION_PLANS}
        text = options_markdown(tables, machine(), 109_800 // pixel, rounds)
        click.echo(text)
        if not quick:
            (HERE / "OPTIONS.md").write_text(text)
        return
    tables = {plan.title: run_plan(plan, lake, pixel, rounds) for plan in PLANS}
    two, twelve = tables[PLANS[0].title][0], tables[PLANS[3].title][0]
    assert two.output_megabytes
    deflate = deflate_megabytes(lake, pixel)
    figures = {
        "output size, ours (ZSTD-1) against deflate-6 with predictor": f"{two.output_megabytes / deflate:.3f}",
        "peak memory, twelve tiles against three": f"{twelve.megabytes / two.megabytes:.2f}",
    } | orchestration()
    facts = machine() | {"target": "bench-quick" if quick else "bench", "rounds": rounds, "tile": 109_800 // pixel}
    text = markdown(tables, facts | {"figures": figures})
    click.echo(text)
    if not quick:
        (HERE / "RESULTS.md").write_text(text)
        data = facts | {
            "figures": figures,
            "tables": {t: [asdict(r) for r in results] for t, results in tables.items()},
        }
        (HERE / "results.json").write_text(json.dumps(data, indent=1) + "\n")
        plot(tables, HERE / "results.png")


if __name__ == "__main__":
    main()
