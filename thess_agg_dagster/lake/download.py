"""Downloads: one file from where it is allowed to come from, whole or not at all.

``https`` (with a bearer token from an OAuth2 token endpoint where one is configured), ``s3``, ``gs`` and ``file``. What breaks
on the way is asked for again from where it stopped; what a server refuses is not.
"""

from __future__ import annotations

import email.utils
import ipaddress
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from thess_agg_dagster.storage.paths import open_file

# What is lost of a connection that breaks, at most.
_PIECE = 2**16
_MOST_REDIRECTS = 5
# Object stores, read with the machine's own credentials.
_STORES = ("s3", "gs")
# A server that asks for more patience than this is asked another day.
_LONGEST_WAIT = 300.0

Progress = Callable[[int], None]


class DownloadError(Exception):
    """A file cannot be had. The text holds no secret."""


class _AgainError(DownloadError):
    """It may be had later: after ``wait`` seconds, where the server said so."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class DownloadPolicy:
    """From where files may come, and how they are asked for.

    ``allowed`` are hosts (``host`` or ``host:port``, for ``https``), ``http://host:port``, ``s3://bucket/prefix``,
    ``gs://bucket/prefix`` and ``file:///folder``: nothing else is asked first, and only these hosts get the token. A redirect may lead to another
    host by ``https``, if its address is a public one.
    """

    allowed: tuple[str, ...]
    token_url: str | None = None
    client_id: str = "cdse-public"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    #: Of an account with two factors; good for one token.
    one_time_code: str | None = field(default=None, repr=False)
    connections: int = 4
    attempts: int = 6
    timeout: float = 30.0
    first_wait: float = 1.0

    def allows(self, href: str) -> bool:
        """Whether a file may be asked for."""
        url = urlsplit(href)
        if url.scheme == "https":  # a host alone means each of its ports
            return _host(href) in self.allowed or url.hostname in self.allowed
        if url.scheme == "http":
            return f"http://{_host(href)}" in self.allowed
        if url.scheme in _STORES:
            return any(_below(href, each) for each in self.allowed if urlsplit(each).scheme == url.scheme)
        if url.scheme == "file":
            path = Path(unquote(url.path)).resolve()
            folders = (
                Path(unquote(urlsplit(each).path)).resolve() for each in self.allowed if each.startswith("file://")
            )
            return any(path.is_relative_to(folder) for folder in folders)
        return False


class Downloader:
    """Downloads files under a policy. Threads may share one."""

    def __init__(self, policy: DownloadPolicy) -> None:
        self.policy = policy
        self.token = _Token(policy) if policy.token_url else None
        self._connections = threading.BoundedSemaphore(policy.connections)

    def fetch(self, href: str, target: Path, progress: Progress = lambda _: None) -> None:
        """Download ``href`` to ``target``, which is gone or incomplete where this raises :class:`DownloadError`."""
        if not self.policy.allows(href):
            raise DownloadError(f"{shown(href)} is not among the allowed sources ({', '.join(self.policy.allowed)})")
        once = {**dict.fromkeys(_STORES, _StoreTransfer), "file": _FileTransfer}.get(
            urlsplit(href).scheme, HttpTransfer
        )
        transfer = once(self.policy, self.token, href, target, progress)
        target.unlink(missing_ok=True)
        self.run(transfer)

    def run(self, transfer: _Transfer) -> None:
        """Have a transfer go on until it is done. Raises :class:`DownloadError`."""
        for attempt in Retrying(
            stop=stop_after_attempt(self.policy.attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_AgainError),
            reraise=True,
        ):
            with attempt, self._connections:
                transfer.go_on()

    def _wait(self, state: RetryCallState) -> float:
        """What the server asks for, else longer each time, never all at once."""
        error = state.outcome.exception() if state.outcome else None
        backoff: float = self.policy.first_wait * 2 ** (state.attempt_number - 1) * random.uniform(0.5, 1.5)
        return max(backoff, error.wait if isinstance(error, _AgainError) else 0.0)


def shown(href: str) -> str:
    """An address without what may be secret: user, password, query."""
    url = urlsplit(href)
    return urlunsplit((url.scheme, _host(href), url.path, "", ""))


def _host(href: str) -> str:
    """Host and port, without user and password."""
    return urlsplit(href).netloc.rpartition("@")[2]


def _below(href: str, prefix: str) -> bool:
    return href == prefix or href.startswith(prefix.rstrip("/") + "/")


class _Transfer:
    """One file on its way; ``go_on`` continues where the last try stopped."""

    def __init__(
        self, policy: DownloadPolicy, token: _Token | None, href: str, target: Path, progress: Progress
    ) -> None:
        self.policy, self.token, self.href, self.target, self.progress = policy, token, href, target, progress

    def go_on(self) -> None:
        raise NotImplementedError

    @property
    def _have(self) -> int:
        return self.target.stat().st_size if self.target.exists() else 0


class HttpTransfer(_Transfer):
    _validator: str | None = None  # what tells the server that the file is still the same
    _refreshed = False

    def go_on(self) -> None:
        try:
            self._go_on()
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _AgainError(f"{shown(self.href)}: the connection broke ({type(error).__name__})") from None
        except requests.RequestException as error:
            raise DownloadError(f"{shown(self.href)}: {type(error).__name__}") from None

    def _go_on(self) -> None:
        have = self._have if self._validator else 0
        headers = {"Accept-Encoding": "identity"}
        if have and self._validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": self._validator}
        with self._open(headers) as answer:
            if answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                mode = "ab"
            elif answer.status_code == 200:
                mode, have = "wb", 0
            else:
                self._refuse(answer)
            self._validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if (self._validator or "").startswith("W/"):
                self._validator = None  # a weak one does not vouch for bytes
            length = answer.headers.get("Content-Length")
            received = 0
            with self.target.open(mode) as file:
                for piece in answer.iter_content(_PIECE):
                    file.write(piece)
                    received += len(piece)
                    self.progress(len(piece))
            if length and length.isdigit() and received != int(length):
                raise self.cut(have + received)

    def cut(self, received: int) -> DownloadError:
        return _AgainError(f"{shown(self.href)}: cut after {received} bytes")

    def _refuse(self, answer: requests.Response) -> None:
        status = f"{shown(self.href)}: the server answers {answer.status_code}"
        if answer.status_code == 401 and self.token is not None and not self._refreshed:
            self._refreshed = True
            self.token.forget()
            raise _AgainError(status)
        if answer.status_code in (206, 416):  # not what was asked for: from the beginning
            self._validator = None
            raise _AgainError(status)
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            wait = _retry_after(answer.headers.get("Retry-After", ""))
            if wait > _LONGEST_WAIT:
                raise DownloadError(f"{status} and asks to wait for {wait:.0f} s")
            raise _AgainError(status, wait)
        hint = {401: "; check user and password", 403: "; no permission", 404: "; it is not there"}
        raise DownloadError(status + hint.get(answer.status_code, ""))

    def _open(self, headers: dict[str, str]) -> requests.Response:
        """The answer behind all redirects. The token goes to allowed hosts only."""
        url = self.href
        for _ in range(_MOST_REDIRECTS + 1):
            own = dict(headers)
            if self.token is not None and self.policy.allows(url):
                own["Authorization"] = f"Bearer {self.token.value()}"
            # `auth` keeps requests from looking for passwords in ~/.netrc.
            answer = requests.get(
                url, headers=own, auth=_as_it_is, stream=True, allow_redirects=False, timeout=self.policy.timeout
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            url = self._redirected(url, answer.headers["Location"])
        raise DownloadError(f"{shown(self.href)}: more than {_MOST_REDIRECTS} redirects")

    def _redirected(self, url: str, location: str) -> str:
        there = urljoin(url, location)
        if self.policy.allows(there):
            return there
        if urlsplit(there).scheme != "https" or not _is_public(urlsplit(there).hostname or ""):
            raise DownloadError(f"{shown(self.href)}: redirects to {shown(there)}, which is not allowed")
        return there


class _StoreTransfer(_Transfer):
    def go_on(self) -> None:
        import fsspec  # with s3fs or gcsfs, which take long to import

        scheme, _, path = self.href.partition("://")
        try:
            system = fsspec.filesystem(scheme)
        except ImportError as error:
            raise DownloadError(f"{shown(self.href)}: {error}") from None
        try:
            size = system.info(path)["size"]
            have = self._have
            with (
                system.open(path, "rb", block_size=2**22, cache_type="readahead") as source,
                self.target.open("ab") as file,
            ):
                source.seek(have)
                while piece := source.read(2**22):
                    file.write(piece)
                    self.progress(len(piece))
        except FileNotFoundError:
            raise DownloadError(f"{shown(self.href)}: it is not there") from None
        except PermissionError:
            raise DownloadError(f"{shown(self.href)}: no permission; check the credentials") from None
        except Exception as error:  # of botocore, aiohttp, ...
            raise _AgainError(f"{shown(self.href)}: {type(error).__name__}") from None
        if self._have != size:
            self.target.unlink()
            raise _AgainError(f"{shown(self.href)}: has {size} bytes, other than those that came")


class _FileTransfer(_Transfer):
    def go_on(self) -> None:
        path = Path(unquote(urlsplit(self.href).path))
        try:
            with open_file(path) as source, self.target.open("wb") as file:
                while piece := source.read(_PIECE):
                    file.write(piece)
                    self.progress(len(piece))
        except OSError as error:
            raise DownloadError(f"{shown(self.href)}: {error.strerror or error}") from None


class _Token:
    """A bearer token from an OAuth2 token endpoint, renewed before it ends."""

    def __init__(self, policy: DownloadPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._value: str | None = None
        self._refresh: str | None = None
        self._ends = 0.0

    def value(self) -> str:
        with self._lock:
            if self._value is None or time.monotonic() > self._ends:
                self._ask()
            assert self._value is not None
            return self._value

    def forget(self) -> None:
        """The server does not take it any more."""
        with self._lock:
            self._value = None

    def _ask(self) -> None:
        if self._refresh:
            try:
                self._post({"grant_type": "refresh_token", "refresh_token": self._refresh})
                return
            except DownloadError:
                self._refresh = None
        if not (self._policy.user and self._policy.password):
            raise DownloadError("a token endpoint is configured; set THESS_DOWNLOAD_USER and THESS_DOWNLOAD_PASSWORD")
        form = {"grant_type": "password", "username": self._policy.user, "password": self._policy.password}
        self._post(form | ({"totp": self._policy.one_time_code} if self._policy.one_time_code else {}))

    def _post(self, form: dict[str, str]) -> None:
        url = str(self._policy.token_url)
        try:
            answer = requests.post(
                url,
                data=form | {"client_id": self._policy.client_id},
                auth=_as_it_is,
                timeout=self._policy.timeout,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise _AgainError(f"{shown(url)}: {type(error).__name__}") from None
        if answer.status_code == 429 or answer.status_code >= 500:
            wait = min(_retry_after(answer.headers.get("Retry-After", "")), _LONGEST_WAIT)
            raise _AgainError(f"{shown(url)}: the server answers {answer.status_code}", wait)
        try:
            found = answer.json() if answer.status_code == 200 else {}
        except ValueError:
            found = {}
        if not isinstance(found, dict) or not isinstance(found.get("access_token"), str):
            raise DownloadError(f"{shown(url)}: gives no token ({answer.status_code}); check user and password")
        self._value = found["access_token"]
        self._refresh = found.get("refresh_token") if isinstance(found.get("refresh_token"), str) else None
        lifetime = found.get("expires_in")
        self._ends = time.monotonic() + 0.9 * (lifetime if isinstance(lifetime, int | float) else 60)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _retry_after(text: str) -> float:
    """Seconds, from seconds or a date; 0 for anything else."""
    if text.strip().isdigit():
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def _is_public(host: str) -> bool:
    """Whether all addresses of a host are public: not this machine, not its network."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(each[4][0]).is_global for each in found)
