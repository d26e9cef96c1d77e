"""Ways to make one mosaic, ours and others', and the parts of the bound. Each runs in a process of its own:

``python -m benchmarks.ways WAY OUT TILE...`` prints the seconds it took, imports not counted, and the peak memory in MB.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import rasterio
from odc.geo.geom import Geometry
from rasterio.crs import CRS
from rasterio.merge import merge
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform, reproject
from rasterio.windows import Window

from benchmarks.measure import peak_megabytes, seconds
from benchmarks.newest import package_in
from benchmarks.tiles import scl_beside, stac_item
from thess_agg_dagster.mosaic.engine import write_mosaic
from thess_agg_dagster.mosaic.geotiff import creation_options
from thess_agg_dagster.mosaic.grid import crop, footprint_on
from thess_agg_dagster.mosaic.inspection import Source
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.mosaic.origins import OriginFiles
from thess_agg_dagster.mosaic.plan import MosaicPlan, plan_mosaic, plan_mosaics
from thess_agg_dagster.mosaic.target import Target
from thess_agg_dagster.storage.gdal import gdal_env

CORES = os.cpu_count() or 1


def plan(tiles: list[Path]) -> MosaicPlan:
    return plan_mosaic(tiles, "B04", MosaicOptions())


def ours(tiles: list[Path], out: Path) -> float:
    started = time.perf_counter()
    write_mosaic(plan(tiles), out)
    return time.perf_counter() - started


def ours_third(tiles: list[Path], out: Path) -> float:
    """An area of interest that is the middle third of the mosaic, from top to bottom."""
    box = plan(tiles).grid.boundingbox
    left, right = box.left + box.span_x / 3, box.right - box.span_x / 3
    corners = [(left, box.bottom), (right, box.bottom), (right, box.top), (left, box.top), (left, box.bottom)]
    area = Geometry({"type": "Polygon", "coordinates": [corners]}, box.crs)
    return _ours(tiles, out, MosaicOptions(target=Target(aoi=area)))


def ours_masked(tiles: list[Path], out: Path) -> float:
    return _ours(tiles, out, MosaicOptions(mask_scl_classes=(3, 8, 9, 10)))


def ours_harmonized(tiles: list[Path], out: Path) -> float:
    return _ours(tiles, out, MosaicOptions(harmonize=True))


def ours_coarse(tiles: list[Path], out: Path) -> float:
    return _ours(tiles, out, MosaicOptions(target=_coarse(tiles)))


def ours_levels(tiles: list[Path], out: Path) -> float:
    return _ours(tiles, out, MosaicOptions(target=_coarse(tiles), overviews=True))


def ours_cog(tiles: list[Path], out: Path) -> float:
    return _ours(tiles, out, MosaicOptions(format="cog"))


def ours_source(tiles: list[Path], out: Path) -> float:
    """Which tile each pixel came from, beside the mosaic."""
    return _ours(tiles, out, MosaicOptions(), OriginFiles(out.with_suffix(".source.tif")))


def ours_observations(tiles: list[Path], out: Path) -> float:
    """And how many tiles had a valid pixel, for which what lies behind the first is read, too."""
    files = OriginFiles(out.with_suffix(".source.tif"), out.with_suffix(".observations.tif"))
    return _ours(tiles, out, MosaicOptions(), files)


def _coarse(tiles: list[Path]) -> Target:
    """Pixels of twice the size."""
    return Target(resolution=2 * plan(tiles).grid.resolution.x)


def _ours(tiles: list[Path], out: Path, options: MosaicOptions, beside: OriginFiles | None = None) -> float:
    started = time.perf_counter()
    sources = [Source(tile, scl_beside(tile), 1000) for tile in tiles]
    plans, _ = plan_mosaics({"B04": sources}, options)
    write_mosaic(plans["B04"], out, beside=beside)
    seconds = time.perf_counter() - started
    for path in filter(None, (beside.source, beside.observations) if beside else ()):
        path.unlink()
    return seconds


def common_recipe(tiles: list[Path], out: Path) -> float:
    """What most notebooks do: WarpedVRT where the CRS differs, rasterio.merge in memory, write uncompressed."""
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        sources = _sources(stack, tiles)
        pixels, transform = merge(sources, nodata=0)
        profile = {"driver": "GTiff", "height": pixels.shape[1], "width": pixels.shape[2], "count": 1}
        profile |= {
            "dtype": "uint16",
            "crs": sources[0].crs,
            "transform": transform,
            "nodata": 0,
            "bigtiff": "IF_SAFER",
        }
        with rasterio.open(out, "w", **profile) as file:
            file.write(pixels)
    return time.perf_counter() - started


def merge_to_file(tiles: list[Path], out: Path) -> float:
    """``rasterio.merge(dst_path=...)`` over WarpedVRT, with our creation options."""
    options = {"driver": "GTiff"} | _creation_options(tiles)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        merge(_sources(stack, tiles), nodata=0, dst_path=out, dst_kwds=options)
    return time.perf_counter() - started


def reproject_then_merge(tiles: list[Path], out: Path) -> float:
    """Each tile of another CRS reprojected to a temporary file of its own, then ``rasterio.merge`` in memory: how pipelines
    that grew from scripts do it."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        with rasterio.open(tiles[0]) as first:
            crs = first.crs
        same = [_in_crs(tile, crs, Path(folder)) for tile in tiles]
        with contextlib.ExitStack() as stack:
            sources = [stack.enter_context(rasterio.open(path)) for path in same]
            pixels, transform = merge(sources, nodata=0)
            profile = sources[0].profile | {"height": pixels.shape[1], "width": pixels.shape[2], "transform": transform}
        profile |= {"driver": "GTiff", "nodata": 0, "compress": "lzw", "tiled": True, "bigtiff": "IF_SAFER"}
        with rasterio.open(out, "w", **profile) as file:
            file.write(pixels)
    return time.perf_counter() - started


def _in_crs(tile: Path, crs: CRS, folder: Path) -> Path:
    with rasterio.open(tile) as file:
        if file.crs == crs:
            return tile
        transform, width, height = calculate_default_transform(file.crs, crs, file.width, file.height, *file.bounds)
        profile = file.profile | {
            "driver": "GTiff",
            "crs": crs,
            "transform": transform,
            "width": width,
            "height": height,
        }
        path = folder / f"{tile.stem}.tif"
        with rasterio.open(path, "w", **profile) as copy:
            reproject(rasterio.band(file, 1), rasterio.band(copy, 1), src_nodata=0, dst_nodata=0, num_threads=CORES)
    return path


def odc_stac(tiles: list[Path], out: Path) -> float:
    """``odc.stac.load`` onto our grid, one overpass being one solar day; then to a file with our creation options."""
    import odc.stac
    import rioxarray  # noqa: F401 - writes the file

    grid, options = plan(tiles).grid, {"driver": "GTiff"} | _creation_options(tiles)
    items = [stac_item(tile, datetime(2023, 4, 1, 9, tzinfo=UTC)) for tile in tiles]
    started = time.perf_counter()
    chunks: Any = {"x": 2048, "y": 2048}
    stack = odc.stac.load(
        items, bands=["B04"], geobox=grid, dtype="uint16", nodata=0, groupby="solar_day", chunks=chunks
    )
    stack["B04"].squeeze("time", drop=True).rio.write_nodata(0).rio.to_raster(out, lock=Lock(), **options)
    return time.perf_counter() - started


def gdalwarp(tiles: list[Path], out: Path) -> float:
    """GDAL's own tool onto our grid. It lets the last file win, so the order is reversed."""
    return seconds(["gdalwarp", "-q", *_warp_arguments(tiles), *map(str, reversed(tiles)), str(out)])


def newest_warp(tiles: list[Path], out: Path) -> float:
    """The same with the newest GDAL."""
    return _newest("warp", out, _warp_arguments(tiles), tiles)


def _warp_arguments(tiles: list[Path]) -> list[str]:
    grid = plan(tiles).grid
    bounds = [str(value) for value in grid.boundingbox.bbox]
    arguments = f"-overwrite -multi -wo NUM_THREADS={CORES} -wm 512 -srcnodata 0 -dstnodata 0".split()
    arguments += ["-t_srs", str(grid.crs), "-te", *bounds, "-tr", str(grid.resolution.x), str(-grid.resolution.y)]
    return arguments + _gdal_options(tiles)


def vrt_translate(tiles: list[Path], out: Path) -> float:
    """``gdalbuildvrt`` + ``gdal_translate``: only for tiles of one zone; the last file wins here, too."""
    vrt = out.with_suffix(".vrt")
    nodata = ["-srcnodata", "0", "-vrtnodata", "0"]
    return seconds(["gdalbuildvrt", "-q", "-overwrite", *nodata, str(vrt), *map(str, reversed(tiles))]) + seconds(
        ["gdal_translate", "-q", "--config", "GDAL_NUM_THREADS", str(CORES), *_gdal_options(tiles), str(vrt), str(out)]
    )


def newest_vrt_translate(tiles: list[Path], out: Path) -> float:
    """The same with the newest GDAL."""
    return _newest("translate_a_vrt", out, _gdal_options(tiles), tiles)


def newest_mosaic(tiles: list[Path], out: Path) -> float:
    """``gdal raster mosaic``, GDAL's newer command for the same."""
    options = [part for name in _gdal_options(tiles) for part in (["--co"] if name == "-co" else [name])]
    return _newest("mosaic", out, ["--overwrite", "--src-nodata", "0", "--dst-nodata", "0", *options], tiles)


def _newest(tool: str, out: Path, arguments: list[str], tiles: list[Path]) -> float:
    command = [sys.executable, "-m", "benchmarks.newest", str(package_in(out.parent)), tool, str(out), *arguments]
    command += ["--", *map(str, reversed(tiles))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def bound_decode(tiles: list[Path], out: Path) -> float:
    """Every block of every tile decoded once, by all cores."""
    started = time.perf_counter()
    for tile in tiles:
        with contextlib.ExitStack() as stack:
            handles = [stack.enter_context(rasterio.open(tile)) for _ in range(CORES)]
            windows = [window for _, window in handles[0].block_windows(1)]

            def decode(part: int, handles: Any = handles, windows: Any = windows) -> None:
                for window in windows[part::CORES]:
                    handles[part].read(1, window=window)

            with ThreadPoolExecutor(CORES) as pool:
                list(pool.map(decode, range(CORES)))
    return time.perf_counter() - started


def bound_warp(tiles: list[Path], out: Path) -> float:
    """GDAL's nearest warp of every tile that lies off the grid, from uncompressed copies, by windows on all cores."""
    planned, seconds = plan(tiles), 0.0
    for tile in planned.reprojected:
        raw = out.with_suffix(".raw.tif")
        with rasterio.open(tile.path) as file, rasterio.open(raw, "w", **_raw_profile(file)) as copy:
            copy.write(file.read(1), 1)
        box = footprint_on(planned.grid, tile.geobox)
        window = crop(planned.grid, box)
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            options = {"crs": CRS.from_user_input(str(planned.grid.crs)), "transform": window.affine}
            options |= {"height": window.shape[0], "width": window.shape[1], "src_nodata": 0, "nodata": 0}
            views = [
                stack.enter_context(WarpedVRT(stack.enter_context(rasterio.open(raw)), **options)) for _ in range(CORES)
            ]
            parts = list(_windows(window.shape[0], window.shape[1], 2048))

            def warp(core: int, views: Any = views, parts: Any = parts) -> None:
                for part in parts[core::CORES]:
                    views[core].read(1, window=part)

            with ThreadPoolExecutor(CORES) as pool:
                list(pool.map(warp, range(CORES)))
        seconds += time.perf_counter() - started
        raw.unlink()
    return seconds


def bound_encode(tiles: list[Path], out: Path) -> float:
    """Our mosaic, already in memory, written once by all cores, its empty parts left out."""
    planned = plan(tiles)
    write_mosaic(planned, out)
    with rasterio.open(out) as file:
        pixels = file.read(1)
    options = creation_options(planned)
    out.unlink()
    parts = [part for part in _windows(pixels.shape[0], pixels.shape[1], 1024) if pixels[part.toslices()].any()]
    started = time.perf_counter()
    with gdal_env(), rasterio.open(out, "w", **options) as file:
        for part in parts:
            file.write(pixels[part.toslices()], 1, window=part)
    return time.perf_counter() - started


def _windows(height: int, width: int, size: int) -> Iterator[Window]:
    for top in range(0, height, size):
        for left in range(0, width, size):
            yield Window(left, top, min(size, width - left), min(size, height - top))


def _raw_profile(file: Any) -> dict[str, Any]:
    profile = {"driver": "GTiff", "width": file.width, "height": file.height, "count": 1, "dtype": file.dtypes[0]}
    return profile | {"crs": file.crs, "transform": file.transform, "tiled": True, "blockxsize": 512, "blockysize": 512}


WAYS: dict[str, Callable[[list[Path], Path], float]] = {
    "ours": ours,
    "ours, a third as aoi": ours_third,
    "ours, SCL mask": ours_masked,
    "ours, harmonized": ours_harmonized,
    "ours, 20 m": ours_coarse,
    "ours, 20 m from levels": ours_levels,
    "ours, cog": ours_cog,
    "ours, source": ours_source,
    "ours, source and observations": ours_observations,
    "common recipe": common_recipe,
    "rasterio.merge to file": merge_to_file,
    "reproject to a file, then rasterio.merge": reproject_then_merge,
    "odc-stac to file": odc_stac,
    "gdalwarp -multi": gdalwarp,
    "gdalwarp -multi, newest GDAL": newest_warp,
    "gdalbuildvrt + gdal_translate": vrt_translate,
    "gdalbuildvrt + gdal_translate, newest GDAL": newest_vrt_translate,
    "gdal raster mosaic, newest GDAL": newest_mosaic,
    "bound: decode": bound_decode,
    "bound: warp": bound_warp,
    "bound: encode": bound_encode,
}


def _sources(stack: contextlib.ExitStack, tiles: list[Path]) -> list[Any]:
    files = [stack.enter_context(rasterio.open(tile)) for tile in tiles]
    crs = files[0].crs
    return [
        stack.enter_context(WarpedVRT(file, crs=crs, src_nodata=0, nodata=0))
        if file.crs != crs or file.nodata is None
        else file
        for file in files
    ]


def _creation_options(tiles: list[Path]) -> dict[str, Any]:
    """How our GeoTIFF is laid out and compressed, without what describes this mosaic, for others to write alike."""
    options = creation_options(plan(tiles))
    about = ("driver", "width", "height", "count", "dtype", "crs", "transform", "nodata")
    return {name: value for name, value in options.items() if name not in about}


def _gdal_options(tiles: list[Path]) -> list[str]:
    return [part for name, value in _creation_options(tiles).items() for part in ("-co", f"{name.upper()}={value}")]


if __name__ == "__main__":
    name, out, *tiles = sys.argv[1:]
    print(WAYS[name]([Path(tile) for tile in tiles], Path(out)), peak_megabytes())
