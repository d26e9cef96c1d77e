"""Servers on loopback that behave as badly as real ones: for downloads."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "me@example.org", "s3cr3t-p4ss"


@dataclass
class Archive:
    """Files by path, and what goes wrong with each: a list of faults, one per request, then all is well.

    Faults: a status (``503``, ``"429 after 1"``), ``cut`` (closes in the middle), ``stall``, ``lie`` (announces and sends
    less), ``page`` (HTML with 200), ``other`` (another file's bytes), ``redirect URL``.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    needs_token: bool = False
    token_lifetime: int = 600
    ranges: bool = True
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    seen: list[dict[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    grants: list[str] = field(default_factory=list)
    forms: list[dict[str, list[str]]] = field(default_factory=list)
    connections: int = 0
    busy: int = 0
    busiest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that leaves is no news
            super().handle_error(request, client_address)


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of an HTTP server on loopback, whose requests ``handler`` answers."""
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def serving(archive: Archive) -> Iterator[Archive]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            archive.connections += 1
            super().setup()

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            grant = form["grant_type"][0]
            good = grant == "refresh_token" or (form.get("username"), form.get("password")) == ([USER], [PASSWORD])
            archive.grants.append(grant)
            archive.forms.append(form)
            if not good:
                self._answer(401, b'{"error": "invalid_grant"}')
                return
            archive.tokens.append(f"token-{len(archive.tokens)}")
            token = {"access_token": archive.tokens[-1], "expires_in": archive.token_lifetime, "refresh_token": "r"}
            self._answer(200, json.dumps(token).encode())

        def do_GET(self) -> None:
            with archive.lock:
                archive.busy += 1
                archive.busiest = max(archive.busiest, archive.busy)
            try:
                self._get(urlsplit(self.path).path)
            finally:
                with archive.lock:
                    archive.busy -= 1

        def _get(self, path: str) -> None:
            archive.requests[path] += 1
            archive.seen.append({"path": path, **{k.lower(): v for k, v in self.headers.items()}})
            if archive.needs_token and self.headers.get("Authorization") != f"Bearer {(archive.tokens or [''])[-1]}":
                self._answer(401, b"no")
                return
            waiting = archive.faults.get(path, [])
            fault = waiting.pop(0) if waiting else ""
            if path not in archive.files:
                self._answer(404, b"nothing here")
                return
            data = archive.files[path]
            if fault.startswith("redirect "):
                self._answer(302, b"", {"Location": fault.removeprefix("redirect ")})
            elif fault[:3].isdigit():
                after = fault[3:].removeprefix(" after ")
                self._answer(int(fault[:3]), b"busy", {"Retry-After": after} if after else {})
            elif fault == "page":
                self._answer(200, b"<!DOCTYPE html><html><title>Please log in</title></html>")
            elif fault == "other":
                self._answer(200, next(bytes_ for name, bytes_ in archive.files.items() if name != path))
            elif fault == "lie":
                self._answer(200, data[: len(data) // 2])
            else:
                self._file(path, data, fault)

        def _file(self, path: str, data: bytes, fault: str) -> None:
            tag = f'"{hash(data)}"'
            start, stop, status, headers = 0, len(data), 200, {"ETag": tag, "Accept-Ranges": "bytes"}
            if archive.ranges and "Range" in self.headers and self.headers.get("If-Range", tag) == tag:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                start, stop, status = int(first), min(int(last or len(data)) + 1, len(data)), 206
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            part = data[start:stop]
            self._head(status, len(part), headers)
            if fault in ("cut", "stall"):
                self.wfile.write(part[: len(part) // 2])
                self.wfile.flush()
                archive.sent[path] += len(part) // 2
                if fault == "stall":
                    time.sleep(2)
                self.close_connection = True
                return
            self.wfile.write(part)
            archive.sent[path] += len(part)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self._head(status, len(body), headers or {})
            self.wfile.write(body)

        def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as archive.url:
        yield archive


#: What a process needs to reach :func:`serving_s3`, beside AWS_ENDPOINT_URL.
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class StoreServer:
    """A running server of an object store's API: its address, what it was asked for (method and path), and what goes wrong next.

    A fault is a method, a pattern of path and query, a status and how often it is answered instead.
    """

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str, int, int]] = field(default_factory=list)
    sent: int = 0  # bytes of answers
    gate: Callable[[str, str], None] | None = None  # each request waits for it

    def fault_of(self, method: str, path: str) -> int | None:
        for number, (verb, pattern, status, times) in enumerate(self.faults):
            if times and verb == method and re.search(pattern, path):
                self.faults[number] = (verb, pattern, status, times - 1)
                return status
        return None


class S3Server(StoreServer):
    """One that speaks S3."""


@contextmanager
def serving_s3() -> Iterator[S3Server]:
    """A real S3 API server (moto's), empty at first."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from waitress import create_server

    # It warns where requests wait for a thread, as those do that a test holds back.
    logging.getLogger("waitress").setLevel(logging.ERROR)
    api = create_backend_app("s3")  # not moto's own server, which looks through all of AWS for each request
    server = S3Server()

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if server.gate:
            server.gate(method, path)
        server.requests.append((method, path))
        status = server.fault_of(method, f"{path}?{environ['QUERY_STRING']}")
        if status is None:
            body = b"".join(api(environ, start_response))
            server.sent += len(body)
            return [body]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{status} Fault", [("Content-Type", "application/xml")])
        return [b"<Error><Code>Fault</Code><Message>as the test asked</Message></Error>"]

    # It keeps connections, as stores do; to make one for each request takes a tenth of the tests' time.
    wsgi = create_server(application, host="127.0.0.1", port=0, threads=32)
    server.url = f"http://127.0.0.1:{wsgi.effective_port}"
    thread = threading.Thread(target=wsgi.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        wsgi.close()


def make_bucket(server: S3Server, name: str) -> Any:
    """A new bucket on a server; returns its client."""
    client = _client(server.url)
    client.create_bucket(Bucket=name)
    return client


def bucket_content(server: S3Server, name: str) -> dict[str, bytes]:
    """Every object of a bucket, by its key."""
    client = _client(server.url)
    return {key: client.get_object(Bucket=name, Key=key)["Body"].read() for key in _etags(client, name)}


def restore_bucket(server: S3Server, name: str, content: dict[str, bytes]) -> None:
    """Have a bucket hold this again; what has not changed is not touched."""
    client = _client(server.url)
    found = _etags(client, name)
    for key in found.keys() - content.keys():
        client.delete_object(Bucket=name, Key=key)
    for key, data in content.items():
        if found.get(key) != f'"{hashlib.md5(data).hexdigest()}"':
            client.put_object(Bucket=name, Key=key, Body=data)


def _etags(client: Any, name: str) -> dict[str, str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=name)
    return {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", [])}


@functools.cache
def _client(url: str) -> Any:
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
