"""What identifies the composites of a period, and whether they are due."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, RecordedAttempt
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.periods import MONTH, kind_of, period_of, quarter_of
from thess_agg_dagster.lake.published import COUNT, ITEM, NDVI, PERIOD, QUICKLOOK
from thess_agg_dagster.lake.time_serie import instant_of
from thess_agg_dagster.mosaic.bands import role_of
from thess_agg_dagster.mosaic.choices import BAND_BY_BAND
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.fingerprints import Fingerprints

#: Identifies how composites are made of given mosaics: raised only when the same mosaics give other pixels.
COMPOSITES_VERSION = 1

# The same for one method, where it alone gives other pixels. (After 0.2.0, max_ndvi compares NDVI without the offset.)
_METHOD_VERSIONS = {"max_ndvi": ".1"}


def members_of(period: str, published: Iterable[str]) -> list[str]:
    """The timestamps of a period among published ones, in order of time."""
    kind = kind_of(period)
    return sorted((key for key in published if period_of(key, kind) == period), key=instant_of)


def read_for(period: str, published: Iterable[str], params: TimestampsAggregationParams) -> tuple[str, list[str]]:
    """The quarter that stands in, if one does, and all timestamps that are read."""
    members = members_of(period, published)
    if not (params.quarter_stands_in and kind_of(period) == MONTH and members):
        return "", members
    quarter = quarter_of(period)
    return quarter, members_of(quarter, published)


def identify_mosaics(period: str, published: Mapping[str, Attempt]) -> str:
    """What identifies the published mosaics of a period, whatever is made of them."""
    members = members_of(period, published)
    # NDVI of timestamps is no part of a composite.
    return _digest([period], [(key, band) for key in members for band in published[key].bands if not band.derived_from])


def identify_period(
    period: str, published: Mapping[str, Attempt], params: TimestampsAggregationParams
) -> dict[str, str]:
    """Per band a short text that changes with what decides the pixels of its composite: parameters, and the mosaics."""
    _, read = read_for(period, published, params)
    records = [(key, band) for key in read for band in published[key].bands]
    together_bands = params.composite_method not in BAND_BY_BAND
    found = {}
    for band in params.bands:
        joint = together_bands and role_of(band) != "classes"
        of = {each for each in params.bands if role_of(each) != "classes"} if joint else {band}
        version = _METHOD_VERSIONS.get(params.composite_method, "") if joint else ""
        start = [f"{COMPOSITES_VERSION}{version}", params.composite_identity(), period, *members_of(period, published)]
        found[band] = _digest(start, [(key, record) for key, record in records if record.band in of])
    return found


def _digest(start: Sequence[str], records: Sequence[tuple[str, BandRecord]]) -> str:
    told = [list(start), *([key, each.band, each.inputs, each.output_checksum] for key, each in records)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def is_current(made: Attempt, published: Mapping[str, Attempt], params: TimestampsAggregationParams) -> bool:
    """Whether the composites of a success would be made the same again, by what was recorded of them."""
    now = identify_period(made.timestamp, published, params)
    recorded = {band.band: band.inputs for band in made.bands}
    return all(recorded.get(band) == inputs for band, inputs in now.items())


def is_due(
    period: str,
    last: RecordedAttempt | None,
    published: Mapping[str, Attempt],
    lake: DataLake,
    params: TimestampsAggregationParams,
    fingerprints: Fingerprints,
) -> bool:
    """Whether there is no success yet, or one of other mosaics or parameters, or something of it is gone.

    ``fingerprints`` tell how the files in ``lake.composites`` stand now.
    """
    if last is None or last.attempt.status != "success" or not is_current(last.attempt, published, params):
        return True
    shelf = lake.composites
    folder = shelf.folder_of(period, last.attempt.output_folder)
    files = [*params.bands, *(band.band for band in last.attempt.bands if band.band in (COUNT, PERIOD, NDVI))]
    expected = [shelf.manifest(period), folder / QUICKLOOK, *(folder / f"{name}.tif" for name in files)]
    if params.stac:
        expected.append(folder / ITEM)
    return not all(map(fingerprints, expected))


def due_among(
    asked: Iterable[str],
    latest: Mapping[str, RecordedAttempt],
    published: Mapping[str, Attempt],
    lake: DataLake,
    params: TimestampsAggregationParams,
) -> list[str]:
    """Of the periods asked for those with published timestamps that are due; ``latest`` are their latest attempts."""
    found = [key for key in asked if members_of(key, published)]
    if not found:
        return []
    fingerprints = lake.composites.published_fingerprints()
    return [key for key in found if is_due(key, latest.get(key), published, lake, params, fingerprints)]
