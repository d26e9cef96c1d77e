"""The newest GDAL that can be had as a wheel: the library inside a newer rasterio, called through GDAL's C API, which any Python can.

``python -m benchmarks.newest PACKAGE TOOL OUT ARGUMENT... -- TILE...`` does what the command-line tool of that name does with
these arguments and prints the seconds. Nothing of the older GDAL is in its process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

WHEEL = "rasterio==1.5.2"
#: The Python that the wheel is for; it is not imported.
PYTHON = "3.12"


def package_in(folder: Path) -> Path:
    """Where the wheel is unpacked, below this folder. Raises ``CalledProcessError`` where pip finds none."""
    package = folder / f"newest-{WHEEL.replace('==', '-')}"
    if not package.exists():
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, WHEEL], check=True)
        with zipfile.ZipFile(next(folder.glob(f"{WHEEL.replace('==', '-')}-*.whl"))) as wheel:
            wheel.extractall(partial := package.with_suffix(".partial"))
        partial.rename(package)
    return package


class Gdal:
    """A few functions of GDAL's C API."""

    def __init__(self, package: Path) -> None:
        os.environ["PROJ_DATA"] = str(package / "rasterio" / "proj_data")
        os.environ["GDAL_DATA"] = str(package / "rasterio" / "gdal_data")
        self._library = ctypes.CDLL(str(next((package / "rasterio.libs").glob("libgdal-*"))))
        self._library.GDALAllRegister()
        self._set = self._function("CPLSetConfigOption", None, ctypes.c_char_p, ctypes.c_char_p)
        self._open = self._function(
            "GDALOpenEx", ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, *[ctypes.c_void_p] * 3
        )
        self._close = self._function("GDALClose", ctypes.c_int, ctypes.c_void_p)
        self._set(b"GDAL_NUM_THREADS", str(os.cpu_count()).encode())

    def warp(self, out: str, arguments: Sequence[str], tiles: Sequence[str]) -> None:
        """``gdalwarp``."""
        options = self._options("GDALWarpAppOptionsNew", arguments)
        files = self._datasets(tiles)
        kinds = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, *[ctypes.c_void_p] * 3]
        warp = self._function("GDALWarp", ctypes.c_void_p, *kinds)
        self._close(_done(warp(out.encode(), None, len(tiles), files, options, None)))

    def translate_a_vrt(self, out: str, arguments: Sequence[str], tiles: Sequence[str]) -> None:
        """``gdalbuildvrt``, then ``gdal_translate``."""
        kinds = [ctypes.c_char_p, ctypes.c_int, *[ctypes.c_void_p] * 4]
        build = self._function("GDALBuildVRT", ctypes.c_void_p, *kinds)
        options = self._options("GDALBuildVRTOptionsNew", ["-srcnodata", "0", "-vrtnodata", "0"])
        vrt = _done(build(b"", len(tiles), self._datasets(tiles), None, options, None))
        translate = self._function("GDALTranslate", ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_void_p] * 3)
        self._close(_done(translate(out.encode(), vrt, self._options("GDALTranslateOptionsNew", arguments), None)))

    def mosaic(self, out: str, arguments: Sequence[str], tiles: Sequence[str]) -> None:
        """``gdal raster mosaic``."""
        registry = self._function("GDALGetGlobalAlgorithmRegistry", ctypes.c_void_p)()
        named = [ctypes.c_void_p, ctypes.c_char_p]
        raster = self._function("GDALAlgorithmRegistryInstantiateAlg", ctypes.c_void_p, *named)(registry, b"raster")
        tool = self._function("GDALAlgorithmInstantiateSubAlgorithm", ctypes.c_void_p, *named)(raster, b"mosaic")
        given = _strings([*arguments, *tiles, out])
        parse = self._function("GDALAlgorithmParseCommandLineArguments", ctypes.c_bool, *[ctypes.c_void_p] * 2)
        run = self._function("GDALAlgorithmRun", ctypes.c_bool, *[ctypes.c_void_p] * 3)
        finish = self._function("GDALAlgorithmFinalize", ctypes.c_bool, ctypes.c_void_p)
        _done(parse(tool, given) and run(tool, None, None) and finish(tool))

    def _function(self, name: str, result: type | None, *arguments: type) -> Callable[..., int]:
        found: Callable[..., int] = self._library[name]
        found.restype, found.argtypes = result, arguments  # type: ignore[attr-defined]
        return found

    def _options(self, name: str, arguments: Sequence[str]) -> int:
        make = self._function(name, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        return _done(make(_strings(arguments), None))

    def _datasets(self, tiles: Sequence[str]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * len(tiles))(
            *(_done(self._open(tile.encode(), 0, None, None, None)) for tile in tiles)
        )


def _strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(texts) + 1))(*(text.encode() for text in texts), None)


def _done(result: int) -> int:
    if not result:
        raise SystemExit("GDAL said why")
    return result


def main(package: str, tool: str, out: str, given: Sequence[str]) -> None:
    gdal = Gdal(Path(package))
    split = list(given).index("--")
    arguments, tiles = given[:split], given[split + 1 :]
    started = time.perf_counter()
    getattr(gdal, tool)(out, arguments, tiles)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
