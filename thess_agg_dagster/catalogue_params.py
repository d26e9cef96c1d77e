"""Parameters of a catalogue search, declared like those of an aggregation in :mod:`thess_agg_dagster.params`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import ValidationInfo, field_validator

from thess_agg_dagster.catalogue.profiles import DEFAULT, PROFILES
from thess_agg_dagster.parameter import environment_field

if TYPE_CHECKING:
    from thess_agg_dagster.catalogue.outcome import Request

# What reads areas is imported where there is one: every process that loads the definitions imports this module.


class CatalogueParams(dg.ConfigurableResource):  # type: ignore[type-arg]
    """What to search for in a catalogue, and what to choose.

    Each parameter comes from the run config or the command line, otherwise from the environment as
    ``THESS_CATALOGUE_<NAME>`` (``_FROM`` and ``_TO`` are the dates).
    """

    aoi: str | None = environment_field(
        "catalogue_aoi", None, "Area: a GeoJSON or GeoPackage file, or a polygon as WKT."
    )
    from_date: str | None = environment_field("catalogue_from", None, "First day, e.g. 2023-01-01 (UTC).")
    to_date: str | None = environment_field("catalogue_to", None, "Last day, inclusive. Default: today.")
    profile: str = environment_field("catalogue_profile", DEFAULT, f"Catalogue: {', '.join(PROFILES)}.")
    stac_url: str | None = environment_field("catalogue_stac_url", None, "Any other STAC API. Default: the profile's.")
    collection: str | None = environment_field("catalogue_collection", None, "Collection. Default: the profile's.")
    max_cloud: float = environment_field(
        "catalogue_max_cloud",
        60.0,
        "Highest percentage of clouds over the area; unknown cloud cover passes. Default: 60.",
    )
    min_coverage: float = environment_field(
        "catalogue_min_coverage", 0.5, "Share of the area that an overpass must cover. Default: 0.5."
    )
    every: int | None = environment_field(
        "catalogue_every",
        None,
        "Only the best overpass near each anchor date, this many days apart. Default: all.",
    )
    upgrade: bool = environment_field(
        "catalogue_upgrade", False, "Replace listed products with newer ones of the same overpass, and add late tiles."
    )

    @field_validator("from_date", "to_date")
    @classmethod
    def _date(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError as error:
                name = str(info.field_name).removesuffix("_date")
                raise ValueError(f"{name}={value!r} is not a date such as 2023-01-31") from error
        return value

    @field_validator("profile")
    @classmethod
    def _profile(cls, value: str) -> str:
        if value not in PROFILES:
            raise ValueError(f"profile={value!r} is not one of {', '.join(PROFILES)}; for any other, set stac_url")
        return value

    @field_validator("stac_url")
    @classmethod
    def _stac_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "http://")):
            raise ValueError(f"stac_url={value!r} is not an address; give https://...")
        return value

    @field_validator("max_cloud", "min_coverage", "every")
    @classmethod
    def _range(cls, value: Any, info: ValidationInfo) -> Any:
        low, high = {"max_cloud": (0, 100), "min_coverage": (0, 1), "every": (1, 10_000)}[str(info.field_name)]
        if value is not None and not low <= value <= high:
            raise ValueError(f"{info.field_name}={value} is not between {low} and {high}")
        return value

    @field_validator("aoi")
    @classmethod
    def _aoi(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from thess_agg_dagster.mosaic.area import is_wkt

        # A run may start in another folder.
        return value if is_wkt(value) else str(Path(value).expanduser().absolute())

    def request(self, bands: Sequence[str]) -> Request | None:
        """The search request, or ``None`` if no area or no date is configured. Reads the aoi; raises ``AreaError`` and
        ``ValueError``."""
        if self.aoi is None or self.from_date is None:
            return None
        from thess_agg_dagster.catalogue.area import SearchArea
        from thess_agg_dagster.catalogue.choose import Thresholds
        from thess_agg_dagster.catalogue.outcome import Request
        from thess_agg_dagster.mosaic.area import read_area

        profile = PROFILES[self.profile]
        first = date.fromisoformat(self.from_date)
        last = date.fromisoformat(self.to_date) if self.to_date else datetime.now(UTC).date()
        if last < first:
            raise ValueError(f"to={last} is before from={first}")
        return Request(
            url=self.stac_url or profile.url,
            collection=self.collection or profile.collection,
            area=SearchArea.of(read_area(self.aoi)),
            first=first,
            last=last,
            bands=tuple(bands),
            thresholds=Thresholds(self.max_cloud, self.min_coverage),
            every=self.every,
            upgrade=self.upgrade,
        )
