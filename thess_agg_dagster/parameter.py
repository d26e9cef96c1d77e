"""How parameters are declared: once, in a model, for command line, launchpad, environment and docs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

#: A parameter ``x`` is read from the environment variable ``THESS_X``.
ENVIRONMENT_PREFIX = "THESS_"

#: What parameters are told under, in that order.
Group: TypeAlias = Literal["Mosaic", "Grid", "Area", "Masking", "Output", "Composites", "Download", "Running"]


class FromEnvironment:
    """A default that can be set in the environment, which is read each time the parameters are created."""

    def __init__(self, default: Any, name: str = "") -> None:
        self.default = default
        self.name = name

    def __call__(self) -> Any:
        return os.environ.get(ENVIRONMENT_PREFIX + self.name.upper(), "").strip() or self.default


def parameter(
    default: Any,
    group: Group,
    *,
    pixels: bool = False,
    composite: bool = False,
    metavar: str | None = None,
    unset: str | None = None,
) -> Any:
    """A field of :class:`Parameters`; the string below it is its help.

    Parameters
    ----------
    pixels
        Whether it decides what a mosaic holds, so that a timestamp is made again where it changes.
    composite
        The same of a composite, so that a period is made again.
    metavar
        How a value looks, where the type does not say it.
    unset
        What happens where it is not given, for a default of ``None``.
    """
    told: dict[str, Any] = {
        "group": group,
        "pixels": pixels,
        "composite": composite,
        "metavar": metavar,
        "unset": unset,
    }
    return Field(default_factory=FromEnvironment(default), validate_default=True, json_schema_extra=told)


def environment_field(name: str, default: Any, description: str) -> Any:
    """A field of any other model that can be set in the environment, under that name."""
    return Field(default_factory=FromEnvironment(default, name), validate_default=True, description=description)


@dataclass(frozen=True)
class Parameter:
    """Everything known about a parameter. ``kind`` is the type of its value or, if it has ``many``, of each value."""

    name: str
    kind: type
    many: bool
    allowed: tuple[str, ...]
    default: Any
    help: str
    group: Group
    pixels: bool
    composite: bool
    metavar: str | None
    unset: str | None

    @classmethod
    def of(cls, name: str, field: FieldInfo) -> Parameter:
        assert isinstance(field.default_factory, FromEnvironment)
        assert isinstance(field.json_schema_extra, dict)
        told: dict[str, Any] = field.json_schema_extra
        text = " ".join((field.description or "").split())
        return cls(name, *_type_of(field.annotation), default=field.default_factory.default, help=text, **told)

    @property
    def shown_default(self) -> str:
        """The default as a user would write it, or what happens if it is unset; ``""`` if neither is known."""
        if self.default is None or self.kind is bool:
            return self.unset or ""
        if self.many:
            return ",".join(map(str, self.default))
        return "nan" if _is_nan(self.default) else str(self.default)


def _type_of(annotation: Any) -> tuple[type, bool, tuple[str, ...]]:
    """The type of a value, whether there may be several, and which ones are allowed (none listed: any)."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = [kind for kind in get_args(annotation) if kind is not NoneType]
    many = get_origin(annotation) is list
    if many:
        (annotation,) = get_args(annotation)
    if get_origin(annotation) is Literal:
        return str, many, get_args(annotation)
    if issubclass(annotation, StrEnum):
        return str, many, tuple(map(str, annotation))
    return annotation, many, ()


class Parameters(BaseModel):
    """Fields made by :func:`parameter`, each set by the run config, otherwise the environment, otherwise its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            assert isinstance(field.default_factory, FromEnvironment)
            field.default_factory.name = name

    @classmethod
    @cache
    def declared(cls) -> dict[str, Parameter]:
        return {name: Parameter.of(name, field) for name, field in cls.model_fields.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _as_typed(cls, value: Any, info: ValidationInfo) -> Any:
        """Several values between commas, as a command line and the environment give them; one of the allowed ones."""
        declared = cls.declared()[str(info.field_name)]
        if declared.many and isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            try:
                return [declared.kind(part) for part in parts]
            except ValueError as error:
                raise ValueError(f"{info.field_name}={value!r} are not comma-separated numbers") from error
        if declared.allowed and value is not None and value not in declared.allowed:
            raise ValueError(f"{info.field_name}={value!r} is not one of {', '.join(declared.allowed)}")
        return value

    def values(self) -> dict[str, Any]:
        """All parameters as plain values."""
        given = {name: getattr(self, name) for name in self.declared()}
        return {name: str(value) if isinstance(value, StrEnum) else value for name, value in given.items()}

    def run_config(self) -> dict[str, Any]:
        """These parameters as run config, without unset ones and NaN, which JSON does not have."""
        return {name: value for name, value in self.values().items() if value is not None and not _is_nan(value)}

    @classmethod
    def markdown(cls) -> str:
        """One table per group."""
        return "\n".join(line for group in get_args(Group) for line in cls._table(group))

    @classmethod
    def _table(cls, group: str) -> Iterator[str]:
        yield f"\n## {group}\n\n| parameter | default | |\n|---|---|---|"
        for each in cls.declared().values():
            if each.group == group:
                default = "off" if each.kind is bool else each.shown_default
                if default and each.default is not None:
                    default = f"`{default}`"
                metavar = f" As `{each.metavar}`." if each.metavar else ""
                allowed = f" One of {', '.join(f'`{value}`' for value in each.allowed)}." if each.allowed else ""
                text = (each.help + metavar + allowed).replace("|", "\\|")
                yield f"| `{each.name}` | {default} | {text} |"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
