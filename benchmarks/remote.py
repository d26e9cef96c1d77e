"""Tiles that are read where they are, against tiles that are downloaded first: seconds, bytes and memory, in one run.

``python -m benchmarks.remote [--pixel 20] [--rounds 3] FOLDER`` serves three tiles of two zones on loopback, from a process
of its own, and makes the mosaic of an area, its middle third, in both ways in turn. A link has a round trip, which every
request and every new connection waits for, and a bandwidth, which connections share. FOLDER keeps the tiles.
"""

from __future__ import annotations

import json
import multiprocessing
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import dagster as dg
import rasterio
import rasterio.shutil

from benchmarks.measure import own_peak_megabytes
from benchmarks.tiles import CASES, make_tile
from benchmarks.ways import plan
from thess_agg_dagster.keys import AGGREGATED, TIME_SERIE
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.runs.batch import run_asset

TIMESTAMP = "2023-02-02 09:21:09.024000+00:00"
WAYS = {"downloaded first": "", "`tiles=remote`": "remote"}
_PIECE = 2**16


@dataclass(frozen=True)
class Link:
    """Seconds of a round trip, and bytes a second (0: as fast as the machine is)."""

    name: str
    round_trip: float = 0
    bandwidth: float = 0


LINKS = (Link("none"), Link("20 ms, 50 MB/s", 0.02, 50e6), Link("50 ms, 10 MB/s", 0.05, 10e6))


@contextmanager
def serving(folder: Path, link: Link) -> Iterator[tuple[str, Connection]]:
    """The address of a server of a folder's files, and its end of a pipe: what is sent there is answered with its counts."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, link, there), daemon=True)
    process.start()
    try:
        yield str(here.recv()), here
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, link: Link, pipe: Connection) -> None:
    wire, counts = threading.Lock(), {"bytes": 0, "requests": 0, "connections": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            counts["connections"] += 1
            time.sleep(link.round_trip)
            super().setup()

        def do_GET(self) -> None:
            counts["requests"] += 1
            time.sleep(link.round_trip)
            path = folder / self.path.rpartition("/")[2]
            size, asked = path.stat().st_size, self.headers.get("Range")
            first, _, last = (asked or f"bytes=0-{size - 1}").removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or size) + 1, size)
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            with path.open("rb") as file:
                file.seek(start)
                for at in range(start, stop, _PIECE):
                    self._send(file.read(min(_PIECE, stop - at)))

        def _send(self, piece: bytes) -> None:
            if link.bandwidth:
                with wire:
                    time.sleep(len(piece) / link.bandwidth)
            counts["bytes"] += len(piece)
            self.wfile.write(piece)

        def log_message(self, *args: object) -> None:
            pass

    socketserver.TCPServer.request_queue_size = 64
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pipe.send(f"http://127.0.0.1:{server.server_port}")
        while pipe.recv():
            pipe.send(counts)


def make_lake(root: Path, tiles: list[Path], url: str) -> DataLake:
    """A lake whose tiles are at their addresses only."""
    lake = DataLake(root)
    ids = [f"S2B_MSIL2A_20230202T092109_N0510_R093_{tile.name[:6]}_20240815T155145" for tile in tiles]
    for scene_id, tile in zip(ids, tiles, strict=True):
        item = lake.scene_item(scene_id)
        item.parent.mkdir(parents=True, exist_ok=True)
        item.write_text(json.dumps({"assets": {"B04": {"href": f"{url}/{tile.name}"}}}))
    lake.tables_folder.mkdir(parents=True)
    lake.time_serie.write_text(f"acq_datetime,tile_ids\n{TIMESTAMP},{'|'.join(ids)}\n")
    return lake


def make(root: Path, way: str, url: str, area: str) -> None:
    """Make the mosaic in this process; prints seconds and the peak memory in MB."""
    lake = {"io_manager": {"config": {"data_lake": str(root), "tiles": WAYS[way] or DataLake(root).tiles}}}
    params = {"config": {"bands": ["B04"], "download_from": [url], "aoi": area}}
    with dg.DagsterInstance.ephemeral() as instance:
        run_asset(instance, lake | {"params": params}, TIME_SERIE)
        started = time.perf_counter()
        run_asset(instance, lake | {"params": params}, AGGREGATED, TIMESTAMP)
        print(time.perf_counter() - started, own_peak_megabytes())


def third(tiles: list[Path]) -> str:
    """The middle third of the mosaic, from top to bottom."""
    grid = plan(tiles).grid
    assert grid.crs is not None
    box = grid.boundingbox
    left, right = box.left + box.span_x / 3, box.right - box.span_x / 3
    ring = [(left, box.bottom), (right, box.bottom), (right, box.top), (left, box.top), (left, box.bottom)]
    return f"SRID={grid.crs.to_epsg()};POLYGON(({', '.join(f'{x} {y}' for x, y in ring)}))"


def measure(tiles: list[Path], way: str, link: Link, area: str) -> tuple[float, float, float, int]:
    """Seconds, peak MB, MB on the wire, and requests."""
    with tempfile.TemporaryDirectory(dir=tiles[0].parent) as root, serving(tiles[0].parent, link) as (url, server):
        make_lake(Path(root), tiles, url)
        command = [sys.executable, "-m", "benchmarks.remote", "--one", way, root, url, area]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, megabytes = map(float, output.split()[-2:])
        server.send(True)
        counts: dict[str, Any] = server.recv()
        (mosaic,) = Path(root).rglob("data_raw/aggregated/*/B04.tif")
        with rasterio.open(mosaic) as file:
            assert (file.read(1) > 0).mean() > 0.5
    return seconds, megabytes, counts["bytes"] / 1e6, counts["requests"]


def make_tiles(folder: Path, pixel: int, jpeg2000: bool) -> list[Path]:
    tiles = [make_tile(folder, name, pixel, jpeg2000) for name in CASES["two zones"]]
    if jpeg2000:
        return tiles
    cogs = [tile.with_suffix(".cog") for tile in tiles]
    for tile, cog in zip(tiles, cogs, strict=True):
        if not cog.exists():
            rasterio.shutil.copy(tile, cog, driver="COG", compress="DEFLATE", predictor="YES", blocksize=512)
    return cogs


@click.command()
@click.option("--pixel", default=20, help="Of the tiles, in metres: 10 is full size.")
@click.option("--rounds", default=3)
@click.option("--one", nargs=4, hidden=True)
@click.argument("folder", default="bench-lake", type=click.Path(path_type=Path))
def main(pixel: int, rounds: int, one: tuple[str, str, str, str] | None, folder: Path) -> None:
    if one:
        way, root, url, area = one
        make(Path(root), way, url, area)
        return
    folder.mkdir(exist_ok=True)
    print(
        "| tiles | link | way | seconds | x downloaded | MB on the wire | requests | peak MB |\n|---|---|---|---|---|---|---|---|"
    )
    for kind in ("COG", "JPEG 2000"):
        tiles = make_tiles(folder, pixel, kind == "JPEG 2000")
        area = third(tiles)
        for link in LINKS:
            rows: dict[str, list[tuple[float, float, float, int]]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    rows[way].append(measure(tiles, way, link, area))
            first = statistics.median(row[0] for row in rows["downloaded first"])
            for way, found in rows.items():
                seconds, _, sent, requests = (statistics.median(column) for column in zip(*found, strict=True))
                peak = max(row[1] for row in found)
                print(
                    f"| {kind} | {link.name} | {way} | {seconds:.1f} | {seconds / first:.2f} | {sent:.0f} | {requests:.0f} | {peak:.0f} |"
                )
                print(f"  {[round(row[0], 1) for row in found]}", file=sys.stderr)


if __name__ == "__main__":
    main()
