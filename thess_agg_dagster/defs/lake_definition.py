"""A lake as Dagster knows it: what its assets, sensors and jobs are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from thess_agg_dagster.catalogue_params import CatalogueParams
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.resources import ParamsResource
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.params import TimestampsAggregationParams


@dataclass(frozen=True)
class Pace:
    """How often sensors look, and at how much."""

    seconds: int = 30
    """Between two looks of most sensors."""
    settle_seconds: float = 5
    """A file that changed less than this ago may still be in the making."""
    most_runs: int = 500
    """More runs than this are asked for over several ticks, each short enough for Dagster to answer for."""
    most_attempts: int = 5_000
    """So are more attempts looked up: Dagster takes about a millisecond to read one, and gives up on a tick after 60 s."""
    look_back: int = 1_000
    """Databases hand out ids before others see the event: one this much older than the newest may have come since."""


class HasResources(Protocol):
    """A context of Dagster's, of a run or of a sensor."""

    @property
    def resources(self) -> Any: ...


@dataclass(frozen=True)
class LakeDefinition:
    """Everything that Dagster is told of one lake."""

    keys: LakeKeys
    io_manager: DataLakeIOManager
    params: ParamsResource
    catalogue: CatalogueParams
    owners: Sequence[str] = ()
    """Who answers for the assets, as the UI shows it: mail addresses and ``team:<name>``."""
    list_max_age: timedelta | None = None
    """After so long without a new list, the list shows as overdue; ``None``: never."""
    timestamps_per_run: int | None = 1
    """Timestamps that one run of a backfill takes; ``None``: all."""
    pace: Pace = Pace()
    among_others: bool = False
    """Whether other lakes are defined in the same code location. Then not only its keys begin with the lake's name."""

    def named(self, name: str) -> str:
        """The name of one of this lake's sensors, jobs, schedules, ops or resources."""
        return self.keys.prefixed(name) if self.among_others else name

    @property
    def resources(self) -> Mapping[str, object]:
        """The resources of this lake, by name. (Two lakes cannot have one name: Dagster binds each name once.)"""
        found = {"io_manager": self.io_manager, "params": self.params, "catalogue_params": self.catalogue}
        return {self.named(name): resource for name, resource in found.items()}

    @property
    def io_manager_key(self) -> str:
        return self.named("io_manager")

    @property
    def needs(self) -> set[str]:
        """The resources that nearly all assets and sensors need."""
        return {self.io_manager_key, self.named("params")}

    def lake_of(self, context: HasResources) -> DataLake:
        """The lake in a run, which may have another as its run config says."""
        found: DataLakeIOManager = getattr(context.resources, self.io_manager_key)
        return found.lake

    def params_of(self, context: HasResources) -> TimestampsAggregationParams:
        """The parameters of a run: those of its run config, or else of this definition."""
        found: TimestampsAggregationParams = getattr(context.resources, self.named("params"))
        return found

    def catalogue_of(self, context: HasResources) -> CatalogueParams:
        """What a run is to search for in a catalogue."""
        found: CatalogueParams = getattr(context.resources, self.named("catalogue_params"))
        return found
