"""Names of the assets and their partitions in Dagster.

Several lakes can share one Dagster if each is a code location of its own, with ``THESS_LAKE=<name>`` in the environment
of its processes: all its keys then begin with that name.
"""

import os
import re

import dagster as dg

#: Name of the lake among others; empty: it is the only one.
LAKE = os.environ.get("THESS_LAKE", "").strip()
if LAKE and not re.fullmatch(r"[a-z][a-z0-9_]*", LAKE, re.ASCII):
    raise ValueError(f"THESS_LAKE={LAKE!r} is not a name of lowercase letters, digits and underscores")

_PREFIX = [LAKE] if LAKE else []

CATALOGUE = dg.AssetKey([*_PREFIX, "catalogue"])
TIME_SERIE = dg.AssetKey([*_PREFIX, "time_serie"])
RAW_TILES = dg.AssetKey([*_PREFIX, "cache", "s2"])
AGGREGATED = dg.AssetKey([*_PREFIX, "data_raw", "aggregated"])
#: The same mosaics, looked at period by period: what composites are made of.
MOSAICS_BY_PERIOD = dg.AssetKey([*_PREFIX, "data_raw", "aggregated_by_period"])
COMPOSITES = dg.AssetKey([*_PREFIX, "data_raw", "composites"])
REPORT = dg.AssetKey([*_PREFIX, "timestamps_aggregation"])
VERIFICATION = dg.AssetKey([*_PREFIX, "published_mosaics"])
#: What this lake's runs make.
MADE = frozenset({CATALOGUE, TIME_SERIE, AGGREGATED, COMPOSITES, REPORT, VERIFICATION})

#: Keys are the texts of ``acq_datetime``; the ``time_serie`` asset registers them.
timestamps = dg.DynamicPartitionsDefinition(name="_".join([*_PREFIX, "timestamp"]))
#: Keys are months and quarters with timestamps, ``2023-04`` and ``2023-Q2``, of the kinds that ``composites`` asks for.
periods = dg.DynamicPartitionsDefinition(name="_".join([*_PREFIX, "period"]))

#: Who answers for the assets, as the UI shows it: ``THESS_OWNERS``, mail addresses and ``team:<name>``, between commas.
OWNERS = [owner for part in os.environ.get("THESS_OWNERS", "").split(",") if (owner := part.strip())]


def group(name: str) -> str:
    """The group of an asset: `inputs`, `mosaics` or `audit`, of this lake."""
    return "_".join([*_PREFIX, name])
