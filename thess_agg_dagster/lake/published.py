"""The files that are published of a timestamp (or a period), and its manifest, which names them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thess_agg_dagster.lake.run_names import is_run
from thess_agg_dagster.storage.paths import is_remote, read_if_there

QUICKLOOK, MANIFEST, ITEM = "quicklook.jpg", "manifest.json", "item.json"

#: Beside the bands: which scene each pixel came from, and how many scenes had one. No band may be called so.
SOURCE, OBSERVATIONS = "source", "observations"

#: Among the bands of a composite: how many observations each pixel had, whose they are (the month's, or the quarter's that
#: stands in), and NDVI. No band may be called so where composites are made.
COUNT, PERIOD, NDVI = "count", "period", "NDVI"
COMPOSITE_FILES = (COUNT, PERIOD, NDVI)


def is_beside(name: str) -> bool:
    """Whether a GeoTIFF of that name (without ``.tif``) is not a band itself, but describes the bands."""
    return name in (SOURCE, OBSERVATIONS) or name.startswith(f"{SOURCE}_")


@dataclass(frozen=True)
class Published:
    """The names of a timestamp's GeoTIFFs, and the folder with these and the other published files."""

    folder: Path
    names: Sequence[str] = ()

    @property
    def bands(self) -> list[str]:
        return [band for name in self.names if not is_beside(band := name.removesuffix(".tif"))]

    def mosaic(self, band: str) -> Path:
        return self.folder / f"{band}.tif"

    @property
    def quicklook(self) -> Path:
        return self.folder / QUICKLOOK

    @property
    def item(self) -> Path:
        """The STAC item, where there is one."""
        return self.folder / ITEM


def published_in(folder: Path) -> Published:
    """The files published in a timestamp's folder; none if it does not exist. Raises ``OSError``."""
    if not is_remote(folder):
        return Published(folder, sorted(path.name for path in folder.glob("*.tif") if path.is_file()))
    return named_by(read_manifest(folder / MANIFEST), folder)


def named_by(manifest: Mapping[str, Any], folder: Path) -> Published:
    """The published files according to a manifest in a timestamp's folder."""
    files = [str(each.get("file", "")) for each in outputs_of(manifest)]
    run = files[0].rpartition("/")[0] if files else ""
    return Published(folder / run if is_run(run) else folder, sorted(file.rpartition("/")[2] for file in files))


def outputs_of(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a manifest tells of each published file."""
    outputs = manifest.get("outputs")
    return [each for each in outputs if isinstance(each, dict)] if isinstance(outputs, list) else []


def read_manifest(path: Path) -> Mapping[str, Any]:
    """A ``manifest.json``; empty if it is missing or invalid. Raises ``OSError`` if a store does not answer."""
    try:
        manifest = json.loads(read_if_there(path) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
