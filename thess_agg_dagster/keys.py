"""Names of a lake's assets and their partitions in Dagster.

Several lakes can share one Dagster if each has a name, with which all its keys begin.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import dagster as dg


@dataclass(frozen=True)
class LakeKeys:
    """The names of one lake. Raises ``ValueError`` unless ``name`` is one of lowercase letters, digits and underscores."""

    #: Name of the lake among others; empty: it is the only one.
    name: str = ""

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"[a-z][a-z0-9_]*", self.name, re.ASCII):
            raise ValueError(f"{self.name!r} is not a name of lowercase letters, digits and underscores")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> LakeKeys:
        """Of the lake called ``THESS_LAKE``."""
        try:
            return cls(environment.get("THESS_LAKE", "").strip())
        except ValueError as error:
            raise ValueError(f"THESS_LAKE={error}") from error

    def _key(self, *path: str) -> dg.AssetKey:
        return dg.AssetKey([self.name, *path] if self.name else path)

    @cached_property
    def catalogue(self) -> dg.AssetKey:
        return self._key("catalogue")

    @cached_property
    def time_serie(self) -> dg.AssetKey:
        return self._key("time_serie")

    @cached_property
    def raw_tiles(self) -> dg.AssetKey:
        return self._key("cache", "s2")

    @cached_property
    def aggregated(self) -> dg.AssetKey:
        return self._key("data_raw", "aggregated")

    @cached_property
    def mosaics_by_period(self) -> dg.AssetKey:
        """The same mosaics, looked at period by period: what composites are made of."""
        return self._key("data_raw", "aggregated_by_period")

    @cached_property
    def composites(self) -> dg.AssetKey:
        return self._key("data_raw", "composites")

    @cached_property
    def report(self) -> dg.AssetKey:
        return self._key("timestamps_aggregation")

    @cached_property
    def verification(self) -> dg.AssetKey:
        return self._key("published_mosaics")

    @cached_property
    def made(self) -> frozenset[dg.AssetKey]:
        """What this lake's runs make."""
        made = self.catalogue, self.time_serie, self.aggregated, self.composites, self.report, self.verification
        return frozenset(made)

    @cached_property
    def timestamps(self) -> dg.DynamicPartitionsDefinition:
        """Keys are the texts of ``acq_datetime``; the ``time_serie`` asset registers them."""
        return dg.DynamicPartitionsDefinition(name=self.prefixed("timestamp"))

    @cached_property
    def periods(self) -> dg.DynamicPartitionsDefinition:
        """Keys are months and quarters with timestamps, ``2023-04`` and ``2023-Q2``, of the kinds that ``composites`` asks
        for."""
        return dg.DynamicPartitionsDefinition(name=self.prefixed("period"))

    def prefixed(self, name: str) -> str:
        """A name that must not be that of another lake's, such as that of a group of assets."""
        return f"{self.name}_{name}" if self.name else name


#: The names of this process's lake: what the command works on, and what assets of your own in a code location of their own
#: can depend on. Definitions of lakes in YAML know nothing of them.
HERE = LakeKeys.from_environment()

CATALOGUE, TIME_SERIE, RAW_TILES = HERE.catalogue, HERE.time_serie, HERE.raw_tiles
AGGREGATED, MOSAICS_BY_PERIOD, COMPOSITES = HERE.aggregated, HERE.mosaics_by_period, HERE.composites
REPORT, VERIFICATION = HERE.report, HERE.verification
timestamps, periods = HERE.timestamps, HERE.periods
