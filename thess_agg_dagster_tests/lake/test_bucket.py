"""Two runs that publish one timestamp in a bucket at the same time, on a real S3 API server that lets them go on request
by request."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import xxhash
from moto.s3.models import s3_backends
from upath import UPath

from thess_agg_dagster.lake import bucket
from thess_agg_dagster.lake.bucket import publish_run
from thess_agg_dagster.lake.checksums import ChangedError
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import MANIFEST
from thess_agg_dagster.lake.run_names import run_name
from thess_agg_dagster_tests.conftest import FIRST
from thess_agg_dagster_tests.servers import S3_ENVIRONMENT, S3Server, make_bucket, serving_s3

NAMES = ("B04.tif", "quicklook.jpg")


def digest(data: bytes) -> str:
    return f"xxh128:{xxhash.xxh3_128(data).hexdigest()}"


@dataclass
class Run:
    """A run that plans and publishes on a thread of its own, as far as it is let; it speaks to a server of its own."""

    name: str
    lake: DataLake
    server: S3Server
    staged: Path
    begun: datetime | None = None
    outcome: str = ""
    folder: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _tokens: int = 0
    _waiting: bool = False
    _state: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def work(self) -> None:
        """What the product does, from planning to the end."""
        replaces = self.lake.version(FIRST)
        target = self.lake.timestamp_folder(FIRST) / run_name(self.begun)
        self.folder = target.name
        self.files = {f"{target.name}/{name}": f"{name} of {self.name} in {target.name}".encode() for name in NAMES}
        self.staged.mkdir(exist_ok=True)
        for name, data in self.files.items():
            (self.staged / name.rpartition("/")[2]).write_bytes(data)
        outputs = [{"file": name, "checksum": digest(data)} for name, data in self.files.items()]
        (self.staged / MANIFEST).write_text(json.dumps({"timestamp": FIRST, "outputs": outputs}))
        try:
            publish_run(self.staged, target, MANIFEST, replaces)
            self.outcome = "published"
        except ChangedError:
            self.outcome = "refused"
        except OSError as error:
            self.outcome = f"failed: {error}"

    def _gate(self, method: str, path: str) -> None:
        with self._state:
            self.asked.append(method)
            self._waiting = True
            self._state.notify_all()
            assert self._state.wait_for(lambda: self._tokens > 0, 20)
            self._tokens -= 1
            self._waiting = False

    def begin(self) -> None:
        """Up to its first request; a run that has begun just goes on."""
        if self._thread:
            return

        def work() -> None:
            try:
                self.work()
            finally:
                with self._state:
                    self._state.notify_all()

        self.server.gate = self._gate
        self._thread = threading.Thread(target=work)
        self._thread.start()
        self._settle()

    def step(self) -> bool:
        """Let it have one request; False where it is done."""
        if self.outcome:
            return False
        with self._state:
            self._waiting = False
            self._tokens += 1
            self._state.notify_all()
        self._settle()
        return True

    def _settle(self) -> None:
        with self._state:
            assert self._state.wait_for(lambda: (self._waiting and not self._tokens) or bool(self.outcome), 20)
        if self.outcome and self._thread:
            self._thread.join()
            self.server.gate = None


def _store() -> Any:
    return s3_backends["123456789012"]["aws"]


@dataclass
class Place:
    """A bucket with an address for each of two runs, and a look into the store behind them."""

    lakes: list[DataLake]
    servers: list[S3Server]
    name: str
    tmp_path: Path

    def save(self) -> dict[str, bytes]:
        return {name: key.value for name, key in _store().buckets[self.name].keys.items()}

    def restore(self, saved: Mapping[str, bytes]) -> None:
        _store().buckets[self.name].keys.clear()
        for name, data in saved.items():
            _store().put_object(self.name, name, data)

    def objects(self) -> dict[str, bytes]:
        """What stands in the timestamp's folder, by its name in there."""
        prefix = f"{cast(Any, self.lakes[0].timestamp_folder(FIRST)).path.removeprefix(f'{self.name}/')}/"
        return {name.removeprefix(prefix): data for name, data in self.save().items() if name.startswith(prefix)}

    def run(self, number: int, **options: Any) -> Run:
        return Run("AB"[number], self.lakes[number], self.servers[number], self.tmp_path / "AB"[number], **options)


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[S3Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving_s3()) for _ in range(2)]  # of one and the same store


@pytest.fixture
def place(addresses: list[S3Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(bucket, "REQUESTS", 1)  # so that what a run asks next is certain
    name = f"race-{uuid.uuid4().hex}"
    make_bucket(addresses[0], name)
    keys = {"key": S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"], "secret": S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]}
    lakes = [
        DataLake(cast(Path, UPath(f"s3://{name}/lake", endpoint_url=each.url, use_listings_cache=False, **keys)))
        for each in addresses
    ]
    for each in addresses:
        each.faults.clear()
    return Place(lakes, addresses, name, tmp_path)


def nothing(place: Place) -> list[Run]:
    return []


def another_run(place: Place) -> list[Run]:
    run = place.run(0)
    run.name = "before"
    run.work()
    assert run.outcome == "published"
    return [run]


def an_older_release(place: Place) -> list[Run]:
    """0.1.0 put everything side by side."""
    run = Run("0.1.0", place.lakes[0], place.servers[0], place.tmp_path)
    run.files = {name: f"{name} of 0.1.0".encode() for name in NAMES}
    for name, data in run.files.items():
        (place.lakes[0].timestamp_folder(FIRST) / name).write_bytes(data)
    outputs = [{"file": name, "checksum": digest(data)} for name, data in run.files.items()]
    place.lakes[0].manifest(FIRST).write_text(json.dumps({"timestamp": FIRST, "outputs": outputs}))
    return [run]


def assert_whole(place: Place, runs: list[Run]) -> str:
    """A reader finds all files of one run, or nothing; returns whose."""
    objects = place.objects()
    known = {name: data for run in runs for name, data in run.files.items()}
    assert {name: data for name, data in objects.items() if name != MANIFEST}.items() <= known.items()
    if MANIFEST not in objects:
        return ""
    manifest = json.loads(objects[MANIFEST])
    assert {each["file"]: each["checksum"] for each in manifest["outputs"]} == {
        name: digest(objects[name]) for name in (each["file"] for each in manifest["outputs"])
    }
    (whose,) = [run.name for run in runs if set(run.files) == {each["file"] for each in manifest["outputs"]}]
    return whose


@pytest.mark.parametrize("before", [nothing, another_run, an_older_release])
def test_two_runs_at_a_time_in_every_order(place: Place, before: Callable[[Place], list[Run]]) -> None:
    """One gets some way, then the other, then the first one to its end, then the other: for every two ways.

    Stops are wherever the other run could notice: before the plan, after it, before the manifest, and at each request from
    there on. (Uploads go to names that only their own run knows.)
    """
    there = before(place)
    saved = place.save()
    alone = place.run(0)
    in_order(place, [alone], there, 0, 0)
    manifest = max(at for at, method in enumerate(alone.asked) if method == "PUT")
    stops = [0, 1, *range(manifest, len(alone.asked) + 1)]
    if before is not another_run:
        stops = [0, manifest, manifest + 1]
    for first in stops:
        for second in stops:
            place.restore(saved)
            runs = [place.run(0), place.run(1)]
            seen = in_order(place, runs, there, first, second)
            # Exactly one run's objects are left, and a reader found them last.
            last = next(run for run in runs if run.name == seen[-1])
            assert set(place.objects()) == {MANIFEST, *last.files}
            assert place.lakes[0].published(FIRST).folder.name == last.folder
            # Who was published was seen; what was there before never again; who was not, was told.
            assert len(seen) == len(set(seen))
            assert {run.name: run.outcome for run in runs} == {
                run.name: "published" if run.name in seen else "refused" for run in runs
            }


def in_order(place: Place, runs: list[Run], there: list[Run], first: int, second: int) -> list[str]:
    """Let two runs go on; returns whose files a reader finds, as they change."""
    seen = [assert_whole(place, there)]

    def go(run: Run) -> bool:
        gone_on = run.step()
        if (now := assert_whole(place, [*there, *runs])) != seen[-1]:
            seen.append(now)
        return gone_on

    for run, steps in [*zip(runs, (first, second), strict=False), *((run, 99) for run in runs)]:
        run.begin()
        for _ in range(steps):
            if not go(run):
                break
    return seen


def test_killed_at_any_request_what_was_published_stays_and_the_next_run_cleans_up(place: Place) -> None:
    """From some request on the store hears nothing more of a run; the next one is of the same day, or of two days later."""
    there = another_run(place)
    saved = place.save()
    for days in (0, 2):
        for heard in range(1, 10):
            place.restore(saved)
            dead = place.run(0, begun=datetime.now(UTC) - timedelta(days=days))
            dead.begin()
            for _ in range(heard):
                dead.step()
                assert_whole(place, [*there, dead])
            dead.server.faults += [(method, ".", 403, 99) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")]
            while dead.step():
                pass
            dead.server.faults.clear()
            whose = assert_whole(place, [*there, dead])
            assert whose == ("A" if heard >= 6 else "before"), (days, heard, dead.asked, dead.outcome)
            after = place.run(1)
            after.work()
            assert after.outcome == "published"
            assert assert_whole(place, [*there, dead, after]) == "B"
            left = set(place.objects()) - {MANIFEST} - set(after.files)
            assert left <= {*there[0].files, *dead.files}
            assert not (days and left & set(dead.files))
