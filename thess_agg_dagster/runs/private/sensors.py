"""Sensors that look into a Dagster instance which stays open.

Dagster opens one for each tick and looks through all migrations of its databases for that: more than half of a tick. There is no
public way to hand an instance to a tick in a code server.
"""

from __future__ import annotations

import threading
from typing import Any

import dagster as dg

from thess_agg_dagster.runs.private import InstanceRef

_open: dict[str, dg.DagsterInstance] = {}
_opening = threading.Lock()


class SensorOfOpenInstance(dg.SensorDefinition):
    """A sensor whose ticks in one process share an instance."""

    def evaluate_tick(self, context: dg.SensorEvaluationContext) -> Any:
        if context._instance is None and context.instance_ref is not None:
            context._instance = _opened(context.instance_ref)
        return super().evaluate_tick(context)

    def with_attributes(self, **changes: Any) -> dg.SensorDefinition:
        """Dagster makes a copy of every sensor that has a target, of its own class."""
        copy = super().with_attributes(**changes)
        copy.__class__ = type(self)
        return copy


def _opened(ref: InstanceRef) -> dg.DagsterInstance:
    from thess_agg_dagster.runs.databases import opened  # here, because definitions open no databases

    name = dg.serialize_value(ref)
    with _opening:
        if name not in _open:
            _open[name] = opened(ref)
        return _open[name]
