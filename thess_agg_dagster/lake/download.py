"""Downloads: one file from an allowed source, completely or not at all.

Sources are ``https`` (with a bearer token from an OAuth2 token endpoint, if configured), ``s3``, ``gs``, ``az`` and
``file``.
Interrupted downloads resume where they stopped; requests that a server refuses are not repeated.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urljoin, urlsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from thess_agg_dagster.lake.download_policy import (
    LONGEST_WAIT,
    STORES,
    DownloadError,
    DownloadPolicy,
    RetryError,
    Token,
    retry_after,
    shown,
    unchanged,
)
from thess_agg_dagster.storage.paths import as_os_errors, lake_path, open_file

# What is lost of a connection that breaks, at most.
_PIECE = 2**16
_MOST_REDIRECTS = 5

Progress = Callable[[int], None]


class Downloader:
    """Downloads files under a policy. Thread-safe."""

    def __init__(self, policy: DownloadPolicy) -> None:
        self.policy = policy
        self.token = Token(policy) if policy.token_url else None
        self._connections = threading.BoundedSemaphore(policy.connections)
        self._session: tuple[int, requests.Session] | None = None

    @property
    def session(self) -> requests.Session:
        """Connections that stay open for the next request, without cookies; a process that was forked opens its own."""
        if self._session is None or self._session[0] != os.getpid():
            session = requests.Session()
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            self._session = os.getpid(), session
        return self._session[1]

    def fetch(self, href: str, target: Path, progress: Progress = lambda _: None) -> None:
        """Download ``href`` to ``target``. Raises :class:`DownloadError`; then ``target`` is missing or incomplete."""
        if not self.policy.allows(href):
            raise DownloadError(f"{shown(href)} is not among the allowed sources ({', '.join(self.policy.allowed)})")
        once = {**dict.fromkeys(STORES, _StoreTransfer), "file": _FileTransfer}.get(urlsplit(href).scheme, HttpTransfer)
        transfer = once(self, href, target, progress)
        target.unlink(missing_ok=True)
        self.run(transfer)

    def run(self, transfer: _Transfer) -> None:
        """Continue a transfer, with retries, until it is done. Raises :class:`DownloadError`."""
        for attempt in Retrying(
            stop=stop_after_attempt(self.policy.attempts),
            wait=self._wait,
            retry=retry_if_exception_type(RetryError),
            reraise=True,
        ):
            with attempt, self._connections:
                transfer.go_on()

    def _wait(self, state: RetryCallState) -> float:
        """Wait as long as the server asks for, otherwise longer each time, with some randomness."""
        error = state.outcome.exception() if state.outcome else None
        backoff: float = self.policy.first_wait * 2 ** (state.attempt_number - 1) * random.uniform(0.5, 1.5)
        return max(backoff, error.wait if isinstance(error, RetryError) else 0.0)


class _Transfer:
    """One file on its way; ``go_on`` continues where the last try stopped."""

    def __init__(self, downloader: Downloader, href: str, target: Path, progress: Progress) -> None:
        self.policy, self.token, self.session = downloader.policy, downloader.token, downloader.session
        self.href, self.target, self.progress = href, target, progress

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
            raise RetryError(f"{shown(self.href)}: the connection broke ({type(error).__name__})") from None
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
        return RetryError(f"{shown(self.href)}: cut after {received} bytes")

    def _refuse(self, answer: requests.Response) -> None:
        status = f"{shown(self.href)}: the server answers {answer.status_code}"
        if answer.status_code == 401 and self.token is not None and not self._refreshed:
            self._refreshed = True
            self.token.forget()
            raise RetryError(status)
        if answer.status_code in (206, 416):  # not what was asked for: from the beginning
            self._validator = None
            raise RetryError(status)
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            wait = retry_after(answer.headers.get("Retry-After", ""))
            if wait > LONGEST_WAIT:
                raise DownloadError(f"{status} and asks for a wait of {wait:.0f} s")
            raise RetryError(status, wait)
        hint = {401: "; check user and password", 403: "; no permission", 404: "; no such file"}
        raise DownloadError(status + hint.get(answer.status_code, ""))

    def _open(self, headers: dict[str, str]) -> requests.Response:
        """The answer behind all redirects. The token goes to allowed hosts only."""
        url = self.href
        for _ in range(_MOST_REDIRECTS + 1):
            own = dict(headers)
            if self.token is not None and self.policy.allows(url):
                own["Authorization"] = f"Bearer {self.token.value()}"
            # `auth` keeps requests from looking for passwords in ~/.netrc.
            answer = self.session.get(
                url, headers=own, auth=unchanged, stream=True, allow_redirects=False, timeout=self.policy.timeout
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            url = self._redirected(url, answer.headers["Location"])
        raise DownloadError(f"{shown(self.href)}: more than {_MOST_REDIRECTS} redirects")

    def _redirected(self, url: str, location: str) -> str:
        there = urljoin(url, location)
        if not self.policy.allows_redirect(there):
            raise DownloadError(f"{shown(self.href)}: redirects to {shown(there)}, which is not allowed")
        return there


class _StoreTransfer(_Transfer):
    def go_on(self) -> None:
        path = self.href.partition("://")[2]
        try:
            place = lake_path(self.href)
        except ImportError as error:
            raise DownloadError(f"{shown(self.href)}: {error}") from None
        try:
            system = cast(Any, place).fs
            have = self._have
            with (
                as_os_errors(place),
                system.open(path, "rb", block_size=2**22, cache_type="readahead") as source,
                self.target.open("ab") as file,
            ):
                size = source.size
                source.seek(have)
                while piece := source.read(2**22):
                    file.write(piece)
                    self.progress(len(piece))
        except FileNotFoundError:
            raise DownloadError(f"{shown(self.href)}: no such file") from None
        except PermissionError:
            raise DownloadError(f"{shown(self.href)}: no permission; check the credentials") from None
        except Exception as error:  # of botocore, aiohttp, ...
            raise RetryError(f"{shown(self.href)}: {type(error).__name__}") from None
        if self._have != size:
            self.target.unlink()
            raise RetryError(f"{shown(self.href)}: has {size} bytes, but another number arrived")


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
