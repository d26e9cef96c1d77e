"""Telling receivers: reports of a real lake, a web server and a mail server on loopback that keep what they get."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from thess_agg_dagster.audit import receivers
from thess_agg_dagster.audit.digest import Standing
from thess_agg_dagster.audit.receivers import VARIABLES
from thess_agg_dagster.audit.telling import tell
from thess_agg_dagster.keys import REPORT
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster_tests.conftest import FIRST, SECOND, SmallLake, in_folder_and_bucket
from thess_agg_dagster_tests.processes import free_port
from thess_agg_dagster_tests.rasters import noise
from thess_agg_dagster_tests.servers import PASSWORD, USER, listening

SECRET = "T0SECRET/B0SECRET"


@dataclass
class Hook:
    """A web server that takes what is posted, and answers as it is told to: a status for each request, then 200."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    posted: list[dict[str, Any]] = field(default_factory=list)
    before_answer: Callable[[], None] = lambda: None

    @property
    def texts(self) -> list[str]:
        return [each["text"] for each in self.posted]


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    found = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = found.answers.pop(0) if found.answers else 200
            if (
                status == 200
                and self.path == f"/services/{SECRET}"
                and self.headers["Content-Type"] == "application/json"
            ):
                found.posted.append(json.loads(body))
            found.before_answer()
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setattr(receivers, "_WAITS", (0.01, 0.01))
    with listening(Handler) as url:
        found.url = f"{url}/services/{SECRET}"
        yield found


@dataclass
class Mailbox:
    """A mail server on loopback that wants a login over TLS, and refuses some addresses."""

    port: int
    received: list[EmailMessage] = field(default_factory=list)
    to: list[list[str]] = field(default_factory=list)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.received.append(message_from_bytes(envelope.content, policy=policy.default))
        self.to.append(envelope.rcpt_tos)
        return "250 OK"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key and the certificate of localhost, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "localhost.pem"
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(plain + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def mailbox(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    box = Mailbox(free_port())

    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword) -> AuthResult:
        known = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=known, handled=False)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # where TLS looks for those it trusts
    controller = Controller(
        box, hostname="127.0.0.1", port=box.port,
        tls_context=context, require_starttls=True, authenticator=login, auth_required=True, server_hostname="localhost",
    )  # fmt: skip
    controller.start()
    yield box
    controller.stop()


def by_hook(hook: Hook) -> dict[str, str]:
    return {"THESS_WEBHOOK_URL": hook.url}


def by_mail(box: Mailbox, to: str = "me@example.org") -> dict[str, str]:
    return {
        "THESS_MAIL_TO": to, "THESS_MAIL_FROM": "lake@example.org", "THESS_SMTP_HOST": "localhost",
        "THESS_SMTP_PORT": str(box.port), "THESS_SMTP_USER": USER, "THESS_SMTP_PASSWORD": PASSWORD,
    }  # fmt: skip


def set_all(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def report(lake: SmallLake, **params: Any) -> dict[str, Any]:
    """The metadata of a report that is made now."""
    run = run_asset(lake.instance, lake.resources(**params), REPORT)
    (seen,) = run.asset_materializations_for_node(REPORT.to_python_identifier())
    return {name: value.value for name, value in seen.metadata.items()}


# One is enough to fail.
BANDS = ["B04"]

FAILED = Standing(FIRST, "failed_missing_inputs", "B04 of <X> & Y: no such file", "run-1")
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def test_a_lake_is_told_of_when_something_changes_and_only_then(
    small_lake: SmallLake, hook: Hook, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = small_lake.lake
    set_all(monkeypatch, by_hook(hook) | by_mail(mailbox) | {"THESS_UI_URL": "http://ui.example.org"})
    scenes = small_lake.add_timestamp(FIRST, BANDS)
    late = small_lake.add_timestamp(SECOND, BANDS)[1]
    missing = lake.tile(late, "B04")
    missing.unlink()
    small_lake.list_rows((FIRST, scenes), (SECOND, [late]))
    small_lake.read_list()
    small_lake.aggregate(FIRST, bands=BANDS)
    failed = small_lake.aggregate(SECOND, bands=BANDS)
    seen = report(small_lake, bands=BANDS)
    assert seen["told"] == "webhook: 1 newly failed; mail: 1 newly failed"
    (text,), (mail,) = hook.texts, mailbox.received
    assert text.startswith(f"1 newly failed in {lake.root}\n\n")
    for each in (text, mail.get_content()):
        assert f"- {SECOND}: tiles are missing: " in each
        assert "no such file; download the tile again or take the scene off the list" in each
        assert f"http://ui.example.org/runs/{failed.run_id}" in each
        assert FIRST not in each
    assert (mail["From"], mail["To"], mailbox.to) == ("lake@example.org", "me@example.org", [["me@example.org"]])
    assert mail["Subject"] == f"thess-agg-dagster: 1 newly failed in {lake.root}"

    assert "told" not in report(small_lake, bands=BANDS)
    small_lake.aggregate(SECOND, bands=BANDS)  # it fails again, for the same reason
    assert "told" not in report(small_lake, bands=BANDS)
    assert (len(hook.texts), len(mailbox.received)) == (1, 1)

    small_lake.add_tile(late, "B04")
    small_lake.add_tile(scenes[0], "B04", east=True, pixels=noise(77, (120, 120), high=9000))
    assert small_lake.aggregate(SECOND, bands=BANDS).attempt.status == "success"
    seen = report(small_lake, bands=BANDS)
    assert seen["told"] == "webhook: 1 recovered, 1 stale; mail: 1 recovered, 1 stale"
    assert f"- {FIRST}: tiles: files, checksums or STAC items have changed" in hook.texts[-1]
    small_lake.aggregate(FIRST, bands=BANDS)
    assert "told" not in report(small_lake, bands=BANDS)
    assert (len(hook.texts), len(mailbox.received)) == (2, 2)
    assert "not_told" not in seen


@in_folder_and_bucket
def test_what_was_told_is_kept_in_the_lake(small_lake: SmallLake, hook: Hook) -> None:
    assert tell([FAILED], small_lake.lake, NOW, by_hook(hook)) == (["webhook: 1 newly failed"], [])
    kept = json.loads(small_lake.lake.told.read_bytes())
    assert list(kept["webhook"]["timestamps"]) == [FIRST]
    assert not any(secret in str(kept) for secret in (SECRET, hook.url))
    assert tell([FAILED], small_lake.lake, NOW, by_hook(hook)) == ([], [])
    again = tell([Standing(FIRST, "success")], small_lake.lake, NOW, by_hook(hook))
    assert again == (["webhook: 1 recovered"], [])
    assert json.loads(small_lake.lake.told.read_bytes())["webhook"]["timestamps"] == {}


def test_nobody_is_told_unless_asked_for(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, ["A"]))
    small_lake.read_list()
    small_lake.aggregate(FIRST)
    assert not {"told", "not_told", "metrics"} & set(report(small_lake))
    assert not [path for path in small_lake.lake.tables_folder.iterdir() if re.search(r"told|\.prom", path.name)]


def test_a_failing_receiver_fails_nothing_else_and_is_told_later(
    small_lake: SmallLake, hook: Hook, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, by_hook(hook) | by_mail(mailbox))
    small_lake.list_rows((FIRST, ["A"]))
    small_lake.read_list()
    small_lake.aggregate(FIRST)
    hook.answers = [404]
    run = run_asset(small_lake.instance, small_lake.resources(metrics=True), REPORT)
    assert run.success
    (seen,) = run.asset_materializations_for_node(REPORT.to_python_identifier())
    fault = "webhook at 127.0.0.1: answers 404; check THESS_WEBHOOK_URL; told again with the next report"
    assert seen.metadata["not_told"].value == fault
    assert seen.metadata["told"].value == "mail: 1 newly failed"
    logged = [each.message for each in small_lake.instance.all_logs(run.run_id) if each.level == 30]
    assert any(fault in line for line in logged)
    assert "thess_digest_faults" in small_lake.lake.metrics.read_text()
    assert list(small_lake.tables_on_disk()["status"]["timestamp"]) == [FIRST]
    assert report(small_lake)["told"] == "webhook: 1 newly failed"
    assert (len(hook.texts), len(mailbox.received)) == (1, 1)
    # Nothing in Dagster's databases lets anyone write there, or log in.
    files = [path for path in Path(small_lake.instance.root_directory).rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in files)
    assert fault.encode() in held
    assert not any(secret.encode() in held for secret in (SECRET, PASSWORD))


def test_a_busy_webhook_is_asked_again_at_once(tmp_path: Path, hook: Hook) -> None:
    hook.answers = [503, 429]
    assert tell([FAILED], DataLake(tmp_path), NOW, by_hook(hook)) == (["webhook: 1 newly failed"], [])
    (text,) = hook.texts
    assert "B04 of &lt;X&gt; &amp; Y: no such file" in text  # as Slack asks for
    hook.answers = [503, 503, 503]
    again = Standing(FIRST, "success")
    assert tell([again], DataLake(tmp_path), NOW, by_hook(hook))[1] == [
        "webhook at 127.0.0.1: answers 503; told again with the next report"
    ]


@pytest.mark.parametrize("answer", [302, 307, 400, 500])
def test_what_is_not_a_success_is_a_failure(tmp_path: Path, hook: Hook, answer: int) -> None:
    hook.answers = [answer]
    told, (fault,) = tell([FAILED], DataLake(tmp_path), NOW, by_hook(hook))
    assert (told, hook.texts) == ([], [])
    assert f"answers {answer}" in fault


def test_a_process_that_is_killed_before_it_can_note_tells_the_same_again(tmp_path: Path, mailbox: Mailbox) -> None:
    lake = DataLake(tmp_path)
    process = 0

    async def take_and_kill(server: Any, session: Any, envelope: Any) -> str:
        result = await Mailbox.handle_DATA(mailbox, server, session, envelope)
        if len(mailbox.received) == 1:
            os.kill(process, signal.SIGKILL)
        return result

    mailbox.handle_DATA = take_and_kill  # type: ignore[method-assign]
    process = os.fork()
    if not process:
        tell([FAILED], lake, NOW, by_mail(mailbox))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert not lake.told.exists()
    assert tell([FAILED], lake, NOW + timedelta(hours=1), by_mail(mailbox))[0] == ["mail: 1 newly failed"]
    first, second = mailbox.received
    assert first["Message-ID"] == second["Message-ID"]  # so that a mailbox can tell
    assert tell([FAILED], lake, NOW + timedelta(hours=2), by_mail(mailbox)) == ([], [])


def test_what_cannot_be_noted_is_told_again(tmp_path: Path, hook: Hook) -> None:
    lake = DataLake(tmp_path)
    lake.told.mkdir(parents=True)
    for _ in range(2):
        told, (fault,) = tell([FAILED], lake, NOW, by_hook(hook))
        assert told == ["webhook: 1 newly failed"]
        assert fault.startswith(f"{lake.told}: cannot be written (")
    assert len(hook.texts) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"webhook": 1}', b'{"webhook": {"timestamps": [1]}}'])
def test_a_damaged_memory_is_told_of_and_replaced(tmp_path: Path, hook: Hook, damage: bytes) -> None:
    lake = DataLake(tmp_path)
    lake.tables_folder.mkdir()
    lake.told.write_bytes(damage)
    told, (fault,) = tell([FAILED], lake, NOW, by_hook(hook))
    assert told == ["webhook: 1 newly failed"]
    assert fault.startswith(f"{lake.told}: is damaged")
    assert tell([FAILED], lake, NOW, by_hook(hook)) == ([], [])


def test_of_two_reports_at_once_one_tells(tmp_path: Path, hook: Hook) -> None:
    hook.before_answer = lambda: time.sleep(0.2)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(tell([FAILED], DataLake(tmp_path), NOW, by_hook(hook))))
        for _ in range(3)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(results) == [([], []), ([], []), (["webhook: 1 newly failed"], [])]
    assert len(hook.texts) == 1


def test_an_older_report_that_comes_late_tells_nothing(tmp_path: Path, hook: Hook) -> None:
    lake = DataLake(tmp_path)
    early = datetime.now(UTC) - timedelta(minutes=2)
    tell([FAILED], lake, early, by_hook(hook))
    tell([Standing(FIRST, "success")], lake, early + timedelta(minutes=1), by_hook(hook))
    assert tell([FAILED], lake, early + timedelta(seconds=30), by_hook(hook)) == ([], [])
    # A clock that was wrong once silences nobody.
    known = json.loads(lake.told.read_text())
    known["webhook"]["at"] = "2100-01-01T00:00:00.000000+00:00"
    lake.told.write_text(json.dumps(known))
    assert tell([FAILED], lake, datetime.now(UTC), by_hook(hook))[0] == ["webhook: 1 newly failed"]


def test_an_address_that_is_refused_keeps_the_digest_from_no_other(tmp_path: Path, mailbox: Mailbox) -> None:
    lake, environment = DataLake(tmp_path), by_mail(mailbox, "me@example.org, nobody@example.org")
    told, (fault,) = tell([FAILED], lake, NOW, environment)
    assert told == ["mail: 1 newly failed"]
    assert "refuses nobody@example.org; check THESS_MAIL_TO" in fault
    assert mailbox.to == [["me@example.org"]]
    assert tell([FAILED], lake, NOW, environment) == ([], [])
    told, (fault,) = tell([Standing(FIRST, "success")], lake, NOW, by_mail(mailbox, "nobody@example.org"))
    assert told == []
    assert "refuses nobody@example.org; check THESS_MAIL_TO; told again" in fault


def test_a_wrong_password_is_not_spelled_out(tmp_path: Path, mailbox: Mailbox) -> None:
    environment = by_mail(mailbox) | {"THESS_SMTP_PASSWORD": "s0-wrong"}
    told, (fault,) = tell([FAILED], DataLake(tmp_path), NOW, environment)
    assert (told, mailbox.received) == ([], [])
    assert "refuses the login (535); check THESS_SMTP_USER and THESS_SMTP_PASSWORD" in fault
    assert "s0-wrong" not in fault


def test_a_mail_server_that_cannot_be_trusted_gets_no_password(
    tmp_path: Path, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    told, (fault,) = tell([FAILED], DataLake(tmp_path), NOW, by_mail(mailbox))
    assert (told, mailbox.received) == ([], [])
    assert "certificate verify failed" in fault


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"THESS_WEBHOOK_URL": "hooks.example.org/T0SECRET"}, "THESS_WEBHOOK_URL is not an https:// address"),
        ({"THESS_WEBHOOK_URL": "https://[T0SECRET"}, "THESS_WEBHOOK_URL is not an https:// address"),
        ({"THESS_MAIL_TO": "me@example.org"}, "THESS_MAIL_TO is set, but not THESS_SMTP_HOST, the mail server"),
        ({"THESS_MAIL_TO": "me"}, "THESS_MAIL_FROM: 'me' is not a mail address, e.g. me@example.org"),
        (
            {"THESS_MAIL_TO": "a@b.org,me", "THESS_SMTP_HOST": "localhost"},
            "THESS_MAIL_TO: 'me' is not a mail address, e.g. me@example.org",
        ),
        (
            {"THESS_MAIL_TO": "a@b.org", "THESS_SMTP_HOST": "localhost", "THESS_SMTP_SECURITY": "ssl"},
            "THESS_SMTP_SECURITY='ssl' is not one of starttls, tls, none",
        ),
        (
            {"THESS_MAIL_TO": "a@b.org", "THESS_SMTP_HOST": "localhost", "THESS_SMTP_PORT": "0"},
            "THESS_SMTP_PORT='0' is not a port, 1 to 65535",
        ),
    ],
)
def test_what_is_configured_wrongly_is_named(
    tmp_path: Path, hook: Hook, environment: dict[str, str], fault: str
) -> None:
    told, faults = tell([FAILED], DataLake(tmp_path), NOW, environment)
    assert (told, faults) == ([], [fault])
    if "THESS_WEBHOOK_URL" not in environment:  # one that is well is told
        assert tell([FAILED], DataLake(tmp_path), NOW, environment | by_hook(hook)) == (
            ["webhook: 1 newly failed"],
            [fault],
        )


def test_a_receiver_that_cannot_be_reached(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "THESS_WEBHOOK_URL": f"http://127.0.0.1:{port}/{SECRET}", "THESS_MAIL_TO": "me@example.org",
        "THESS_SMTP_HOST": "127.0.0.1", "THESS_SMTP_PORT": str(port), "THESS_SMTP_SECURITY": "none",
    }  # fmt: skip
    told, faults = tell([FAILED], DataLake(tmp_path), NOW, environment)
    assert told == []
    assert [fault.partition(":")[0] for fault in faults] == ["webhook at 127.0.0.1", "mail server 127.0.0.1"]
    assert SECRET not in str(faults)


def test_every_variable_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ALERTS.md").read_text()
    rows = dict(re.findall(r"^\| `(THESS_\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == dict(VARIABLES)
