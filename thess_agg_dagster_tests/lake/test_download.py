"""Downloads from servers that break, refuse, lie and redirect: real ones, on loopback."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thess_agg_dagster.lake import download
from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.download_policy import DownloadError, DownloadPolicy, shown
from thess_agg_dagster_tests.servers import PASSWORD, USER, Archive, S3Server, make_bucket, serving

DATA = np.random.default_rng(1).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


@pytest.fixture
def archive() -> Iterator[Archive]:
    with serving(Archive({"/tile": DATA})) as opened:
        yield opened


def downloader(archive: Archive, **options: Any) -> Downloader:
    given: dict[str, Any] = {"allowed": (archive.url,), "first_wait": 0.01, "timeout": 0.5} | options
    return Downloader(DownloadPolicy(**given))


def with_token(archive: Archive, **options: Any) -> Downloader:
    archive.needs_token = True
    given = {"token_url": f"{archive.url}/token", "user": USER, "password": PASSWORD} | options
    return downloader(archive, **given)


def test_a_file_arrives_and_progress_tells(archive: Archive, tmp_path: Path) -> None:
    pieces: list[int] = []
    downloader(archive).fetch(f"{archive.url}/tile", tmp_path / "t", pieces.append)
    assert (tmp_path / "t").read_bytes() == DATA
    assert sum(pieces) == len(DATA)


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_what_breaks_goes_on_where_it_stopped(archive: Archive, tmp_path: Path, fault: str) -> None:
    archive.faults["/tile"] = [fault, fault]
    downloader(archive).fetch(f"{archive.url}/tile", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == DATA
    assert archive.requests["/tile"] == 3
    assert archive.sent["/tile"] < len(DATA) + 2 * 2**16  # a piece of each connection is lost
    assert [seen.get("range", "").startswith("bytes=") for seen in archive.seen] == [False, True, True]


def test_a_file_that_changed_meanwhile_starts_anew(archive: Archive, tmp_path: Path) -> None:
    archive.faults["/tile"] = ["cut"]
    newer = DATA[::-1]

    def change(count: int) -> None:
        archive.files["/tile"] = newer

    downloader(archive).fetch(f"{archive.url}/tile", tmp_path / "t", change)
    assert (tmp_path / "t").read_bytes() == newer


def test_a_server_without_ranges_starts_anew(archive: Archive, tmp_path: Path) -> None:
    archive.ranges = False
    archive.faults["/tile"] = ["cut"]
    downloader(archive).fetch(f"{archive.url}/tile", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == DATA


@pytest.mark.parametrize(
    "faults", [["503", "500", "429"], ["503 after 1"], ["429 after Wed, 21 Oct 2015 07:28:00 GMT"]]
)
def test_a_busy_server_is_asked_again_when_it_says(archive: Archive, tmp_path: Path, faults: list[str]) -> None:
    archive.faults["/tile"] = list(faults)
    started = time.monotonic()
    downloader(archive).fetch(f"{archive.url}/tile", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == DATA
    assert archive.requests["/tile"] == len(faults) + 1
    assert (time.monotonic() - started >= 1) == ("after 1" in faults[0])


@pytest.mark.parametrize(
    ("faults", "message", "requests"),
    [
        (["403"], "answers 403; no permission", 1),
        (["404"], "answers 404; no such file", 1),
        (["410"], "answers 410", 1),
        (["503"] * 9, "answers 503", 6),
        (["cut"] * 99, "the connection broke|cut after", 6),
        (["503 after 9999"], "asks for a wait of 9999 s", 1),
        (["redirect /tile"] * 9, "more than 5 redirects", 6),
    ],
)
def test_what_cannot_be_had(archive: Archive, tmp_path: Path, faults: list[str], message: str, requests: int) -> None:
    archive.faults["/tile"] = list(faults)
    with pytest.raises(DownloadError, match=message):
        downloader(archive).fetch(f"{archive.url}/tile?signature=abc", tmp_path / "t")
    assert archive.requests["/tile"] == requests


def test_no_more_connections_than_allowed(archive: Archive, tmp_path: Path) -> None:
    one = downloader(archive, connections=2)
    threads = [
        threading.Thread(target=one.fetch, args=(f"{archive.url}/tile", tmp_path / str(number))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert archive.busiest <= 2
    assert all((tmp_path / str(number)).read_bytes() == DATA for number in range(8))


def test_a_connection_serves_many_requests_of_one_process(archive: Archive, tmp_path: Path) -> None:
    one, arguments = downloader(archive), (f"{archive.url}/tile", tmp_path / "t")
    one.fetch(*arguments)
    one.fetch(*arguments)
    assert archive.connections == 1
    forked = multiprocessing.get_context("fork").Process(target=one.fetch, args=arguments)
    forked.start()
    forked.join()
    assert (forked.exitcode, archive.connections) == (0, 2)
    one.fetch(*arguments)
    assert (tmp_path / "t").read_bytes() == DATA
    assert archive.connections == 2


# --- tokens ---------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_once_and_renewed_before_it_ends(archive: Archive, tmp_path: Path) -> None:
    one = with_token(archive)
    for _ in range(3):
        one.fetch(f"{archive.url}/tile", tmp_path / "t")
    assert archive.grants == ["password"]
    archive.token_lifetime = 0
    other = with_token(archive)
    for _ in range(2):
        other.fetch(f"{archive.url}/tile", tmp_path / "t")
    assert archive.grants == ["password", "password", "refresh_token"]


def test_a_token_that_is_refused_is_renewed_once(archive: Archive, tmp_path: Path) -> None:
    one = with_token(archive)
    one.fetch(f"{archive.url}/tile", tmp_path / "t")
    archive.tokens.append("another")  # the server forgot the old one
    one.fetch(f"{archive.url}/tile", tmp_path / "t")
    assert archive.grants == ["password", "refresh_token"]
    archive.faults["/tile"] = ["401"] * 9
    with pytest.raises(DownloadError, match="answers 401; check user and password"):
        one.fetch(f"{archive.url}/tile", tmp_path / "t")


def test_a_wrong_password_says_so_and_is_not_shown(archive: Archive, tmp_path: Path) -> None:
    one = with_token(archive, password="wr0ng-p4ss")
    with pytest.raises(DownloadError, match=r"/token: returns no token \(401\); check user and password") as caught:
        one.fetch(f"{archive.url}/tile", tmp_path / "t")
    assert "wr0ng" not in f"{caught.value} {one.policy}"
    with pytest.raises(DownloadError, match="set THESS_DOWNLOAD_USER and THESS_DOWNLOAD_PASSWORD"):
        with_token(archive, user=None).fetch(f"{archive.url}/tile", tmp_path / "t")


def test_a_token_stays_with_the_hosts_that_were_configured(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect to another host is followed without the token, and only to where it may go."""
    with serving(Archive({"/elsewhere": DATA})) as other:
        one = with_token(archive)
        archive.faults["/tile"] = [f"redirect {other.url}/elsewhere"] * 2
        with pytest.raises(
            DownloadError, match=r"redirects to http://127\.0\.0\.1:\d+/elsewhere, which is not allowed"
        ):
            one.fetch(f"{archive.url}/tile", tmp_path / "t")
        assert other.seen == []
        # There is no public address on a machine without a network: this one is declared to be.
        monkeypatch.setattr(download.HttpTransfer, "_redirected", lambda self, url, location: location)
        one.fetch(f"{archive.url}/tile", tmp_path / "t")
        assert (tmp_path / "t").read_bytes() == DATA
        assert "authorization" in archive.seen[-1]
        assert "authorization" not in other.seen[-1]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "[::1]", "0.0.0.0"]
)
def test_private_addresses_are_not_public(host: str) -> None:
    assert not DownloadPolicy(()).allows_redirect(f"https://{host}/")


@pytest.mark.parametrize("host", ["8.8.8.8", "[2001:4860:4860::8888]"])
def test_public_addresses_are(host: str) -> None:
    assert DownloadPolicy(()).allows_redirect(f"https://{host}/")


# --- what may be asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("href", "allowed"),
    [
        ("https://example.org/x", True),
        ("https://example.org:8443/x", True),
        ("https://me:secret@example.org/x", True),
        ("https://example.org.evil.com/x", False),
        ("https://evil.com/example.org", False),
        ("https://example.org@evil.com/x", False),
        ("http://example.org/x", False),
        ("s3://bucket/a/x", True),
        ("s3://bucket/ab", False),
        ("s3://bucket2/a/x", False),
        ("file:///mirror/x", True),
        ("file:///mirror/../etc/passwd", False),
        ("file:///etc/passwd", False),
        ("ftp://example.org/x", False),
        ("/etc/passwd", False),
    ],
)
def test_only_what_is_allowed_is_asked_for(href: str, allowed: bool) -> None:
    policy = DownloadPolicy(("example.org", "s3://bucket/a", "file:///mirror"))
    assert policy.allows(href) == allowed


def test_what_is_shown_holds_no_secret() -> None:
    assert shown("https://me:pw@example.org:8443/a/b?token=abc#x") == "https://example.org:8443/a/b"


# --- other sources --------------------------------------------------------------------------------------------


def test_from_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "tile x").write_bytes(DATA)
    one = Downloader(DownloadPolicy((f"file://{tmp_path}/mirror",)))
    one.fetch(f"file://{tmp_path}/mirror/tile%20x", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == DATA
    with pytest.raises(DownloadError, match="No such file"):
        one.fetch(f"file://{tmp_path}/mirror/gone", tmp_path / "t")


def test_from_s3(tmp_path: Path, s3_server: S3Server) -> None:
    make_bucket(s3_server, "archive").put_object(Bucket="archive", Key="a/tile", Body=DATA)
    one = Downloader(DownloadPolicy(("s3://archive",), first_wait=0.01))
    one.fetch("s3://archive/a/tile", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == DATA
    with pytest.raises(DownloadError, match="s3://archive/gone: no such file"):
        one.fetch("s3://archive/gone", tmp_path / "t")
