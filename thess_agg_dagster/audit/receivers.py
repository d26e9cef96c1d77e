"""Receivers of digests: a webhook and mail. All they need is in the environment, because some of it is secret."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate
from typing import Protocol
from urllib.parse import urlsplit

from thess_agg_dagster.audit.digest import Digest
from thess_agg_dagster.lake.download_policy import unchanged

#: The environment variables, with their meaning and, for those that have one, their default.
VARIABLES: Mapping[str, str] = {
    "THESS_WEBHOOK_URL": 'a digest is posted there as `{"text": ...}`: Slack\'s incoming webhooks and all that take the same '
    "(secret)",
    "THESS_MAIL_TO": "mail addresses, separated by commas",
    "THESS_MAIL_FROM": "the sender's address; default: the first of `THESS_MAIL_TO`",
    "THESS_SMTP_HOST": "the mail server",
    "THESS_SMTP_PORT": "default: 587 for `starttls`, 465 for `tls`, 25 for `none`",
    "THESS_SMTP_SECURITY": "`starttls` (default), `tls` from the first byte, or `none`",
    "THESS_SMTP_USER": "to log in; unset: no login",
    "THESS_SMTP_PASSWORD": "(secret)",
    "THESS_UI_URL": "the address of Dagster's UI, for links in the digest",
}
_PORTS = {"starttls": 587, "tls": 465, "none": 25}

# Seconds that a receiver may take to answer, and seconds between tries of one that is busy.
_TIMEOUT, _WAITS = 15, (1, 3)
_BUSY = (429, 502, 503, 504)


class ReceiverError(Exception):
    """A digest was not taken, or cannot be sent as configured. The text contains no secrets."""


class _BusyError(ReceiverError):
    """The receiver did not take it, and may in a moment."""


class Receiver(Protocol):
    """Where digests go to. ``name`` tells receivers apart in what is remembered of them, and holds no secret."""

    @property
    def name(self) -> str: ...

    def send(self, digest: Digest) -> str:
        """Deliver a digest; returns what went wrong although it was delivered, mostly nothing. Raises
        :class:`ReceiverError`."""


@dataclass(frozen=True)
class Webhook:
    """Posts digests as JSON, in the form of Slack's incoming webhooks."""

    url: str = field(repr=False)
    name: str = "webhook"

    def send(self, digest: Digest) -> str:
        """Post a digest; tried again only where it was certainly not taken. Raises :class:`ReceiverError`."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_chain, wait_fixed

        for attempt in Retrying(
            stop=stop_after_attempt(len(_WAITS) + 1),
            wait=wait_chain(*map(wait_fixed, _WAITS)),
            retry=retry_if_exception_type(_BusyError),
            reraise=True,
        ):
            with attempt:
                self._post(f"{digest.subject}\n\n{digest.text}")
        return ""

    def _post(self, text: str) -> None:
        import requests

        where = f"webhook at {urlsplit(self.url).hostname}"  # whoever knows the path can write there
        for letter, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # those that Slack asks for
            text = text.replace(letter, escaped)
        body = {"text": text, "mrkdwn": False}  # names of scenes have underscores
        try:
            # `auth` keeps requests from looking for passwords in ~/.netrc.
            answer = requests.post(self.url, json=body, auth=unchanged, timeout=_TIMEOUT, allow_redirects=False)
        except (requests.RequestException, ValueError) as error:
            raise ReceiverError(f"{where}: {type(error).__name__}") from None
        if answer.status_code in _BUSY:
            raise _BusyError(f"{where}: answers {answer.status_code}")
        if not 200 <= answer.status_code < 300:
            raise ReceiverError(f"{where}: answers {answer.status_code}; check THESS_WEBHOOK_URL")


@dataclass(frozen=True)
class Mail:
    """Sends digests by SMTP."""

    host: str
    port: int
    security: str
    sender: str
    to: Sequence[str]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    name: str = "mail"

    def send(self, digest: Digest) -> str:
        """Send a digest; returns which of several addresses were refused. Raises :class:`ReceiverError`."""
        where = f"mail server {self.host}:{self.port}"
        try:
            with self._connected() as server:
                if self.user:
                    server.login(self.user, self.password or "")
                refused = server.send_message(self._message(digest))
        except smtplib.SMTPAuthenticationError as error:
            raise ReceiverError(
                f"{where}: refuses the login ({error.smtp_code}); check THESS_SMTP_USER and THESS_SMTP_PASSWORD"
            ) from None
        except smtplib.SMTPRecipientsRefused as error:
            raise ReceiverError(f"{where}: refuses {', '.join(error.recipients)}; check THESS_MAIL_TO") from None
        except (smtplib.SMTPException, OSError) as error:
            raise ReceiverError(f"{where}: {type(error).__name__}: {error}") from None
        # The others have it: it is not sent again.
        return f"{where}: refuses {', '.join(refused)}; check THESS_MAIL_TO" if refused else ""

    def _connected(self) -> smtplib.SMTP:
        if self.security == "tls":
            return smtplib.SMTP_SSL(self.host, self.port, timeout=_TIMEOUT, context=ssl.create_default_context())
        server = smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT)
        try:
            if self.security == "starttls":
                server.starttls(context=ssl.create_default_context())
        except BaseException:
            server.close()
            raise
        return server

    def _message(self, digest: Digest) -> EmailMessage:
        message = EmailMessage()
        message["Subject"] = " ".join(f"thess-agg-dagster: {digest.subject}".split())
        message["From"] = self.sender
        message["To"] = ", ".join(self.to)
        message["Date"] = formatdate(localtime=True)
        message["Message-ID"] = f"<{digest.name}@thess-agg-dagster>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(digest.text)
        return message


def receivers(environment: Mapping[str, str]) -> tuple[list[Receiver], list[str]]:
    """The receivers that are configured (see :data:`VARIABLES`), and what is wrong with those that cannot be used."""

    def given(name: str) -> str:
        return environment.get(f"THESS_{name}", "").strip()

    makers: list[Callable[[], Receiver]] = []
    if url := given("WEBHOOK_URL"):
        makers.append(lambda: _webhook(url))
    if to := [address for part in given("MAIL_TO").split(",") if (address := part.strip())]:
        makers.append(lambda: _mail(to, {name: given(name) for name in ("MAIL_FROM", *_SMTP)}))
    found: list[Receiver] = []
    faults = []
    for make in makers:
        try:
            found.append(make())
        except ReceiverError as error:
            faults.append(str(error))
    return found, faults


_SMTP = ("SMTP_HOST", "SMTP_PORT", "SMTP_SECURITY", "SMTP_USER", "SMTP_PASSWORD")


def _webhook(url: str) -> Webhook:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("https", "http") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise ReceiverError("THESS_WEBHOOK_URL is not an https:// address")
    return Webhook(url)


def _mail(to: Sequence[str], given: Mapping[str, str]) -> Mail:
    sender, security = given["MAIL_FROM"] or to[0], given["SMTP_SECURITY"] or "starttls"
    for name, address in (("THESS_MAIL_FROM", sender), *(("THESS_MAIL_TO", each) for each in to)):
        if "@" not in address or not address.isprintable() or " " in address:
            raise ReceiverError(f"{name}: {address[:80]!r} is not a mail address, e.g. me@example.org")
    if not given["SMTP_HOST"]:
        raise ReceiverError("THESS_MAIL_TO is set, but not THESS_SMTP_HOST, the mail server")
    if security not in _PORTS:
        raise ReceiverError(f"THESS_SMTP_SECURITY={security!r} is not one of {', '.join(_PORTS)}")
    port = given["SMTP_PORT"] or str(_PORTS[security])
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ReceiverError(f"THESS_SMTP_PORT={port!r} is not a port, 1 to 65535")
    return Mail(
        given["SMTP_HOST"],
        int(port),
        security,
        sender,
        to,
        given["SMTP_USER"] or None,
        given["SMTP_PASSWORD"] or None,
    )
