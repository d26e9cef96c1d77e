"""The lake that the environment describes: ``DATA_LAKE`` and what begins with ``THESS_``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta

from thess_agg_dagster.catalogue_params import CatalogueParams
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.lake_definition import LakeDefinition, Pace
from thess_agg_dagster.defs.resources import ParamsResource
from thess_agg_dagster.keys import HERE


def lake_of_environment(environment: Mapping[str, str] = os.environ) -> LakeDefinition:
    """The lake of this process. Raises ``ValueError`` for what cannot be used."""
    owners = environment.get("THESS_OWNERS", "").split(",")
    return LakeDefinition(
        HERE,
        DataLakeIOManager.from_environment(environment),
        ParamsResource.from_environment(),
        CatalogueParams(),
        owners=[owner for part in owners if (owner := part.strip())],
        list_max_age=_list_max_age(environment.get("THESS_LIST_MAX_AGE_HOURS", "").strip()),
        timestamps_per_run=_timestamps_per_run(environment.get("THESS_TIMESTAMPS_PER_RUN", "").strip() or "1"),
        pace=Pace(_sensor_seconds(environment.get("THESS_SENSOR_SECONDS", "").strip() or "30")),
    )


def _list_max_age(given: str) -> timedelta | None:
    if not given:
        return None
    hours = float(given) if re.fullmatch(r"\d{1,6}(\.\d+)?", given) else 0
    if hours < 1 / 60:
        raise ValueError(f"THESS_LIST_MAX_AGE_HOURS={given!r} is not a number of hours, a minute or more")
    return timedelta(hours=hours)


def _timestamps_per_run(given: str) -> int | None:
    if given == "all":
        return None
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"THESS_TIMESTAMPS_PER_RUN={given!r} is not a number of timestamps, 1 or more, or 'all'")
    return int(given)


def _sensor_seconds(given: str) -> int:
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"THESS_SENSOR_SECONDS={given!r} is not a number of seconds, 1 or more")
    return int(given)


LAKE = lake_of_environment()
