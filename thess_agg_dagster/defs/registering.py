"""Partitions that several processes may register at the same time."""

from collections.abc import Sequence

import dagster as dg


def register(instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, keys: Sequence[str]) -> None:
    """Register partitions, those that are registered already, too.

    Dagster looks for these before it adds the others: if another process was quicker, it is told of them the next time.
    """
    from sqlalchemy.exc import IntegrityError  # here, because definitions ask no database
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

    again = Retrying(retry=retry_if_exception_type(IntegrityError), stop=stop_after_attempt(5), reraise=True)
    again(instance.add_dynamic_partitions, str(partitions.name), list(keys))
