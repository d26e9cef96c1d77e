"""How a process executes a run that was launched, as ``dagster api execute_run`` does."""

from dagster._cli.api import _execute_run_command_body as execute_run

__all__ = ["execute_run"]
