"""Which checks each asset of a lake has; :mod:`thess_agg_dagster.defs.checks` makes their results."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import dagster as dg

from thess_agg_dagster.keys import LakeKeys

_OF_TIMESTAMPS = {
    "inputs_complete": "Every tile of every band exists and can be read.",
    "crs_known": "Every tile has a CRS; says which were reprojected.",
    "dtype_safe": "Dtypes, nodata and radiometric offsets agree, for NDVI also the bands' pixels; a warning where the dtype was "
    "promoted, baselines are mixed, or a scene has no SCL to mask with.",
    "mosaics_valid": "The published mosaics, reopened: grid, dtype, valid pixels, and the same ground; a warning where none could "
    "be made.",
}
_OF_PERIODS = {
    "inputs_complete": "Every mosaic of every band exists and can be read; a warning where listed timestamps of the period are not "
    "published.",
    "mosaics_stack": "The mosaics have one fixed grid and dtype; a warning where they were made with different parameters, or "
    "carry different radiometric offsets.",
    "mosaics_valid": "The published composites, reopened: grid, dtype, valid pixels, and the same ground.",
}
_OF_THE_LIST = {
    "schema": "The file is there and has the columns it needs.",
    "rows": "Every row could be used, and there is at least one.",
}
_OF_THE_REPORT = {
    "complete": "Every registered timestamp is in each table.",
    "one_grid": "Published mosaics that were made with grid=fixed stack: per band the same CRS, bounds and shape at all "
    "timestamps, and the same ground for all bands.",
    "same_parameters": "All published timestamps were made with the same parameters, as far as these decide pixels.",
}
_OF_WHAT_IS_PUBLISHED = {
    "unchanged": "Every published mosaic is there, with the checksum, size, shape, dtype and CRS that were recorded.",
}


def aggregated_checks(keys: LakeKeys) -> Sequence[dg.AssetCheckSpec]:
    return _checks(_OF_TIMESTAMPS, keys.aggregated, keys.timestamps)


def composites_checks(keys: LakeKeys) -> Sequence[dg.AssetCheckSpec]:
    return _checks(_OF_PERIODS, keys.composites, keys.periods)


def time_serie_checks(keys: LakeKeys) -> Sequence[dg.AssetCheckSpec]:
    return _checks(_OF_THE_LIST, keys.time_serie)


def report_checks(keys: LakeKeys) -> Sequence[dg.AssetCheckSpec]:
    return _checks(_OF_THE_REPORT, keys.report)


def verification_checks(keys: LakeKeys) -> Sequence[dg.AssetCheckSpec]:
    return _checks(_OF_WHAT_IS_PUBLISHED, keys.verification)


def _checks(
    described: dict[str, str], asset: dg.AssetKey, partitions: dg.PartitionsDefinition[str] | None = None
) -> Sequence[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # Checks per partition are a preview feature of Dagster 1.13; they work, and the warning says nothing to a user.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(name, asset=asset, partitions_def=partitions, description=description)
            for name, description in described.items()
        ]
