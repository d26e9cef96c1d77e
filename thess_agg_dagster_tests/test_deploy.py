"""What is deployed: the image's recipe, and the chart's values, as far as both can be tried without a cluster.

The values become what the chart makes of them: the instance's settings, a code server per lake, what that server hands to
its runs. Server, launcher and run are the real ones; only the cluster's API is a stand-in that keeps what it is sent.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes.client
import pytest
import sqlalchemy
import yaml
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
from kubernetes.utils.quantity import parse_quantity

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.parameter import ENVIRONMENT_PREFIX
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster_tests.processes import free_port
from thess_agg_dagster_tests.servers import listening

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text())
LAKES: list[dict[str, Any]] = VALUES["dagster-user-deployments"]["deployments"]
EVERY_LAKE = pytest.mark.parametrize("lake", LAKES, ids=lambda lake: str(lake["name"]))
# Most that was seen of a process tree in a run's pod; see the values.
MEASURED_BYTES = 541 * 2**20


def _environment(lake: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in lake["env"]}


def _instructions() -> list[list[str]]:
    """The Dockerfile's lines, the broken ones joined, as words."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    return [line.split() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_copies_what_there_is_and_what_dockerignore_lets_through() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    own = [line[1:-1] for line in _instructions() if line[0] == "COPY" and not line[1].startswith("--from=")]
    copied = {source for sources in own for source in sources}
    assert copied == let_through
    assert [source for source in copied if not (ROOT / source).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # What the wheel is built from, and what it is installed with.
    assert {project["project"]["readme"], *project["project"]["license-files"], "constraints.txt"} <= copied
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied


def test_the_image_runs_as_the_user_that_the_pods_ask_for() -> None:
    *_, (user, group) = [line[1].split(":") for line in _instructions() if line[0] == "USER"]
    assert int(user) > 0
    contexts = [part["podSecurityContext"] for part in (*LAKES, VALUES["dagsterDaemon"], VALUES["dagsterWebserver"])]
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    contexts.append(launcher["runK8sConfig"]["podSpecConfig"]["securityContext"])
    for context in contexts:
        assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"]) == (True, int(user), int(group))


def test_the_images_command_is_the_code_server_of_the_values() -> None:
    (command,) = [json.loads(" ".join(line[1:])) for line in _instructions() if line[0] == "CMD"]
    for lake in LAKES:
        assert command == _server_command(lake, "0.0.0.0", lake["port"])
        module = importlib.util.find_spec(command[command.index("-m") + 1])
        assert module is not None
    assert (BIN / command[0]).exists()


def test_the_extras_of_the_image_exist() -> None:
    (names,) = [" ".join(line) for line in _instructions() if "extras[" in " ".join(line)]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {part.split("'")[0] for part in names.split("extras['")[1:]} == {"fleet", "kubernetes", "s3"} <= set(extras)


def test_every_lake_is_another() -> None:
    assert len(LAKES) >= 2
    for name in ("THESS_LAKE", "DATA_LAKE"):
        assert len({_environment(lake)[name] for lake in LAKES}) == len(LAKES)


@EVERY_LAKE
def test_the_parameters_of_a_lake_are_valid(lake: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = _environment(lake)
    assert environment.pop("THESS_LAKE") == lake["name"]  # the name in the asset keys is that of the code location
    parameters = {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in environment if name != "DATA_LAKE"}
    assert parameters <= set(TimestampsAggregationParams.model_fields)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    params = TimestampsAggregationParams()
    assert params.threads == 2  # without it a run would take the cores of its whole node
    params.mosaic_options()


@EVERY_LAKE
def test_a_lake_has_the_memory_that_was_measured(lake: dict[str, Any]) -> None:
    resources = lake["resources"]
    assert parse_quantity(resources["requests"]["memory"]) > MEASURED_BYTES
    assert parse_quantity(resources["requests"]["memory"]) < parse_quantity(resources["limits"]["memory"])
    (scratch,) = lake["volumes"]
    wanted = parse_quantity(resources["requests"]["ephemeral-storage"])
    assert wanted <= parse_quantity(scratch["emptyDir"]["sizeLimit"])


@pytest.mark.parametrize("name", ["dagsterDaemon", "dagsterWebserver"])
def test_the_other_pods_are_what_kubernetes_takes(name: str) -> None:
    part = VALUES[name]
    container = {"name": name, "image": "image", "resources": part["resources"]}
    container |= {"securityContext": part["securityContext"], "volumeMounts": part["volumeMounts"]}
    pod = {"containers": [container], "securityContext": part["podSecurityContext"], "volumes": part["volumes"]}
    model = k8s_model_from_dict(
        kubernetes.client.V1PodSpec, k8s_snake_case_dict(kubernetes.client.V1PodSpec, pod)
    )  # raises for a field that there is not
    (made,) = model.containers
    assert made.security_context.read_only_root_filesystem
    assert {mount.name for mount in made.volume_mounts} == {volume.name for volume in model.volumes}
    assert parse_quantity(made.resources.requests["memory"]) < parse_quantity(made.resources.limits["memory"])
    assert part["image"] == LAKES[0]["image"]  # one image for all
    if "readinessProbe" in part:
        assert part["readinessProbe"]["httpGet"]["port"] == part["service"]["port"] >= 1024


def _settings(**more: Any) -> dict[str, Any]:
    return {**VALUES["additionalInstanceConfig"], "telemetry": VALUES["telemetry"], **more}


def test_the_queue_and_what_is_done_about_lost_pods(tmp_path: Path) -> None:
    daemon = VALUES["dagsterDaemon"]
    # The chart would write both a second time.
    assert not daemon["runMonitoring"]["enabled"]
    assert not daemon["runRetries"]["enabled"]
    queue = daemon["runCoordinator"]["config"]["queuedRunCoordinator"]
    config = {
        "max_concurrent_runs": queue["maxConcurrentRuns"],
        "tag_concurrency_limits": queue["tagConcurrencyLimits"],
        "dequeue_interval_seconds": queue["dequeueIntervalSeconds"],
    }
    coordinator = {
        "module": "dagster.core.run_coordinator",
        "class": daemon["runCoordinator"]["type"],
        "config": config,
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(_settings(run_coordinator=coordinator)))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert isinstance(instance.run_coordinator, dg.QueuedRunCoordinator)
        run_queue = instance.get_concurrency_config().run_queue_config
        assert run_queue is not None
        (limit,) = run_queue.tag_concurrency_limits
        assert 0 < limit["limit"] < run_queue.max_concurrent_runs


def test_the_databases_driver_is_there() -> None:
    """SQLAlchemy's own choice for ``postgresql`` is not: every pod ended at its first look into the event log."""
    url = sqlalchemy.make_url(f"{VALUES['postgresql']['postgresqlScheme']}://dagster@localhost/dagster")
    assert url.get_backend_name() == "postgresql"
    url.get_dialect().import_dbapi()


def _server_command(lake: dict[str, Any], host: str, port: int) -> list[str]:
    return ["dagster", "api", "grpc", "-h", host, "-p", str(port), *lake["dagsterApiGrpcArgs"]]


def _handed_to_runs(lake: dict[str, Any]) -> dict[str, Any]:
    """What the chart makes the code server hand to its runs."""
    return {
        "k8s": {
            "image_pull_policy": lake["image"]["pullPolicy"],
            "env_config_maps": [f"dagster-dagster-user-deployments-{lake['name']}-user-env"],
            "env_secrets": [secret["name"] for secret in lake["envSecrets"]],
            "env": lake["env"],
            "resources": lake["resources"],
            "volumes": lake["volumes"],
            "volume_mounts": lake["volumeMounts"],
            "namespace": "lakes",
            "service_account_name": "dagster-dagster-user-deployments-user-deployments",
        }
    }


def _run_launcher(kubeconfig: Path) -> dict[str, Any]:
    """What the chart makes of ``runLauncher``, but for the way to the cluster."""
    launcher = VALUES["runLauncher"]
    given = launcher["config"]["k8sRunLauncher"]
    config = {
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
        "job_namespace": "lakes",
        "image_pull_policy": given["imagePullPolicy"],
        "service_account_name": "dagster",
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        "resources": given["resources"],
        "security_context": given["securityContext"],
        "run_k8s_config": {"pod_spec_config": given["runK8sConfig"]["podSpecConfig"]},
    }
    return {"module": "dagster_k8s", "class": launcher["type"], "config": config}


@contextmanager
def _cluster(kubeconfig: Path) -> Iterator[list[dict[str, Any]]]:
    """The jobs that a cluster is sent; ``kubeconfig`` is written, and leads there."""
    jobs: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path.startswith("/apis/batch/v1/namespaces/lakes/jobs")
            jobs.append(json.loads(body))
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as url:
        cluster = {"server": url}
        config = {
            "clusters": [{"name": "here", "cluster": cluster}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "users": [{"name": "me", "user": {}}],
            "current-context": "here",
        }
        kubeconfig.write_text(yaml.safe_dump(config))
        yield jobs


@pytest.mark.fleet
def test_every_lake_launches_pods_of_its_own(tmp_path: Path) -> None:
    """Two code servers, one launcher, one pod each; then what is in the pods runs, beside each other."""
    kubeconfig, home = tmp_path / "kubeconfig", tmp_path / "home"
    home.mkdir()
    # Launched at once: the queue would wait for a daemon.
    at_once = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
    settings = _settings(run_launcher=_run_launcher(kubeconfig), run_coordinator=at_once)
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    here = {"PATH": f"{BIN}:{os.environ['PATH']}", "DAGSTER_HOME": str(home), "no_proxy": "127.0.0.1"}
    lakes = {}
    for lake in LAKES:
        root = DataLake(tmp_path / lake["name"])
        root.tables_folder.mkdir(parents=True)
        root.time_serie.write_text("acq_datetime,tile_ids\n")
        others = [variable for variable in lake["env"] if variable["name"] != "DATA_LAKE"]
        lakes[lake["name"]] = lake | {"env": [{"name": "DATA_LAKE", "value": str(root.root)}, *others]}
    ports = {name: free_port() for name in lakes}
    locations = [
        {"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": name}} for name, port in ports.items()
    ]
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump({"load_from": locations}))
    servers = []
    with _cluster(kubeconfig) as jobs, dg.DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs_count()  # makes the databases before several ask for them at once
        try:
            for name, lake in lakes.items():
                image = f"{lake['image']['repository']}:{lake['image']['tag']}"
                context = json.dumps(_handed_to_runs(lake))
                env = here | _environment(lake) | {"DAGSTER_CURRENT_IMAGE": image}
                env["DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT"] = context
                servers.append(subprocess.Popen(_server_command(lake, "127.0.0.1", ports[name]), env=env))
            for port in ports.values():
                _wait_for_server(port)
            launch = ["dagster", "job", "launch", "-w", str(tmp_path / "workspace.yaml"), "-j", "report_only"]
            launches = [subprocess.Popen([*launch, "-l", name], env=here, stdout=subprocess.DEVNULL) for name in lakes]
            assert [process.wait(timeout=120) for process in launches] == [0] * len(lakes)
        finally:
            for server in servers:
                server.kill()
                server.wait()
        of_lake = {job["metadata"]["labels"]["dagster/code-location"]: job for job in jobs}
        assert len(jobs) == len(of_lake) == len(LAKES)
        for name, lake in lakes.items():
            _check_job(of_lake[name], lake)
        pods = []
        for job in jobs:
            (container,) = job["spec"]["template"]["spec"]["containers"]
            env = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
            pods.append(subprocess.Popen(container["args"], env=env | here, cwd=tmp_path, stderr=subprocess.DEVNULL))
        assert [pod.wait(timeout=120) for pod in pods] == [0] * len(pods)
        runs = instance.get_runs()
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        # What the queue counts by.
        assert {run.tags["dagster/code_location"] for run in runs} == set(lakes)
        (limit,) = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]["tagConcurrencyLimits"]
        assert limit["key"] == "dagster/code_location"
        for name in lakes:
            assert instance.get_latest_materialization_event(dg.AssetKey([name, "timestamps_aggregation"])) is not None
            assert DataLake(tmp_path / name).audit_table("status").exists()


def _wait_for_server(port: int) -> None:
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the code server has not started in two minutes")


def _check_job(job: dict[str, Any], lake: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env | _environment(lake) == env
    assert container["image"] == f"{lake['image']['repository']}:{lake['image']['tag']}"
    assert {"secretRef": {"name": "lake-s3"}} in container["envFrom"]
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    # The lake's memory and the launcher's cores.
    assert container["resources"] == {
        "requests": launcher["resources"]["requests"] | lake["resources"]["requests"],
        "limits": lake["resources"]["limits"],
    }
    assert container["securityContext"] == launcher["securityContext"]
    assert pod["securityContext"] == launcher["runK8sConfig"]["podSpecConfig"]["securityContext"]
    assert lake["volumes"][0] in pod["volumes"]
    assert lake["volumeMounts"][0] in container["volumeMounts"]
    assert pod["restartPolicy"] == "Never"
    assert job["spec"]["backoffLimit"] == 0  # Dagster alone tries a run again
