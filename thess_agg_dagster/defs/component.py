"""A lake in YAML: ``type: thess_agg_dagster.ThessLake`` in a ``defs.yaml`` of any Dagster project, as many as there are lakes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Annotated, Any, Literal

import dagster as dg
from dagster.components import scaffold_component
from pydantic import BaseModel, Field, StringConstraints, create_model, field_validator

from thess_agg_dagster.catalogue_params import CatalogueParams
from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.defs.lake import definitions_of
from thess_agg_dagster.defs.lake_definition import LakeDefinition, Pace
from thess_agg_dagster.defs.resources import ParamsResource
from thess_agg_dagster.keys import LakeKeys
from thess_agg_dagster.lake.layout import DataLake, path_in
from thess_agg_dagster.lake.tile_template import TILES
from thess_agg_dagster.params import TimestampsAggregationParams

# A value that YAML leaves to be filled in: `"{{ env.BANDS }}"`.
_Template = Annotated[str, StringConstraints(pattern=r"\{\{.*\}\}")]


def _attributes(model: type[BaseModel], help_of: Mapping[str, str]) -> type[BaseModel]:
    """The fields of a model as YAML has them: each with its help, each may be left out, or be a template."""
    fields: dict[str, Any] = {
        name: (field.annotation | _Template | None, Field(default=None, description=help_of[name]))
        for name, field in model.model_fields.items()
    }
    return create_model(f"{model.__name__}Attributes", __base__=dg.Model, **fields)


_PARAMS = _attributes(
    TimestampsAggregationParams,
    {
        name: each.help + (f" Default: {each.shown_default}." if each.shown_default else "")
        for name, each in TimestampsAggregationParams.declared().items()
    },
)
_CATALOGUE = _attributes(
    CatalogueParams, {name: str(field.description) for name, field in CatalogueParams.model_fields.items()}
)


def _given(context: dg.ResolutionContext, attributes: BaseModel) -> dict[str, Any]:
    return dict(context.resolve_value(attributes.model_dump(exclude_unset=True)))


def _told(description: str) -> dg.Resolver:
    """What the schema says of an attribute. (Of a field's own description Dagster keeps nothing where there is a default.)"""
    told: dg.Resolver = dg.Resolver.default(description=description)
    return told


class _Scaffolded(BaseModel):
    """What ``dg scaffold defs thess_agg_dagster.ThessLake`` can be told."""

    root: str = Field(description="Root of the lake: a folder, or s3://bucket/prefix.")
    name: str | None = Field(
        default=None, description="Name of the lake. Default: that of the new folder of definitions."
    )


class _LakeScaffolder(dg.Scaffolder[_Scaffolded]):
    @classmethod
    def get_scaffold_params(cls) -> type[_Scaffolded]:
        return _Scaffolded

    def scaffold(self, request: dg.ScaffoldRequest[_Scaffolded]) -> None:
        asked = request.params
        name = LakeKeys(request.target_path.name if asked.name is None else asked.name).name
        scaffold_component(request, {"name": name, "root": asked.root})


@dg.scaffold_with(_LakeScaffolder)
class ThessLake(dg.Component, dg.Model, dg.Resolvable):
    """A lake: one Sentinel-2 mosaic per acquisition timestamp and band. Its assets, checks, sensors, jobs, schedules and
    resources."""

    name: Annotated[
        str,
        _told(
            "Name of the lake, of lowercase letters, digits and underscores. Asset keys begin with it, and the names of sensors, "
            "jobs and resources. Default: none, for the only lake of a Dagster."
        ),
    ] = ""
    root: Annotated[
        str, _told("Root of the lake: a folder (a relative one is in the project), or an address: s3://bucket/prefix.")
    ]
    tables: Annotated[str | None, _told("Folder of the tables. Default: `tables` in the lake.")] = None
    tiles: Annotated[
        str | None,
        _told(f"Where the tiles are: a template, `remote`, or both with a comma between. Default: `{TILES}`."),
    ] = None
    params: Annotated[
        TimestampsAggregationParams,
        dg.Resolver(
            lambda context, attributes: TimestampsAggregationParams(**_given(context, attributes)),
            model_field_type=_PARAMS,
            description="How timestamps are aggregated, and where missing tiles are downloaded from. What is not given comes from "
            "the environment (THESS_<PARAMETER>), for all lakes, or has its default.",
        ),
    ] = Field(default_factory=TimestampsAggregationParams)
    catalogue: Annotated[
        CatalogueParams,
        dg.Resolver(
            lambda context, attributes: CatalogueParams(**_given(context, attributes)),
            model_field_type=_CATALOGUE,
            description="What to search for in a STAC catalogue: an area and a first day, at least. What is not given comes from "
            "the environment (THESS_CATALOGUE_<PARAMETER>), for all lakes, or has its default.",
        ),
    ] = Field(default_factory=CatalogueParams)
    owners: Annotated[list[str], _told("Who answers for the assets: mail addresses and team:<name>.")] = Field(
        default_factory=list
    )
    list_max_age_hours: Annotated[
        float | None, _told("After so many hours without a new list, the list shows as overdue. Default: never.")
    ] = Field(default=None, ge=1 / 60)
    timestamps_per_run: Annotated[
        int | Literal["all"], _told("Timestamps that one run of a backfill takes, or all. Default: 1.")
    ] = 1
    sensor_seconds: Annotated[int, _told("Seconds between two looks of the sensors. Default: 30.")] = Field(
        default=30, ge=1
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return LakeKeys(value).name

    @field_validator("tiles")
    @classmethod
    def _tiles(cls, value: str | None) -> str | None:
        DataLake.at(".", tiles=value)
        return value

    @field_validator("timestamps_per_run")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{value} is not a number of timestamps, 1 or more, or 'all'")
        return value

    @classmethod
    @cache
    def model(cls) -> type[BaseModel]:
        # Dagster lets each field be a string, too, and then cannot say which of the parameters in it is wrong.
        derived = super().model()
        fields: dict[str, Any] = {
            name: (kind, derived.model_fields[name]) for name, kind in (("params", _PARAMS), ("catalogue", _CATALOGUE))
        }
        return create_model(derived.__name__, __base__=derived, **fields)

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        return dg.ComponentTypeSpec(
            description=" ".join(str(cls.__doc__).split()),
            produces=["asset", "asset_check", "schedule", "sensor", "job", "resource"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        root = path_in(context.project_root, self.root)
        tables = str(path_in(context.project_root, self.tables)) if self.tables else None
        return definitions_of(
            LakeDefinition(
                LakeKeys(self.name),
                DataLakeIOManager(data_lake=str(root), tables=tables, tiles=self.tiles),
                ParamsResource(**self.params.run_config()),
                self.catalogue,
                owners=self.owners,
                list_max_age=timedelta(hours=self.list_max_age_hours) if self.list_max_age_hours else None,
                timestamps_per_run=None if self.timestamps_per_run == "all" else self.timestamps_per_run,
                # One pace for all its sensors: where there are many lakes, nobody waits for each.
                pace=Pace(self.sensor_seconds, found_seconds=self.sensor_seconds),
                among_others=bool(self.name),
            )
        )
