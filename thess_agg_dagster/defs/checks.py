"""Asset checks: everything that can be wrong with inputs, mosaics and tables, each reported once and by name."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from thess_agg_dagster.audit.event_log import spelled_out
from thess_agg_dagster.audit.rows import COLUMNS, Common, long_cells
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import TimeSerie
from thess_agg_dagster.mosaic.choices import NoteKind
from thess_agg_dagster.storage.paths import open_text

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

    from thess_agg_dagster.mosaic.plan import MosaicPlan
    from thess_agg_dagster.timestamp.plan import TimestampPlan

# Lines of a check's details; the event log is no place for long lists.
_MOST_LINES = 100
_DETAILS = "details"
_DETAILS_SCHEMA = dg.TableSchema([dg.TableColumn("level"), dg.TableColumn("detail")])

# Notes of a plan that a person should look at: what the mosaic shows may not be what the tiles meant.
_LOOK_AT = frozenset[NoteKind]({"dtype", "mixed_baselines", "unmasked", "unknown_band"})


def check_plan(plan: TimestampPlan) -> Iterator[dg.AssetCheckResult]:
    """The checks that need no pixels, of a timestamp or a period."""
    yield from _check_period(plan) if plan.composed else _check_timestamp(plan)


def _check_timestamp(plan: TimestampPlan) -> Iterator[dg.AssetCheckResult]:
    from thess_agg_dagster.mosaic.grid import rasterio_crs
    from thess_agg_dagster.mosaic.tiles import crs_name

    faults: dict[str, list[str]] = {"inputs_complete": [], "crs_known": [], "dtype_safe": []}
    by_kind = {"unknown_crs": "crs_known"} | dict.fromkeys(
        ("dtype_conflict", "unknown_baseline", "grid_conflict"), "dtype_safe"
    )
    if not plan.scene_ids:
        faults["inputs_complete"].append("time_serie.csv lists no tiles")
    for problems in plan.problems.values():
        for problem in problems:
            faults[by_kind.get(problem.kind, "inputs_complete")].append(str(problem))
    mosaics = plan.merged.values()
    reprojected = [
        f"{m.band}: {count} of {len(m.tiles)} tiles reprojected to {crs_name(rasterio_crs(m.grid))}"
        for m in mosaics
        if (count := sum(tile.geobox.crs != m.grid.crs for tile in m.tiles))
    ]
    notes = [(note.kind, f"{m.band}: {note}") for m in mosaics for note in m.notes]
    yield result_of("inputs_complete", faults["inputs_complete"])
    yield result_of("crs_known", faults["crs_known"], remarks=reprojected)
    yield result_of(
        "dtype_safe",
        faults["dtype_safe"],
        doubts=[text for kind, text in notes if kind in _LOOK_AT],
        remarks=[text for kind, text in notes if kind not in _LOOK_AT],
    )


def _check_period(plan: TimestampPlan) -> Iterator[dg.AssetCheckResult]:
    missing = [f"{plan.timestamp} has no published mosaics"] if not plan.scene_ids else []
    unlike: list[str] = []
    for problems in plan.problems.values():
        for problem in problems:
            (unlike if problem.kind in ("grid_conflict", "unknown_baseline") else missing).append(str(problem))
    notes = dict.fromkeys(note for mosaic in plan.mosaics.values() for note in mosaic.notes)
    late = [note.text for note in notes if note.kind == "incomplete"]
    yield result_of("inputs_complete", missing, late)
    yield result_of("mosaics_stack", unlike, [note.text for note in notes if note.kind != "incomplete"])


def check_unplanned(message: str, others: Sequence[str] = ("crs_known", "dtype_safe")) -> Iterator[dg.AssetCheckResult]:
    """The checks of an attempt that failed before its tiles were inspected."""
    yield result_of("inputs_complete", [message])
    for name in others:
        yield result_of(name, doubts=[f"not checked, because {message}"])
    yield check_unmade(message)


def check_unmade(message: str, merging: bool = False) -> dg.AssetCheckResult:
    """The check of mosaics that were not made: unless ``merging`` found the problem, another check reports it."""
    why = f"not made, because {message}"
    return result_of("mosaics_valid", [why] if merging else [], [] if merging else [why])


def record_checks(context: dg.OutputContext, results: Iterable[dg.AssetCheckResult]) -> None:
    """Record check results when the IO manager fails, since Dagster then ignores what the asset yields afterwards.

    An ``OutputContext`` logs only observations. This does what Dagster does with the check results of an asset.
    """
    step = context.step_context
    for result in results:
        dg.DagsterEvent.asset_check_evaluation(step, result.to_asset_check_evaluation(step))


def check_mosaics(plan: TimestampPlan, folder: Path) -> dg.AssetCheckResult:
    """Reopen the published mosaics and compare them with the plan."""
    import rasterio

    from thess_agg_dagster.storage.gdal import gdal_env, gdal_name

    faults: list[str] = []
    doubts = _ground_doubts(list(plan.mosaics.values()))
    for band, mosaic in plan.mosaics.items():
        path = folder / f"{band}.tif"
        try:
            with gdal_env(), rasterio.open(gdal_name(path), driver="GTiff") as published:
                faults += [f"{path}: {fault}" for fault in _mosaic_faults(published, mosaic)]
                if _is_empty(published):
                    why = plan.why_empty(mosaic)
                    told = f"{path}: holds no valid pixel; {why or 'are all tiles empty here?'}"
                    (doubts if why else faults).append(told)
        except rasterio.RasterioIOError as error:
            faults.append(f"{path}: cannot be reopened ({error})")
    return result_of("mosaics_valid", faults, doubts)


def check_time_serie(series: TimeSerie) -> Iterator[dg.AssetCheckResult]:
    """The checks of a list that could be read."""
    yield result_of("schema")
    empty = [] if series.acquisitions else ["no usable rows: there is nothing to aggregate"]
    yield result_of("rows", [str(row) for row in series.refused], empty)


def failed_schema(message: str) -> dg.AssetCheckResult:
    """The check of a list that could not be read at all."""
    return result_of("schema", [message])


def unusable_list(keys: LakeKeys, message: str) -> dg.AssetCheckEvaluation:
    """The same, found by a sensor outside of any run."""
    failed = failed_schema(message)
    return dg.AssetCheckEvaluation(
        keys.time_serie,
        "schema",
        failed.passed,
        failed.metadata,
        severity=failed.severity,
        description=failed.description,
    )


def check_report(lake: DataLake, registered: Sequence[str]) -> dg.AssetCheckResult:
    """Read the tables back and look for every registered timestamp."""
    faults = []
    for name, columns in COLUMNS.items():
        path, at = lake.audit_table(name), columns.index("timestamp")
        with open_text(path) as file, long_cells():
            missing = sorted(set(registered) - {row[at] for row in csv.reader(file)})
        if missing:
            faults.append(f"{path}: lacks {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")
    return result_of("complete", faults)


def check_one_grid(made: Mapping[str, Common]) -> dg.AssetCheckResult:
    """Whether the mosaics of the listed timestamps stack, according to their records; applies once some have a fixed grid."""
    grounds: Counter[str] = Counter()
    grids: dict[str, Counter[str]] = {}
    bands = [(key, *mosaic) for key, each in made.items() for mosaic in each.mosaics]
    fixed = [each for each in bands if each[2]]
    for _, band, _, ground, pixels in fixed:
        grounds[ground] += 1
        grids.setdefault(band, Counter())[pixels] += 1
    others = dict.fromkeys(key for key, _, is_fixed, _, _ in bands if not is_fixed) if fixed else ()
    faults = [f"{key} has the grid of its tiles, not the fixed one; run it again with grid=fixed" for key in others]
    most = {band: (grounds.most_common(1)[0][0], found.most_common(1)[0][0]) for band, found in grids.items()}
    for key, band, _, ground, pixels in fixed:
        if (ground, pixels) != most[band]:
            faults.append(
                f"{key}: {band} covers {ground} with {pixels} pixels, most others {most[band][0]} with {most[band][1]}; "
                "run it again with the same parameters"
            )
    return result_of("one_grid", faults)


def check_same_parameters(made: Mapping[str, Common]) -> dg.AssetCheckResult:
    """Whether the mosaics of the listed timestamps were made with the same parameters. For those made before release 0.2,
    this is unknown."""
    known = {key: each.parameters for key, each in made.items() if each.parameters}
    most = Counter(known.values()).most_common(1)
    return result_of(
        "same_parameters",
        doubts=[
            f"{key}: {spelled_out(text)}; most others: {spelled_out(most[0][0])}; run it again with the same parameters"
            for key, text in known.items()
            if text != most[0][0]
        ],
    )


def _mosaic_faults(mosaic: DatasetReader, plan: MosaicPlan) -> Iterator[str]:
    rows, cols = plan.grid.shape
    if (mosaic.height, mosaic.width) != (rows, cols) or not mosaic.transform.almost_equals(plan.grid.affine):
        yield f"is not on the planned grid of {cols} x {rows} pixels"
    if mosaic.dtypes[0] != plan.dtype:
        yield f"has dtype {mosaic.dtypes[0]} instead of the planned {plan.dtype}"


def _is_empty(mosaic: DatasetReader) -> bool:
    """Whether a mosaic has no valid pixel. Ends at the first block that holds one, so it costs a block or two."""
    return not any(mosaic.read(1, window=window, masked=True).count() for _, window in mosaic.block_windows(1))


def _ground_doubts(plans: Sequence[MosaicPlan]) -> list[str]:
    """Bands of one timestamp cover the same ground: their edges differ by less than two of the coarsest pixels."""
    if not plans:
        return []
    import numpy as np

    reference = plans[0]
    found = []
    for plan in plans[1:]:
        pixel = max(abs(plan.grid.resolution.x), abs(reference.grid.resolution.x))
        gap = np.abs(np.subtract(plan.grid.boundingbox.bbox, reference.grid.boundingbox.bbox)).max()
        if plan.grid.crs != reference.grid.crs or gap >= 2 * pixel:
            found.append(f"{plan.band} and {reference.band} do not cover the same ground")
    return found


def details_of(metadata: Mapping[str, dg.MetadataValue]) -> list[str]:
    """The lines that a check recorded."""
    table = metadata.get(_DETAILS)
    return [str(row.data["detail"]) for row in table.records] if isinstance(table, dg.TableMetadataValue) else []


def result_of(
    name: str, faults: Sequence[str] = (), doubts: Sequence[str] = (), remarks: Sequence[str] = ()
) -> dg.AssetCheckResult:
    """Faults fail the check; doubts alone, as a warning; remarks pass."""
    found = [("fault", text) for text in faults] + [("warning", text) for text in doubts]
    found += [("remark", text) for text in remarks]
    rows = [dg.TableRecord({"level": level, "detail": text}) for level, text in found[:_MOST_LINES]]
    if more := len(found) - len(rows):
        rows += [dg.TableRecord({"level": "", "detail": f"and {more} more"})]
    return dg.AssetCheckResult(
        check_name=name,
        passed=not (faults or doubts),
        severity=dg.AssetCheckSeverity.ERROR if faults else dg.AssetCheckSeverity.WARN,
        description=found[0][1] if found else None,
        metadata={_DETAILS: dg.MetadataValue.table(rows, _DETAILS_SCHEMA)} if found else {},
    )
