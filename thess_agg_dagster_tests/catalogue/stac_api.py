"""A real STAC API on loopback: stac-fastapi over pgstac in Postgres with PostGIS, as the Copernicus Data Space and the
Planetary Computer run it; and a proxy before it that stumbles as servers do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from thess_agg_dagster_tests.processes import free_port
from thess_agg_dagster_tests.servers import listening
from thess_agg_dagster_tests.services import Service, prepare_postgres

COLLECTION = {
    "type": "Collection",
    "stac_version": "1.0.0",
    "description": "Sentinel-2 Level-2A",
    "license": "proprietary",
    "links": [],
    "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [["2015-06-27T00:00:00Z", None]]}},
}


@dataclass
class StacApi:
    """A running API, and how to fill it."""

    url: str
    database: str

    def fill(self, collection: str, items: Iterable[dict[str, Any]]) -> str:
        """Put items into a new collection; returns its name."""
        from pypgstac.db import PgstacDB
        from pypgstac.load import Loader, Methods

        with PgstacDB(dsn=self.database) as database:
            loader = Loader(db=database)
            loader.load_collections(iter([COLLECTION | {"id": collection}]), insert_mode=Methods.insert)
            loader.load_items(
                iter([item | {"collection": collection} for item in items]),
                insert_mode=Methods.insert,
            )
        return collection


@contextmanager
def serving_stac(folder: Path) -> Iterator[StacApi]:
    data = Path(tempfile.mkdtemp(prefix="thess-pgstac-"))
    binaries, options = prepare_postgres(data)
    ports = {"postgres": free_port(), "api": free_port()}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    command = [str(binaries / "postgres"), "-D", str(data / "data"), "-k", str(data), "-h", "127.0.0.1"]
    # What a crash would lose does not matter here.
    command += ["-p", str(ports["postgres"]), "-c", "fsync=off", "-c", "full_page_writes=off"]
    services = [Service("postgres", command, folder / "postgres.log", plain, **options)]
    dsn = f"postgresql://postgres@127.0.0.1:{ports['postgres']}/postgres"
    try:
        ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(ports["postgres"])]
        _wait_until(lambda: subprocess.run(ready).returncode == 0, services)
        environment = plain | {
            "PGUSER": "postgres",
            "PGPASSWORD": "none",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(ports["postgres"]),
            "PGDATABASE": "postgres",
        }
        _migrate(dsn)
        server = [sys.executable, "-m", "uvicorn", "stac_fastapi.pgstac.app:create_app", "--factory"]
        server += ["--host", "127.0.0.1", "--port", str(ports["api"]), "--log-level", "warning"]
        services.append(Service("stac-api", server, folder / "stac-api.log", environment))
        url = f"http://127.0.0.1:{ports['api']}"
        _wait_until(lambda: _answers(f"{url}/_mgmt/ping"), services)
        yield StacApi(url, dsn)
    finally:
        for service in reversed(services):
            service.end(signal.SIGKILL)
        shutil.rmtree(data)


def _migrate(dsn: str) -> None:
    from pypgstac.db import PgstacDB
    from pypgstac.migrate import Migrate

    with PgstacDB(dsn=dsn) as database:
        Migrate(database).run_migration()


def _wait_until(true: Callable[[], bool], services: Iterable[Service]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        for service in services:
            assert service.process.poll() is None, service.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


@dataclass
class Proxy:
    """What goes wrong before the API: a fault for each request that comes, then all is well.

    Faults: a status (``503``, ``"429 after 1"``), ``cut`` (closes in the middle), ``page`` (HTML with 200), ``half``
    (valid HTTP, half of the JSON), ``""`` (none). ``edit`` may change what comes of a search.
    """

    api: str
    url: str = ""
    faults: list[str] = field(default_factory=list)
    edit: Callable[[dict[str, Any]], None] = lambda answer: None
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@contextmanager
def stumbling(proxy: Proxy) -> Iterator[Proxy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass_on(None)

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def _pass_on(self, body: bytes | None) -> None:
            proxy.requests.append((self.command, self.path, json.loads(body or b"{}")))
            proxy.times.append(time.monotonic())
            fault = proxy.faults.pop(0) if proxy.faults else ""
            if fault[:3].isdigit():
                after = fault[3:].removeprefix(" after ")
                self._answer(int(fault[:3]), b"busy", {"Retry-After": after} if after else {})
                return
            if fault == "page":
                self._answer(200, b"<html>maintenance</html>", {})
                return
            status, data = self._ask(body)
            if self.path.startswith("/search") and status == 200:
                answer = json.loads(data)
                proxy.edit(answer)
                data = json.dumps(answer).encode()
            if fault == "half":
                data = data[: len(data) // 2]
            self._answer(status, data, {"Content-Type": "application/json"}, cut=fault == "cut")

        def _ask(self, body: bytes | None) -> tuple[int, bytes]:
            # With our own host, so that links to further pages come through here, too.
            headers = {"Content-Type": "application/json", "Host": self.headers["Host"]}
            request = urllib.request.Request(proxy.api + self.path, body, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def _answer(self, status: int, data: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as proxy.url:
        yield proxy
