"""Dagster's default run launcher, except that our own runs start in a process that has already imported everything.

Dagster starts a new Python for every run, which takes several CPU seconds before the first tile is opened: most of the
cost of a small timestamp. This launcher keeps one process (``python -m thess_agg_dagster.runs.warm``) that has imported
the definitions, and forks it for each run. Runs of other code locations are launched as usual, unless ``modules`` in
``dagster.yaml`` names theirs: those of projects with lakes in YAML. Each module has a process of its own.
"""

from __future__ import annotations

import gc
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg

from thess_agg_dagster.keys import HERE
from thess_agg_dagster.runs.ahead import import_pixels, import_the_rest
from thess_agg_dagster.runs.databases import opened
from thess_agg_dagster.runs.instance import GONE, PROCESS_TAG, is_alive, process_tags
from thess_agg_dagster.runs.private import (
    AutoloadDefsModuleCodePointer,
    CheckRunHealthResult,
    ConfigurableClassData,
    GrpcServerCodeLocationOrigin,
    InstanceRef,
    LaunchRunContext,
    ModuleCodePointer,
    WorkerStatus,
)

#: How Dagster finds the definitions in a module.
Pointer = ModuleCodePointer | AutoloadDefsModuleCodePointer

_DEFINITIONS = "thess_agg_dagster.definitions"
#: Tag of a run that was launched so. Dagster does not show it; a run that is re-executed inherits it, so it names the run.
WARM = ".dagster/thess_agg_dagster_warm"
# Between a run's launch and its first line; then it can be told to stop.
_SECONDS_TO_BEGIN = 10


class _Waiting:
    """The process that waits for runs of one module, started when there is a first one; it ends with this one, and its own
    last run."""

    def __init__(self, pointer: Pointer) -> None:
        self._pointer = dg.serialize_value(pointer)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def hand_over(self, launched: dict[str, str]) -> None:
        with self._lock:
            try:
                self._write(launched)
            except BrokenPipeError:
                self._process = None  # it was killed
                self._write(launched)

    def _write(self, launched: dict[str, str]) -> None:
        if self._process is None:
            self._process = subprocess.Popen([sys.executable, "-m", __name__, self._pointer], stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(launched).encode() + b"\n")
        self._process.stdin.flush()


# Dagster makes launchers anew; there is one such process of a module for all of them.
_waiting: dict[Pointer, _Waiting] = {}


class WarmLauncher(dg.DefaultRunLauncher):
    """Launches the runs of this package, and of other ``modules``, from waiting processes on this machine.

    Such a process keeps the code and environment from when the first run was launched: restart Dagster after an upgrade.
    """

    def __init__(self, modules: Sequence[str] = (), inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._modules = modules

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        told = "Modules of other code locations whose runs start in a waiting process."
        return {"modules": dg.Field([str], is_required=False, default_value=[], description=told)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> WarmLauncher:
        return cls(config_value["modules"], inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        pointer = pointer_of(run, self._modules)
        if pointer is None:
            super().launch_run(context)
            return
        # It has no process yet; that of a run which it repeats is not its own, and must not be told to stop.
        self._instance.add_run_tags(run.run_id, {WARM: run.run_id, PROCESS_TAG: ""})
        waiting = _waiting.setdefault(pointer, _Waiting(pointer))
        waiting.hand_over({"run_id": run.run_id, "instance": dg.serialize_value(self._instance.get_ref())})

    def terminate(self, run_id: str) -> bool:
        """Interrupt a run, as Ctrl-C would."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or run.tags.get(WARM) != run_id:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        # The webserver asks, which is not where the run was launched: it is found by what it says of itself.
        until = time.monotonic() + _SECONDS_TO_BEGIN
        while (pid := self._process_of(run_id)) is None and time.monotonic() < until:
            if (now := self._instance.get_run_by_id(run_id)) is None or now.is_finished:
                return True
            time.sleep(0.2)
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        return True

    def _process_of(self, run_id: str) -> int | None:
        run = self._instance.get_run_by_id(run_id)
        tag = run.tags.get(PROCESS_TAG) if run else None
        return int(tag.split(":")[-2]) if tag and is_alive(tag) else None

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        tag = run.tags.get(PROCESS_TAG)
        if run.tags.get(WARM) == run.run_id and tag and not is_alive(tag):
            return CheckRunHealthResult(WorkerStatus.FAILED, GONE)
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def pointer_of(run: dg.DagsterRun, modules: Collection[str] = ()) -> Pointer | None:
    """Where the definitions of a run are, if they are ours or those of one of these other ``modules``, and its code location
    has this process's environment. For ours, that decides which lake it is."""
    if run.job_code_origin is None or run.remote_job_origin is None:
        return None
    code, location = run.job_code_origin.repository_origin, run.remote_job_origin.repository_origin.code_location_origin
    pointer = code.code_pointer
    if not isinstance(pointer, Pointer):
        return None
    ours = pointer.module == _DEFINITIONS and location.location_name == (HERE.name or "thess_agg_dagster")
    # A code server that was started by hand, on a port, may have an environment of its own; Dagster's own ones do not.
    started_here = not isinstance(location, GrpcServerCodeLocationOrigin) or bool(location.socket)
    same_python = Path(code.executable_path).parent == Path(sys.executable).parent
    return pointer if (ours or pointer.module in modules) and started_here and same_python else None


def _wait_for_runs(lines: io.FileIO) -> None:
    """Fork for each line; go on until there are no more and the last run has ended."""
    running: dict[int, dict[str, str]] = {}
    ended, notice = os.pipe()
    os.set_blocking(notice, False)
    signal.set_wakeup_fd(notice)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the runs
    ready = selectors.DefaultSelector()
    ready.register(lines, selectors.EVENT_READ)
    ready.register(ended, selectors.EVENT_READ)
    more = True
    while more or running:
        for key, _ in ready.select():
            if key.fileobj == ended:
                os.read(ended, 1024)
            elif line := lines.readline():
                launched = json.loads(line)
                running[_fork(_execute, launched)] = launched
                import_the_rest()  # once, and not before the first run could begin
            else:
                ready.unregister(lines)
                more = False
        while running and (found := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = found
            launched = running.pop(pid, {})
            if launched and status:  # it did not get to say how it ended
                running[_fork(_report_end, launched)] = {}


def _fork(function: Any, launched: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ref = dg.deserialize_value(launched["instance"], InstanceRef)
        with opened(ref) as instance:
            function(instance, launched["run_id"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute(instance: dg.DagsterInstance, run_id: str) -> None:
    from thess_agg_dagster.runs.private.execution import execute_run

    instance.add_run_tags(run_id, process_tags())
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status != dg.DagsterRunStatus.CANCELING:
        execute_run(run_id, instance, lambda event: None, set_exit_code_on_failure=False)
    # Dagster takes a run that was told to stop before it began for a second one of its kind, and leaves it as it is.
    _report_end(instance, run_id)


def _report_end(instance: dg.DagsterInstance, run_id: str) -> None:
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run)
    else:
        instance.report_run_failed(run, GONE)


if __name__ == "__main__":
    from thess_agg_dagster.runs.private.execution import load_definitions

    found = dg.deserialize_value(sys.argv[1])
    assert isinstance(found, Pointer)
    load_definitions(found)
    import_pixels()
    assert threading.active_count() == 1, "threads do not survive a fork"
    gc.freeze()
    with open(0, "rb", buffering=0) as pipe:
        _wait_for_runs(pipe)
