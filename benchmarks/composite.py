"""``python -m benchmarks.composite [--size N]``: the median of a month, ours and others', side by side; prints a table.

Twelve mosaics of real texture with a third of their pixels empty, in patches, on one grid; each way in a process of its own,
in turn, round after round. The bound decodes every mosaic once and writes one.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from benchmarks.measure import peak_megabytes
from benchmarks.tiles import SCENE, stac_item

HERE = Path(__file__).parent
TIMES, BLOCK = 12, 512
CORES = os.cpu_count() or 1


def make_mosaic(path: Path, number: int, size: int) -> Path:
    """A mosaic as this project writes it, made block by block."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(SCENE) as file:
        scene = file.read(1)
    rng = np.random.default_rng(number)
    options = {"driver": "GTiff", "compress": "zstd", "zstd_level": 1, "predictor": 2, "tiled": True}
    options |= {"blockxsize": BLOCK, "blockysize": BLOCK, "sparse_ok": True, "num_threads": CORES, "nodata": 0}
    partial = path.with_name(f"partial-{path.name}")
    transform = Affine(10, 0, 600_000, 0, -10, 4_600_020)
    with rasterio.open(
        partial, "w", width=size, height=size, count=1, dtype="uint16", crs="EPSG:32634", transform=transform, **options
    ) as file:
        for top in range(0, size, BLOCK):
            for left in range(0, size, BLOCK):
                row, col = (int(rng.integers(0, side - BLOCK)) for side in scene.shape)
                pixels = scene[row : row + BLOCK, col : col + BLOCK] + rng.integers(
                    0, 8, (BLOCK, BLOCK), dtype="uint16"
                )
                pixels[np.kron(rng.random((8, 8)) < 1 / 3, np.ones((BLOCK // 8, BLOCK // 8), bool))] = 0
                height, width = min(BLOCK, size - top), min(BLOCK, size - left)
                file.write(pixels[:height, :width], 1, window=Window(left, top, width, height))
    partial.rename(path)
    return path


def ours(mosaics: list[Path], out: Path) -> None:
    from thess_agg_dagster.mosaic.composite import CompositeOptions, open_mosaics, write_composites

    write_composites([open_mosaics("B04", mosaics)], out.parent, CompositeOptions(min_observations=1), "count")


def odc_stac(mosaics: list[Path], out: Path) -> None:
    import odc.stac
    from odc.geo.geobox import GeoBox

    with rasterio.open(mosaics[0]) as file:
        grid = GeoBox.from_rio(file)
    items = [stac_item(path, datetime(2023, 4, 1 + number, tzinfo=UTC)) for number, path in enumerate(mosaics)]
    stack = odc.stac.load(items, bands=["B04"], geobox=grid, dtype="uint16", nodata=0, chunks={"x": 2048, "y": 2048})
    cube = stack["B04"]
    _write_dask(cube.where(cube > 0).median("time"), out)


def rioxarray_dask(mosaics: list[Path], out: Path) -> None:
    import rioxarray
    import xarray as xr

    layers: list[xr.DataArray] = []
    for path in mosaics:
        layer = rioxarray.open_rasterio(path, chunks={"x": 2048, "y": 2048}, masked=True)
        assert isinstance(layer, xr.DataArray)
        layers.append(layer.squeeze("band", drop=True))
    cube = xr.concat(layers, xr.DataArray(range(len(layers)), dims="time", name="time"), join="exact")
    _write_dask(cube.chunk(time=-1).median("time"), out)


def _write_dask(result: object, out: Path) -> None:
    """As most do: computed by dask's threads, window by window into a GeoTIFF."""
    from threading import Lock

    whole = result.fillna(0).round().astype("uint16").rio.write_nodata(0)  # type: ignore[attr-defined]
    options = {
        "compress": "zstd",
        "zstd_level": 1,
        "predictor": 2,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
    }
    whole.rio.to_raster(out, lock=Lock(), **options)


def bound(mosaics: list[Path], out: Path) -> None:
    """Every block decoded once and the first mosaic written, all cores busy."""
    options = {"blockxsize": BLOCK, "blockysize": BLOCK, "tiled": True, "num_threads": CORES}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(CORES) as pool:
        handles = [[stack.enter_context(rasterio.open(path)) for path in mosaics] for _ in range(CORES)]
        profile = handles[0][0].profile | options
        windows = [window for _, window in handles[0][0].block_windows(1)]
        target = stack.enter_context(rasterio.open(out, "w", **profile))

        def decode(core: int) -> list[tuple[Window, object]]:
            kept = []
            for window in windows[core::CORES]:
                first, *_ = [handle.read(1, window=window) for handle in handles[core]]
                kept.append((window, first))
            return kept

        for found in pool.map(decode, range(CORES)):
            for window, pixels in found:
                target.write(pixels, 1, window=window)


WAYS: dict[str, Callable[[list[Path], Path], None]] = {
    "ours": ours,
    "odc-stac + dask": odc_stac,
    "rioxarray + dask": rioxarray_dask,
    "bound": bound,
}


@click.command()
@click.option("--size", default=10_980, show_default=True, help="Pixels a side; 21 960 is a full grid of four tiles.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--lake", type=click.Path(path_type=Path), default=HERE.parent / "bench-lake", show_default=False)
@click.option("--way", hidden=True)
def main(size: int, rounds: int, lake: Path, way: str | None) -> None:
    folder = lake / f"month-{size}"
    mosaics = [make_mosaic(folder / f"{number}.tif", number, size) for number in range(TIMES)]
    out = folder / "B04.tif"
    if way:
        import odc.stac  # noqa: F401 - imports are not counted
        import rioxarray  # noqa: F401

        import thess_agg_dagster.mosaic.composite  # noqa: F401

        started = time.perf_counter()
        WAYS[way](mosaics, out)
        print(time.perf_counter() - started, peak_megabytes())
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    pixels: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint16]]] = {}
    for _ in range(rounds):
        for name in WAYS:
            out.unlink(missing_ok=True)
            command = [
                sys.executable,
                "-m",
                "benchmarks.composite",
                "--size",
                str(size),
                "--lake",
                str(lake),
                "--way",
                name,
            ]
            text = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True).stdout
            seconds, megabytes = text.split()
            found[name].append((float(seconds), float(megabytes)))
            with rasterio.open(out) as file:
                pixels[name] = file.read(1, window=Window(0, 0, min(size, 2048), min(size, 2048)))
    base = statistics.median(seconds for seconds, _ in found["ours"])
    click.echo("| way | seconds | x ours | peak MB | equal to ours |\n|---|---|---|---|---|")
    for name, values in found.items():
        seconds, megabytes = (statistics.median(column) for column in zip(*values, strict=True))
        equal = "" if name == "bound" else f"{(pixels[name] == pixels['ours']).mean():.2%}"
        click.echo(f"| {name} | {seconds:.2f} | {seconds / base:.2f} | {megabytes:.0f} | {equal} |")


if __name__ == "__main__":
    main()
