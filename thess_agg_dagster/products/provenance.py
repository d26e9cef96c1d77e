"""Provenance: from which bytes, with which parameters and versions a mosaic was made; beside it, and inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rasterio import __gdal_version__

from thess_agg_dagster import __version__
from thess_agg_dagster.audit.outcome import BandRecord
from thess_agg_dagster.lake.checksums import BackgroundChecksums
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.timestamp.plan import TimestampPlan

#: What made a mosaic.
SOFTWARE = {"thess-agg-dagster": __version__, "GDAL": __gdal_version__}


def mosaic_tags(plan: MosaicPlan, timestamp: TimestampPlan, checksums: BackgroundChecksums) -> dict[str, str]:
    """The GeoTIFF tags of a mosaic; lists are in merge order, between ``|``."""
    return {
        "timestamp": timestamp.timestamp,
        "band": plan.band,
        "scenes": "|".join(tile.path.parent.name for tile in plan.tiles),
        "checksums": "|".join(str(checksums.of(tile.path)) for tile in plan.tiles),
        "merge_method": plan.options.merge_method,
        "resampling": "|".join(dict.fromkeys(layer.resampling.name for layer in plan.layers)),
        "parameters": timestamp.parameters,
        "software": "; ".join(f"{name} {version}" for name, version in SOFTWARE.items()),
    }


def timestamp_manifest(
    plan: TimestampPlan, records: Sequence[BandRecord], checksums: BackgroundChecksums, lake: Path
) -> str:
    """``manifest.json`` of a timestamp: what was read (paths within the lake) and written, and how."""

    def read(path: Path) -> dict[str, object]:
        return {"file": str(path.relative_to(lake)), "bytes": path.stat().st_size, "checksum": str(checksums.of(path))}

    manifest = {
        "timestamp": plan.timestamp,
        "scenes": plan.scene_ids,
        "software": SOFTWARE,
        "parameters": json.loads(plan.parameters),
        "inputs": {band: [read(path) for path in mosaic.files()] for band, mosaic in plan.mosaics.items()},
        "outputs": [
            {"file": Path(record.output_path).name, "bytes": record.bytes, "checksum": record.output_checksum}
            for record in records
        ],
    }
    return json.dumps(manifest, indent=2) + "\n"
