"""Every import from Dagster's private modules, used where no public API exists.

``dagster.yaml`` names a run queue, a run launcher and a storage by module, so Dagster intends these classes to be
subclassed; an instance is passed to another process as its ``InstanceRef``; recording where a run's job is found is
done as in ``dagster run migrate-repository``. The imports for the storage and for executing a run are in modules of their
own, because they import much more.
"""

from dagster._core.code_pointer import AutoloadDefsModuleCodePointer, ModuleCodePointer
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
    "AutoloadDefsModuleCodePointer",
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
]
