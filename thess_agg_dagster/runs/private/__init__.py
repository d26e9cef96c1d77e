"""Every import from Dagster's private modules, used where no public API exists.

``dagster.yaml`` names a run queue, a run launcher and a storage by module, so Dagster intends these classes to be
subclassed; an instance is passed to another process as its ``InstanceRef``; recording where a run's job is found is
done as in ``dagster run migrate-repository``; and a Celery task executes a run as ``dagster api execute_run`` does. The
imports for the storage are in a module of their own, because they import SQLAlchemy and Alembic.
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
