"""The audit's view of a plan: rows for its bands, and the attempt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, BandStatus, TimestampStatus, status_of
from thess_agg_dagster.lake.layout import scene_of
from thess_agg_dagster.mosaic.grid import rasterio_crs
from thess_agg_dagster.mosaic.plan import MosaicPlan
from thess_agg_dagster.mosaic.tiles import crs_name
from thess_agg_dagster.timestamp.plan import TimestampPlan


def band_record(plan: TimestampPlan, mosaic: MosaicPlan, status: BandStatus, message: str) -> BandRecord:
    """A row of the band report for a band with a planned mosaic."""
    rows, cols = mosaic.grid.shape
    return BandRecord(
        band=mosaic.band,
        status=status,
        message=message,
        input_files=[str(tile.path) for tile in mosaic.tiles],
        crs=crs_name(rasterio_crs(mosaic.grid)),
        dtype=mosaic.dtype,
        nodata="nan" if mosaic.nodata != mosaic.nodata else mosaic.nodata,
        width=int(cols),
        height=int(rows),
        tiles=len({tile.scene_id for tile in mosaic.tiles}),
        reprojected_tiles=list(dict.fromkeys(tile.scene_id for tile in mosaic.reprojected)),
        grid=mosaic.options.target.grid,
        resolution=mosaic.grid.resolution.x,
        bounds=list(mosaic.grid.boundingbox.bbox),
        baselines=list(dict.fromkeys(scene.baseline for scene in plan.scenes if scene.baseline)),
        harmonized=any(layer.offset for layer in mosaic.layers),
        refetched=[
            f"{scene_of(path)}/{path.stem} {found}"
            for path in dict.fromkeys(mosaic.files())
            if (found := plan.refetched.get(path))
        ],
        inputs=plan.identities[mosaic.band],
        derived_from=plan.derived_from(mosaic.band),
    )


def unplanned_attempt(plan: TimestampPlan) -> Attempt:
    """The attempt that ends with planning: no tiles are listed, or a band has no plan."""
    if not plan.scene_ids:
        return _attempt(plan, "failed_no_tiles", plan.nothing)
    broken = ", ".join(plan.problems)
    records = [
        band_record(plan, mosaic, "skipped", f"not merged, because of {broken}") for mosaic in plan.mosaics.values()
    ]
    for band, problems in plan.problems.items():
        records.append(
            BandRecord(
                band=band,
                status=next((p.kind for p in problems if p.kind == "missing_input"), problems[0].kind),
                message="; ".join(map(str, problems)),
                input_files=[str(p.path) for p in problems if p.path and p.kind != "missing_input"],
                missing_files=[str(p.path) for p in problems if p.path and p.kind == "missing_input"],
            )
        )
    known = {*plan.mosaics, *plan.problems}
    records += [
        BandRecord(band, "skipped", f"not made, because of {broken}") for band in plan.asked if band not in known
    ]
    return _attempt(plan, status_of(records), _problem_message(plan), records)


def successful_attempt(plan: TimestampPlan, records: Sequence[BandRecord], folder: Path) -> Attempt:
    """The attempt whose mosaics are in ``folder``."""
    message = "; ".join(f"{record.band}: {record.message}" for record in records if record.message)
    return _attempt(plan, "success", message, records, str(folder))


def _attempt(
    plan: TimestampPlan, status: TimestampStatus, message: str, bands: Sequence[BandRecord] = (), folder: str = ""
) -> Attempt:
    return Attempt(
        plan.timestamp, status, message, bands, folder, plan.inputs, plan.scene_ids, parameters=plan.differing
    )


def _problem_message(plan: TimestampPlan) -> str:
    """All problems in one line: bands that share a scene and a reason are named together."""
    bands: dict[tuple[str, str], list[str]] = {}
    for band, problems in plan.problems.items():
        for problem in problems:
            where = plan.place_of(problem.path) if problem.path else ""
            bands.setdefault((where, problem.reason), []).append(band)
    return "; ".join(
        f"{', '.join(names)} of {where}: {reason}" if where else f"{', '.join(names)}: {reason}"
        for (where, reason), names in bands.items()
    )


def failed_attempt(plan: TimestampPlan, records: Sequence[BandRecord]) -> Attempt:
    """An attempt that had a plan but published nothing: finished bands are withheld, and the message names the
    problems."""
    failed = [record for record in records if record.status not in ("success", "skipped")]
    names = ", ".join(record.band for record in failed)
    withheld = [
        record
        if record.status != "success"
        else BandRecord(
            record.band, "skipped", f"made, but not published, because of {names}", input_files=record.input_files
        )
        for record in records
    ]
    message = "; ".join(f"{record.band}: {record.message}" for record in failed)
    return _attempt(plan, status_of(failed), message, withheld)
