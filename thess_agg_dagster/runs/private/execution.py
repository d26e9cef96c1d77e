"""How a process executes a run that was launched, as ``dagster api execute_run`` does, and how it loads definitions."""

from dagster._cli.api import _execute_run_command_body as execute_run
from dagster._core.definitions.reconstruct import initialize_repository_def_from_pointer as load_definitions

__all__ = ["execute_run", "load_definitions"]
