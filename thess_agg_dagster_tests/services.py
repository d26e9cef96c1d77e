"""What a fleet is made of, on this machine: Postgres, Redis, webserver, daemon and workers, and their GraphQL.

Debian's binaries on free ports of loopback, in folders of their own; everything ends with the block that opened it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from thess_agg_dagster.keys import AGGREGATED
from thess_agg_dagster_tests.processes import ROOT, clean_environment, free_port

PROFILE = ROOT / "deploy" / "fleet"


class Client:
    """A Dagster webserver's GraphQL, and the instance behind it."""

    url: str
    instance: dg.DagsterInstance

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", data=body, headers={"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer)["data"])

    def is_up(self) -> bool:
        query = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
        try:
            entries = self.ask(query)["workspaceOrError"]["locationEntries"]
        except OSError:
            return False
        return {str(entry["locationOrLoadError"]) for entry in entries} == {"{'__typename': 'RepositoryLocation'}"}

    def check(self) -> None:
        """Raise where a process that should be alive is not."""

    def wait_until(self, true: Callable[[], bool], seconds: float = 400) -> None:
        """Asks often at first, then once a second: each question is a connection to a database."""
        deadline = time.monotonic() + seconds
        pause = 0.1
        while not true():
            self.check()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(pause)
            pause = min(1, 1.5 * pause)

    def logs(self) -> str:
        """What helps to understand a failure."""
        return ""

    def backfill(self, keys: list[str], asset: dg.AssetKey = AGGREGATED) -> str:
        query = (
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) { __typename "
            "... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"
        )
        params = {"assetSelection": [{"path": asset.path}], "partitionNames": keys}
        return str(self.ask(query, p=params)["launchPartitionBackfill"]["backfillId"])

    def backfill_status(self, backfill_id: str) -> str:
        found = self.instance.get_backfill(backfill_id)
        assert found is not None
        return found.status.value

    def launch(self, job: str, location: str = "thess_agg_dagster", **selection: Any) -> str:
        """Launch a job; returns the run's id."""
        launch = (
            "mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) { __typename "
            "... on LaunchRunSuccess { run { runId } } } }"
        )
        selector = {"repositoryLocationName": location, "repositoryName": "__repository__", "jobName": job} | selection
        answer = self.ask(launch, p={"selector": selector, "mode": "default", "runConfigData": {}})
        return str(answer["launchPipelineExecution"]["run"]["runId"])

    def materialize(self, asset: dg.AssetKey, location: str = "thess_agg_dagster") -> str:
        """Launch a run of an asset that has no partitions; returns its id."""
        return self.launch("__ASSET_JOB", location, assetSelection=[{"path": asset.path}])

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def stop_sensor(self, name: str, location: str = "thess_agg_dagster") -> None:
        """To be called where no tick is about to begin: Dagster's daemon writes a sensor's state as it read it before."""
        query = (
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { sensorState { id } } } }"
        )
        selector = {"repositoryLocationName": location, "repositoryName": "__repository__", "sensorName": name}
        found = self.ask(query, s=selector)["sensorOrError"]["sensorState"]["id"]
        stop = "mutation($id: String!) { stopSensor(id: $id) { ... on StopSensorMutationResult { instigationState { status } } } }"
        assert self.ask(stop, id=found)["stopSensor"]["instigationState"]["status"] == "STOPPED"

    def terminate(self, run_id: str) -> str:
        stop = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"
        return str(self.ask(stop, id=run_id)["terminateRun"]["__typename"])

    def reexecute(self, run_id: str) -> str:
        """ "Re-execute" on a run's page; returns the new run's id."""
        query = (
            "mutation($p: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $p) { __typename "
            "... on LaunchRunSuccess { run { runId } } ... on PythonError { message stack } } }"
        )
        answer = self.ask(query, p={"parentRunId": run_id, "strategy": "ALL_STEPS"})["launchRunReexecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def runs(self, *found: dg.DagsterRunStatus, tags: dict[str, str] | None = None) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(dg.RunsFilter(statuses=list(found), tags=tags)))


class Service:
    """A process with a log. Signals go to it and all of its children, as when a machine is lost."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], **options: Any
    ) -> None:
        self.name, self.log = name, log
        with log.open("a") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True, **options
            )

    def end(self, how: signal.Signals = signal.SIGTERM, seconds: float = 30) -> None:
        # Of the polite ones Postgres, Redis and Celery want one signal, to their first process.
        with suppress(ProcessLookupError):
            (os.killpg if how == signal.SIGKILL else os.kill)(self.process.pid, how)
        try:
            self.process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def prepare_postgres(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A new database cluster in ``folder / "data"``: where Postgres' programs are, and how to start them.

    Postgres does not run as root, and what belongs to root it may not see: the folder becomes its own.
    """
    options: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    command: list[str | Path] = [
        binaries / "initdb",
        "-D",
        folder / "data",
        "-U",
        "postgres",
        "--auth=trust",
        "--no-sync",
    ]
    subprocess.run(command, check=True, capture_output=True, **options)
    return binaries, options


class Fleet(Client):
    """Postgres and Redis, started; the rest is started as a test or measurement wants it."""

    def __init__(self, folder: Path, settings: Callable[[dict[str, Any]], None]) -> None:
        self.folder = folder
        self.home = folder / "dagster-home"
        self.home.mkdir(parents=True)
        profile = yaml.safe_load((PROFILE / "dagster.yaml").read_text())
        settings(profile)
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(profile))
        self.services: list[Service] = []
        self.ports = {name: free_port() for name in ("postgres", "redis", "webserver")}
        self.url = f"http://127.0.0.1:{self.ports['webserver']}"
        self.environment = clean_environment() | {
            "DAGSTER_HOME": str(self.home),
            "THESS_POSTGRES_URL": f"postgresql+psycopg2://postgres@127.0.0.1:{self.ports['postgres']}/postgres",
            "THESS_REDIS_URL": f"redis://127.0.0.1:{self.ports['redis']}/0",
            "THESS_MAX_CONCURRENT_RUNS": "2",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        # Postgres does not run as root, and what belongs to root it may not see.
        self.data = Path(tempfile.mkdtemp(prefix="thess-postgres-"))

    def open(self) -> None:
        self._binaries, self._postgres_options = prepare_postgres(self.data)
        self.start_postgres()
        self.start_redis()
        names = ("THESS_POSTGRES_URL", "THESS_REDIS_URL")
        os.environ.update({name: self.environment[name] for name in names})  # for the instance in this process
        self.instance = dg.DagsterInstance.from_config(str(self.home))

    def start(self, name: str, *command: str, environment: Mapping[str, str] = {}, **options: Any) -> Service:
        log = self.folder / f"{name}.log"
        service = Service(name, command, log, {**self.environment, **environment}, **{"cwd": ROOT} | options)
        self.services.append(service)
        return service

    def stop(self, service: Service, how: signal.Signals = signal.SIGTERM) -> None:
        self.services.remove(service)
        service.end(how)

    def start_postgres(self) -> None:
        command = [str(self._binaries / "postgres"), "-D", str(self.data / "data"), "-k", str(self.data)]
        command += ["-h", "127.0.0.1", "-p", str(self.ports["postgres"])]
        self.postgres = self.start("postgres", *command, **self._postgres_options)
        ready: list[str | Path] = [self._binaries / "pg_isready", "-q", "-U", "postgres", "-h", "127.0.0.1"]
        ready += ["-p", str(self.ports["postgres"])]
        self.wait_until(lambda: subprocess.run(ready).returncode == 0, 60)

    def start_redis(self) -> None:
        # Persistence as Debian ships it: snapshots, now and then and when it is stopped.
        folder = self.folder / "redis"
        folder.mkdir(exist_ok=True)
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.ports["redis"]), "--dir", str(folder)]
        self.redis = self.start("redis", *command)

        def ready() -> bool:
            asked = subprocess.run(
                ["redis-cli", "-p", str(self.ports["redis"]), "ping"], capture_output=True, text=True
            )
            return asked.stdout.strip() == "PONG"

        self.wait_until(ready, 60)

    def restart_redis(self) -> None:
        self.stop(self.redis)
        self.start_redis()

    def restart_postgres(self, how: signal.Signals) -> None:
        self.stop(self.postgres, how)
        self.start_postgres()

    def start_dagster(
        self, workspace: str, environments: Mapping[str, Mapping[str, str]], stopped: Sequence[str] = ()
    ) -> None:
        """A code server for each location of a shipped workspace, with the location's environment; webserver; when the
        ``stopped`` sensors are stopped, the daemon."""
        locations = yaml.safe_load((PROFILE / workspace).read_text())
        servers = []
        for server in (each["grpc_server"] for each in locations["load_from"]):
            server |= {"host": "127.0.0.1", "port": free_port()}
            command = ["dagster", "code-server", "start", "-m", "thess_agg_dagster.definitions"]
            name = server["location_name"]
            servers.append(
                self.start(f"code-{name}", *command, "-p", str(server["port"]), environment=environments[name])
            )
        path = self.folder / "workspace.yaml"
        path.write_text(yaml.safe_dump(locations))
        for server in servers:
            self.wait_until(lambda log=server.log: "Started Dagster code proxy server" in log.read_text(), 60)  # type: ignore[misc]
        port = str(self.ports["webserver"])
        self.webserver = self.start("webserver", "dagster-webserver", "-w", str(path), "-h", "127.0.0.1", "-p", port)
        self.wait_until(self.is_up)
        for sensor in stopped:
            self.stop_sensor(sensor)
        self.daemon = self.start("daemon", "dagster-daemon", "run", "-w", str(path))

    def start_worker(self, name: str, environment: Mapping[str, str], concurrency: int = 1) -> Service:
        """A worker with ``concurrency`` processes. It takes runs as soon as it is ready."""
        command = ["celery", "-A", "thess_agg_dagster.runs.worker", "worker", "--concurrency", str(concurrency)]
        return self.start(name, *command, "-n", f"{name}@%h", "-l", "INFO", environment=environment)

    def check(self) -> None:
        for service in self.services:
            assert service.process.poll() is None, f"{service.name} ended\n{self.logs()}"

    def story(self) -> str:
        """What became of each run, a line each."""
        lines = []
        for record in reversed(self.instance.get_run_records(limit=500)):
            run, tags = record.dagster_run, record.dagster_run.tags
            times = " ".join(f"{seconds:.1f}" for seconds in (record.start_time, record.end_time) if seconds)
            why = {
                name: value
                for name, value in tags.items()
                if name not in ("dagster/solid_selection", ".dagster/repository")
            }
            lines.append(f"{run.run_id} {run.status.value} {times} {why}")
        return "\n".join(lines)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        if hasattr(self, "instance"):
            self.instance.dispose()
        for service in reversed(self.services):
            service.end(signal.SIGKILL)
        for name in ("THESS_POSTGRES_URL", "THESS_REDIS_URL"):
            os.environ.pop(name, None)
        shutil.rmtree(self.data)


@contextmanager
def fleet(folder: Path, settings: Callable[[dict[str, Any]], None] = lambda profile: None) -> Iterator[Fleet]:
    """Postgres and Redis, with the shipped profile as ``settings`` changes it."""
    opened = Fleet(folder, settings)
    try:
        opened.open()
        yield opened
    finally:
        opened.close()
