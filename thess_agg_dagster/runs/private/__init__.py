"""Every name that is taken from Dagster's insides: there are no public ones for what they do.

``dagster.yaml`` names a run queue, a run launcher and a storage by their modules, so Dagster means them to be derived from, and
an instance is handed to another process as its ``InstanceRef``; where a job is to be found is noted at a run as ``dagster run migrate-repository`` does it; and a Celery task executes a run as
``dagster api execute_run`` does. The storage's are in a module of their own: they take SQLAlchemy and Alembic along.
"""

from typing import Any

from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._serdes import ConfigurableClassData

__all__ = [
    "CheckRunHealthResult",
    "ConfigurableClassData",
    "DagsterUserCodeUnreachableError",
    "GrpcServerCodeLocationOrigin",
    "InstanceRef",
    "LaunchRunContext",
    "LoadableTargetOrigin",
    "ManagedGrpcPythonEnvCodeLocationOrigin",
    "ModuleCodePointer",
    "QueuedRunCoordinator",
    "RemoteJobOrigin",
    "RemoteRepositoryOrigin",
    "SubmitRunContext",
    "WorkerStatus",
    "execute_run",
]


def execute_run(*arguments: Any, **options: Any) -> None:
    """Execute a run that was launched, in this process."""
    from dagster._cli.api import _execute_run_command_body  # here, because only workers need the command line

    _execute_run_command_body(*arguments, **options)
