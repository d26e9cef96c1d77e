"""Download policies: from which hosts files may come, and the token that these hosts get."""

from __future__ import annotations

import email.utils
import ipaddress
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    import requests

#: Object stores, read with the machine's own credentials.
STORES = ("s3", "gs", "az")
#: A server that asks for a longer wait, in seconds, is not asked again.
LONGEST_WAIT = 300.0


class DownloadError(Exception):
    """A file cannot be downloaded. The text contains no secrets."""


class RetryError(DownloadError):
    """A later attempt may succeed, after ``wait`` seconds if the server said so."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class DownloadPolicy:
    """Where files may come from, and how they are requested.

    ``allowed`` are hosts (``host`` or ``host:port``, for ``https``), ``http://host:port``, ``s3://bucket/prefix``
    (or ``gs://``, ``az://``) and ``file:///folder``. No other source is contacted first, and only these hosts get the
    token. A redirect may lead to another host by ``https``, if its address is public.
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
        """Whether a file may be requested from this address."""
        url = urlsplit(href)
        if url.scheme == "https":  # a host alone means each of its ports
            return _host(href) in self.allowed or url.hostname in self.allowed
        if url.scheme == "http":
            return f"http://{_host(href)}" in self.allowed
        if url.scheme in STORES:
            return any(_below(href, each) for each in self.allowed if urlsplit(each).scheme == url.scheme)
        if url.scheme == "file":
            path = Path(unquote(url.path)).resolve()
            folders = (
                Path(unquote(urlsplit(each).path)).resolve() for each in self.allowed if each.startswith("file://")
            )
            return any(path.is_relative_to(folder) for folder in folders)
        return False

    def allows_redirect(self, href: str) -> bool:
        """Whether a redirect to this address may be followed."""
        url = urlsplit(href)
        return self.allows(href) or (url.scheme == "https" and _is_public(url.hostname or ""))


def shown(href: str) -> str:
    """An address without the parts that may be secret: user, password, query."""
    url = urlsplit(href)
    return urlunsplit((url.scheme, _host(href), url.path, "", ""))


def _host(href: str) -> str:
    """Host and port, without user and password."""
    return urlsplit(href).netloc.rpartition("@")[2]


def _below(href: str, prefix: str) -> bool:
    return href == prefix or href.startswith(prefix.rstrip("/") + "/")


class Token:
    """A bearer token from an OAuth2 token endpoint, renewed before it expires."""

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
        """Discard the token, because a server no longer accepts it."""
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
        import requests  # here: most processes have a policy at hand and download nothing

        url = str(self._policy.token_url)
        try:
            answer = requests.post(
                url,
                data=form | {"client_id": self._policy.client_id},
                auth=unchanged,
                timeout=self._policy.timeout,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise RetryError(f"{shown(url)}: {type(error).__name__}") from None
        if answer.status_code == 429 or answer.status_code >= 500:
            wait = min(retry_after(answer.headers.get("Retry-After", "")), LONGEST_WAIT)
            raise RetryError(f"{shown(url)}: the server answers {answer.status_code}", wait)
        try:
            found = answer.json() if answer.status_code == 200 else {}
        except ValueError:
            found = {}
        if not isinstance(found, dict) or not isinstance(found.get("access_token"), str):
            raise DownloadError(f"{shown(url)}: returns no token ({answer.status_code}); check user and password")
        self._value = found["access_token"]
        self._refresh = found.get("refresh_token") if isinstance(found.get("refresh_token"), str) else None
        lifetime = found.get("expires_in")
        self._ends = time.monotonic() + 0.9 * (lifetime if isinstance(lifetime, int | float) else 60)


def unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def retry_after(text: str) -> float:
    """The seconds in a ``Retry-After`` header, given as seconds or a date; 0 for anything else."""
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
