"""``python -m benchmarks.scaling``: what a timestamp leaves in Dagster's database, and what many of them cost.

Three real timestamps are run on SQLite and on Postgres, and what they left is counted. Then their rows in the database are
copied (SQL, with other partition keys, folders and run ids) until there are N timestamps, and everything that looks at
all of them is timed: sensors and pages through a real webserver and code server, the rest in processes of its own. All
simulated timestamps share the tiles of the real ones; their mosaics are empty files. SQLite's database per run is not
copied: nothing of what is measured opens one, and N of them are as large as N times one.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import dagster as dg
import psutil
import sqlalchemy as sa

from benchmarks.run import machine
from thess_agg_dagster.keys import AGGREGATED, RAW_TILES, timestamps
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import MANIFEST, QUICKLOOK
from thess_agg_dagster.sample import real_time_serie, write_scene
from thess_agg_dagster_tests.processes import clean_environment, free_port

HERE = Path(__file__).parent
POSTGRES = Path("/usr/lib/postgresql/15/bin")
BANDS = ("B04", "B08", "SCL")
#: One row of the list; its scenes are every simulated timestamp's, too.
SCENES = real_time_serie()[0]["tile_ids"].split("|")
#: What timestamps that fail list: one scene is not there.
LATE = [*SCENES[:2], SCENES[2].replace("T34TFK", "T34TGK")]
REAL = [f"2016-01-0{day} 09:21:09.024000+00:00" for day in (1, 2, 3)]
FAILED = "2016-01-04 09:21:09.024000+00:00"
# No answer in this time is an answer, too.
PATIENCE = 900
# A backfill's daemon is watched for no longer.
WATCH = 120
# A file younger than five seconds is left alone by sensors.
SETTLE = 6
SETTINGS = """\
telemetry: {enabled: false}
compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}
# Runs are queued and never started: what is measured is what comes before.
run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: {max_concurrent_runs: 0}}
"""

Figures = dict[str, Any]


def keys_of(count: int) -> list[str]:
    """Partition keys in the form of real ones, three hours apart."""
    start = datetime(2017, 1, 1, 9, 21, 9, 24000, tzinfo=UTC)
    return [(start + timedelta(hours=3 * number)).isoformat(sep=" ") for number in range(count)]


# --- the place: a lake, an instance, and its database ---


@dataclass
class Place:
    """A lake and a Dagster instance in one folder."""

    root: Path
    backend: str
    url: str = ""
    failing: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    @property
    def lake(self) -> DataLake:
        return DataLake(self.root / "lake")

    @property
    def home(self) -> Path:
        return self.root / f"home-{self.backend}"

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment() | {"DATA_LAKE": str(self.lake.root), "DAGSTER_HOME": str(self.home)}

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def engine(self, which: str) -> sa.Engine:
        """The database of the ``events`` or of the ``runs``; with Postgres they are one."""
        files = {"events": "history/runs/index.db", "runs": "history/runs.db"}
        return sa.create_engine(self.url or f"sqlite:///{self.home / files[which]}")

    def list_rows(self, count: int, failing: int = 0, more: int = 0) -> None:
        """The list: the real ones, ``count`` simulated ones of which some fail, and more that are new."""
        rows = [(key, SCENES) for key in REAL]
        rows += [(key, LATE if number < failing else SCENES) for number, key in enumerate(keys_of(count + more))]
        self.lake.tables_folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(["acq_datetime,tile_ids", *(f"{key},{'|'.join(scenes)}" for key, scenes in rows)])
        self.lake.time_serie.write_text(text + "\n")


def make_lake(root: Path) -> None:
    lake = DataLake(root / "lake")
    for scene in SCENES:
        write_scene(lake, scene, 100)


def make_mosaics(lake: DataLake, keys: list[str]) -> None:
    for key in keys:
        folder = lake.timestamp_folder(key)
        if not folder.exists():
            folder.mkdir(parents=True)
            # What makes a timestamp due where it is missing.
            for name in (*(f"{band}.tif" for band in BANDS), MANIFEST, QUICKLOOK):
                (folder / name).touch()


@contextmanager
def postgres() -> Iterator[str]:
    """A server with Debian's settings but for memory and log space; it will not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="scaling-postgres-", dir="/tmp"))
    who: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        who = ["runuser", "-u", "postgres", "--"]
    port = free_port()
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c shared_buffers=512MB -c max_wal_size=8GB"
    control = [*who, str(POSTGRES / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    subprocess.run(
        [*who, str(POSTGRES / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "bench"],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    subprocess.run(
        [*control, "-l", str(folder / "log"), "-o", options, "start"], check=True, cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        # SQLAlchemy 2.1 takes plain "postgresql:" for psycopg 3, which Dagster does not bring along.
        yield f"postgresql+psycopg2://bench@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder)


@contextmanager
def make_place(root: Path, backend: str) -> Iterator[Place]:
    place = Place(root, backend)
    place.home.mkdir()
    settings = place.home / "dagster.yaml"
    if backend == "sqlite":
        settings.write_text(SETTINGS)
        yield place
        return
    with postgres() as url:
        place.url = url
        settings.write_text(SETTINGS + f"storage: {{postgres: {{postgres_url: '{url}'}}}}\n")
        yield place


# --- rows by the thousand ---

_TABLES = {"events": ("event_logs", "asset_event_tags", "asset_check_executions"), "runs": ("runs", "run_tags")}
#: Columns that name an event by its id.
_REFERENCES = ("event_id", "evaluation_event_storage_id", "materialization_event_storage_id")


@dataclass
class Template:
    """The rows that one real timestamp left."""

    key: str
    run_id: str
    low: int
    high: int


def template_of(place: Place, key: str) -> Template:
    with place.engine("events").connect() as connection:
        query = (
            "select run_id from event_logs where dagster_event_type = :planned and partition = :key order by id desc"
        )
        given = {"planned": "ASSET_MATERIALIZATION_PLANNED", "key": key}
        run_id = str(connection.execute(sa.text(query), given).scalars().first())
        query = "select min(id), max(id) from event_logs where run_id = :run or (partition = :key and asset_key = :raw)"
        given = {"run": run_id, "key": key, "raw": RAW_TILES.to_string()}
        low, high = connection.execute(sa.text(query), given).one()
    return Template(key, run_id, low, high)


def copy_rows(place: Place, template: Template, keys: list[str]) -> None:
    """Copy all rows of a timestamp for each of the keys: one statement a table, the same for both databases."""
    ids = [str(uuid.UUID(int=place.rng.getrandbits(128), version=4)) for _ in keys]
    stride = template.high - template.low + 1
    folder = place.lake.timestamp_folder(template.key).name
    copies = [
        {"k": number, "key": key, "folder": place.lake.timestamp_folder(key).name, "run": run}
        for number, (key, run) in enumerate(zip(keys, ids, strict=True))
    ]
    given: Figures = {
        "old_key": template.key,
        "old_folder": folder,
        "old_run": template.run_id,
        "raw": RAW_TILES.to_string(),
    }
    for which, names in _TABLES.items():
        engine = place.engine(which)
        metadata = sa.MetaData()
        metadata.reflect(engine, only=names)
        with engine.begin() as connection:
            connection.execute(sa.text("create temp table copies (k bigint, key text, folder text, run text)"))
            for start in range(0, len(copies), 10_000):
                connection.execute(
                    sa.text("insert into copies values (:k, :key, :folder, :run)"), copies[start : start + 10_000]
                )
            if which == "events":
                last = connection.execute(sa.text("select max(id) from event_logs")).scalar_one()
                given["shift"] = last + 1 - template.low
                given["stride"] = stride
            for name in names:
                table = metadata.tables[name]
                targets, values = [], []
                for column in table.columns:
                    value = f't."{column.name}"'
                    if column.name == "id" and name != "event_logs":
                        continue
                    if column.name == "id" or column.name in _REFERENCES:
                        value = f"{value} + :shift + c.k * :stride"
                    elif isinstance(column.type, sa.String):
                        value = f"replace(replace(replace({value}, :old_run, c.run), :old_key, c.key), :old_folder, c.folder)"
                    targets.append(f'"{column.name}"')
                    values.append(value)
                mine = {
                    "event_logs": "t.run_id = :old_run or (t.partition = :old_key and t.asset_key = :raw)",
                    "asset_event_tags": "t.event_id in (select id from event_logs where run_id = :old_run or "
                    "(partition = :old_key and asset_key = :raw))",
                }.get(name, "t.run_id = :old_run")
                statement = (
                    f"insert into {name} ({', '.join(targets)}) select {', '.join(values)} from {name} t "
                    f"join copies c on true where {mine}"
                )
                connection.execute(sa.text(statement), {k: v for k, v in given.items() if f":{k}" in statement})
            if place.url and which == "events":
                connection.execute(sa.text("select setval('event_logs_id_seq', (select max(id) from event_logs))"))
            connection.execute(sa.text("drop table copies"))
        engine.dispose()


def newest_ids(place: Place) -> dict[str, int]:
    found = {}
    for which, names in _TABLES.items():
        with place.engine(which).connect() as connection:
            for name in names:
                found[name] = connection.execute(sa.text(f"select coalesce(max(id), 0) from {name}")).scalar_one()
    return found


def remove_after(place: Place, newest: dict[str, int]) -> None:
    """Forget what was written since :func:`newest_ids`."""
    for which, names in _TABLES.items():
        with place.engine(which).begin() as connection:
            for name in names:
                connection.execute(sa.text(f"delete from {name} where id > :last"), {"last": newest[name]})
            if which == "runs":
                connection.execute(sa.text("delete from bulk_actions"))


def vacuum(place: Place) -> None:
    """What autovacuum would have done by the time that there are as many real ones."""
    if place.url:
        engine = place.engine("events").execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text("vacuum analyze"))


def rows_by_table(place: Place) -> dict[str, int]:
    found = {}
    for which in ("events",) if place.url else ("events", "runs"):
        engine = place.engine(which)
        with engine.connect() as connection:
            for name in sa.inspect(engine).get_table_names():
                found[name] = connection.execute(sa.text(f'select count(*) from "{name}"')).scalar_one()
    return {name: count for name, count in found.items() if name not in ("alembic_version", "secondary_indexes")}


def events_by_type(place: Place) -> dict[str, tuple[int, int]]:
    """Number and characters of events in the database that all runs share."""
    query = (
        "select coalesce(dagster_event_type, 'LOG_MESSAGE'), count(*), sum(length(event)) from event_logs group by 1"
    )
    with place.engine("events").connect() as connection:
        return {name: (count, size) for name, count, size in connection.execute(sa.text(query))}


def run_database(place: Place, run_id: str) -> dict[str, tuple[int, int]]:
    """The same of SQLite's database of one run."""
    query = (
        "select coalesce(dagster_event_type, 'LOG_MESSAGE'), count(*), sum(length(event)) from event_logs group by 1"
    )
    with sa.create_engine(f"sqlite:///{place.home / 'history/runs' / run_id}.db").connect() as connection:
        return {name: (count, size) for name, count, size in connection.execute(sa.text(query))}


def bytes_by_part(place: Place) -> dict[str, int]:
    if place.url:
        query = "select relname, pg_total_relation_size(relid) from pg_statio_user_tables"
        with place.engine("events").connect() as connection:
            return {name: int(size) for name, size in connection.execute(sa.text(query))}
    parts = {"index.db": "history/runs/index.db", "runs.db": "history/runs.db"}
    for which in ("events", "runs"):
        with place.engine(which).connect() as connection:
            connection.execute(sa.text("pragma wal_checkpoint(truncate)"))
    return {name: (place.home / path).stat().st_size for name, path in parts.items()}


# --- processes that are measured ---


def measured(place: Place, *command: str) -> Figures:
    """Seconds, seconds of a core and the largest memory of a process; what it prints as JSON at the end, it knows better."""
    started, largest = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *command], env=place.environment, cwd=HERE.parent, stdout=output, stderr=errors
        )
        # Not `ru_maxrss`, which begins with what the parent had.
        while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                largest = max(largest, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)
            time.sleep(0.05)
        _, status, usage = found
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        lines = output.read().splitlines()
        if status:
            raise RuntimeError(f"{command}: status {status}\n{errors.read()[-3000:]}")
    figures: Figures = {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "mb": largest}
    with suppress(ValueError, IndexError):
        told = json.loads(lines[-1])
        if isinstance(told, dict):
            figures |= told
    return figures


def run_child(place: Place, what: str, key: str = "") -> Figures:
    return measured(place, "-m", "benchmarks.scaling_child", what, *([key] if key else []))


# --- the webserver and the daemon ---

PARTITIONS = """query PartitionHealthQuery($assetKey: AssetKeyInput!) { assetNodeOrError(assetKey: $assetKey) {
  ... on AssetNode { id partitionKeysByDimension { name type partitionKeys } assetPartitionStatuses {
  ... on DefaultPartitionStatuses { materializedPartitions materializingPartitions failedPartitions } } } } }"""
LINEAGE = """query($assetKey: AssetKeyInput!) { assetNodeOrError(assetKey: $assetKey) { ... on AssetNode { id staleStatus
  partitionStats { numMaterialized numMaterializing numPartitions numFailed } } } }"""
DRY_RUN = """mutation($selector: SensorSelector!, $cursor: String) { sensorDryRun(selectorData: $selector, cursor: $cursor) {
  __typename ... on PythonError { message } ... on DryRunInstigationTick { evaluationResult { cursor skipReason
  error { message } runRequests { runKey } dynamicPartitionsRequests { partitionKeys } } } } }"""
BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
  ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
SENSORS = "{ sensorsOrError(repositorySelector: %s) { ... on Sensors { results { id name } } } }"
STOP = "mutation($id: String!) { stopSensor(id: $id) { __typename } }"
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "thess_agg_dagster.definitions"}


class Webserver:
    """A real webserver with its code server, asked as the UI asks."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.port = free_port()

    def __enter__(self) -> Webserver:
        self.log = (self.place.root / "webserver.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dagster_webserver", "-p", str(self.port), "-m", "thess_agg_dagster.definitions"],
            env=self.place.environment, cwd=HERE.parent, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        for _ in range(120):
            with suppress(OSError):
                self.ask("{ version }")
                return self
            time.sleep(0.5)
        raise RuntimeError("the webserver does not answer")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def ask(self, query: str, **variables: Any) -> tuple[Any, Figures]:
        """The answer, seconds and MB."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", data=body, headers={"content-type": "application/json"}
        )
        started, busy = time.perf_counter(), self.core_seconds()
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            return {}, {"seconds": time.perf_counter() - started, "error": error.read().decode()[:500]}
        except TimeoutError:
            return {}, {"seconds": time.perf_counter() - started, "error": "no answer"}
        figures: Figures = {"seconds": time.perf_counter() - started, "cpu": self.core_seconds() - busy}
        figures["answer_mb"] = len(data) / 1e6
        found = json.loads(data)
        if "errors" in found:
            figures["error"] = found["errors"][0]["message"][:200]
        return found.get("data") or {}, figures

    def core_seconds(self) -> float:
        """Of the webserver and its code server until now."""
        mine = psutil.Process(self.process.pid)
        return sum(sum(found.cpu_times()[:2]) for found in (mine, *mine.children(recursive=True)))

    def memory(self) -> dict[str, float]:
        """Resident MB of the webserver and of its code server."""
        mine = psutil.Process(self.process.pid)
        others = sum(found.memory_info().rss for found in mine.children(recursive=True))
        return {"webserver": mine.memory_info().rss / 2**20, "code server": others / 2**20}

    def tick(self, sensor: str, cursor: str | None = None) -> tuple[str | None, Figures]:
        """One tick of a sensor through the code server, as the daemon asks for it, its time limit included."""
        data, figures = self.ask(DRY_RUN, selector=REPOSITORY | {"sensorName": sensor}, cursor=cursor)
        tick = data.get("sensorDryRun", {})
        result = tick.get("evaluationResult") or {}
        error = tick.get("message") or (result.get("error") or {}).get("message")
        if error:
            figures["error"] = error[:200]
        figures["runs"] = len(result.get("runRequests") or ())
        figures["said"] = (result.get("skipReason") or "")[:120]
        return result.get("cursor"), figures

    def stop_sensors(self) -> None:
        selector = "{" + ", ".join(f'{name}: "{value}"' for name, value in REPOSITORY.items()) + "}"
        data, _ = self.ask(SENSORS % selector)
        for sensor in data["sensorsOrError"]["results"]:
            self.ask(STOP, id=sensor["id"])


def queued(place: Place) -> int:
    with place.engine("runs").connect() as connection:
        return int(connection.execute(sa.text("select count(*) from runs where status = 'QUEUED'")).scalar_one())


def measure_backfill(place: Place, web: Webserver, keys: list[str]) -> dict[str, Figures]:
    """Ask for all timestamps, then let the daemon queue their runs, for as long as we watch."""
    newest = newest_ids(place)
    web.stop_sensors()
    given = {"assetSelection": [{"path": AGGREGATED.path}], "partitionNames": keys}
    _, asked = web.ask(BACKFILL, params=given)
    with (place.root / "daemon.log").open("w") as log:
        command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "thess_agg_dagster.definitions"]
        daemon = subprocess.Popen(command, env=place.environment, cwd=HERE.parent, stdout=log, stderr=log)
        started = time.perf_counter()
        first = 0.0
        seen: list[tuple[float, int]] = []
        while time.perf_counter() - started < WATCH and (not seen or seen[-1][1] < len(keys)):
            time.sleep(0.5)
            if count := queued(place):
                now = time.perf_counter() - started
                first = first or now
                seen.append((now, count))
        daemon.terminate()
        daemon.wait()
    figures: dict[str, Figures] = {"launching a backfill of all: the mutation": asked}
    count, seconds = (seen[-1][1], seen[-1][0]) if seen else (0, WATCH)
    figures["... the daemon: its first runs are queued after"] = {"seconds": first or None}
    figures["... the daemon: runs queued a second"] = {"rate": count / max(seconds - first, 0.1), "runs": count}
    halves = [n for t, n in seen if t <= first + (seconds - first) / 2]
    if halves:
        figures["... the same, second half of the time"] = {
            "rate": (count - halves[-1]) / max((seconds - first) / 2, 0.1)
        }
    _, tick = web.tick("report_sensor")
    figures["report_sensor while they are queued"] = tick
    remove_after(place, newest)
    return figures


# --- the measurements ---


def measure_one(place: Place) -> Figures:
    """What real timestamps leave: the second and third of one code path, so that nothing is made for the first time."""
    place.list_rows(0)
    with place.lake.time_serie.open("a") as file:
        file.write(f"{FAILED},{'|'.join(LATE)}\n")
    run_child(place, "list")
    # New rows cost an event each; some that are forgotten again.
    few = [key.replace("2017", "2015", 1) for key in keys_of(100)]
    with place.lake.time_serie.open("a") as file:
        file.writelines(f"{key},{'|'.join(SCENES)}\n" for key in few)
    new = run_child(place, "list")
    with place.instance() as instance:
        for key in few:
            instance.delete_dynamic_partition(str(timestamps.name), key)
    runs = [run_child(place, "timestamp", key) for key in REAL[:1]]
    before_rows, before_events = rows_by_table(place), events_by_type(place)
    runs += [run_child(place, "timestamp", key) for key in REAL[1:]]
    rows, events = rows_by_table(place), events_by_type(place)
    count = len(REAL) - 1
    run_child(place, "timestamp", FAILED)
    figures: Figures = {
        "100 new rows": new,
        "seconds": [run["seconds"] for run in runs],
        "queries": [run["queries"] for run in runs],
        "rows": {name: (rows[name] - before_rows[name]) / count for name in rows if rows[name] > before_rows[name]},
        "events": {
            name: [
                (number - before_events.get(name, (0, 0))[0]) / count,
                (size - before_events.get(name, (0, 0))[1]) / count,
            ]
            for name, (number, size) in events.items()
            if number > before_events.get(name, (0, 0))[0]
        },
    }
    if not place.url:
        template = template_of(place, REAL[2])
        figures["run_events"] = run_database(place, template.run_id)
        figures["run_database_bytes"] = (place.home / "history/runs" / f"{template.run_id}.db").stat().st_size
    return figures


def measure_many(
    place: Place, count: int, known: int, backfill: bool, figures: Figures, say: Callable[[str], None]
) -> None:
    """Everything that looks at all timestamps, once there are ``count``; into ``figures``, kept whenever it says so."""
    good, bad = template_of(place, REAL[2]), template_of(place, FAILED)
    keys = keys_of(count)
    ticks: dict[str, Figures] = {}
    found: dict[str, Figures] = {}
    figures |= {"bytes": {}, "ticks": ticks, "found": found, "memory": {}}
    place.list_rows(count)
    with Webserver(place) as web:
        time.sleep(SETTLE)
        # The rows beyond those of the last round are new to Dagster: the sensor's first tick, and nothing is registered.
        _, ticks["time_serie_sensor, all rows new" if not known else "time_serie_sensor, most rows new"] = web.tick(
            "time_serie_sensor"
        )
    started = time.perf_counter()
    with place.instance() as instance:
        for start in range(known, count, 10_000):
            instance.add_dynamic_partitions(str(timestamps.name), keys[start : start + 10_000])
    found["registering them (public API)"] = {"seconds": time.perf_counter() - started}
    started = time.perf_counter()
    copy_rows(place, good, keys[known:])
    vacuum(place)
    make_mosaics(place.lake, keys)
    say(f"{count - known} copied in {time.perf_counter() - started:.0f} s")
    figures |= {"bytes": bytes_by_part(place), "rows": rows_by_table(place)}

    found["asset time_serie, nothing new"] = run_child(place, "list")
    found["report, attempts read for the first time"] = run_child(place, "report")
    found["report"] = run_child(place, "report")
    say(f"report {found['report']}")
    found["python -m, nothing due"] = measured(place, "-m", "thess_agg_dagster")
    say(f"python -m {found['python -m, nothing due']}")
    found["one more real timestamp"] = run_child(place, "timestamp", REAL[0])
    found["all partition keys"] = run_child(place, "keys")
    with Webserver(place) as web:
        key = {"path": AGGREGATED.path}
        _, found["partitions page, first time"] = web.ask(PARTITIONS, assetKey=key)
        _, found["partitions page, again"] = web.ask(PARTITIONS, assetKey=key)
        _, found["lineage: counts and staleness"] = web.ask(LINEAGE, assetKey=key)
        cursor, ticks["time_serie_sensor, list touched"] = web.tick("time_serie_sensor")
        # A long list is looked through over several ticks; this is the one after them.
        cursor = json.dumps(json.loads(cursor or "{}") | {"after": None})
        _, ticks["time_serie_sensor, nothing new"] = web.tick("time_serie_sensor", cursor)
        place.list_rows(count, more=max(1, count // 100))
        time.sleep(SETTLE)
        _, ticks["time_serie_sensor, 1 % new rows"] = web.tick("time_serie_sensor", cursor)
        say(f"{ticks['time_serie_sensor, 1 % new rows']}")
        _, ticks["report_sensor, something new"] = web.tick("report_sensor")
        cursor, ticks["changed_inputs_sensor, nothing new"] = web.tick("changed_inputs_sensor", "{}")
        tile = place.lake.tile(SCENES[0], "B04")
        stat = tile.stat()
        os.utime(tile, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        cursor, ticks["changed_inputs_sensor, all changed"] = web.tick("changed_inputs_sensor")
        ticks["changed_inputs_sensor, all changed"]["cursor_mb"] = len(cursor or "") / 1e6
        os.utime(tile, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        say(f"{ticks['changed_inputs_sensor, all changed']}")
        newest = newest_ids(place)
        failing = max(1, count // 20)
        place.list_rows(count, failing)
        copy_rows(place, bad, keys[:failing])
        cursor, ticks["late_tiles_sensor, 5 % failed"] = web.tick("late_tiles_sensor")
        _, ticks["late_tiles_sensor, still waiting"] = web.tick("late_tiles_sensor", cursor)
        late = place.lake.tile(LATE[-1], "B04").parent
        shutil.copytree(place.lake.tile(SCENES[-1], "B04").parent, late)
        time.sleep(SETTLE)
        _, ticks["late_tiles_sensor, all arrived"] = web.tick("late_tiles_sensor", cursor)
        shutil.rmtree(late)
        remove_after(place, newest)
        place.list_rows(count)
        figures["memory"] = web.memory()
        say("ticks are measured")
        if backfill:
            found |= measure_backfill(place, web, keys)


# --- the tables ---


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _cell(figures: Figures | None) -> str:
    if not figures:
        return ""
    if "error" in figures:
        return f"**{_number(figures.get('seconds'))} s, fails**"
    if "rate" in figures:
        return f"{_number(figures['rate'])}/s"
    parts = [f"{_number(figures['seconds'])} s"]
    if "cpu" in figures:
        parts[0] += f" ({_number(figures['cpu'])})"
    if "queries" in figures:
        parts.append(f"{figures['queries']} q")
    if figures.get("mb"):
        parts.append(f"{figures['mb']:.0f} MB")
    if figures.get("answer_mb", 0) >= 0.1 and "runs" not in figures:
        parts.append(f"answer {figures['answer_mb']:.1f} MB")
    return ", ".join(parts)


def markdown(results: Figures) -> str:
    facts = results["machine"]
    lines = [
        "# What many timestamps cost",
        "",
        f"{', '.join(results['commands'])}: {facts['cores']} cores, {facts['cpu']}; Python "
        f"{facts['python']}. What is simulated and how stands in `benchmarks/scaling.py`; what follows from it in "
        "docs/SCALING.md. s: seconds (between parentheses: of a core, in the processes asked, the database's own not "
        "counted; they suffer less from the neighbours); q: SELECTs; MB: the process's largest memory.",
    ]
    for backend, data in results["backends"].items():
        one = data["one"]
        around = ", ".join(f"{seconds:.2f} s" for seconds in one["seconds"])
        lines += [
            "",
            f"## {backend}",
            "",
            f"Three small timestamps, each in a process of its own, took {around}; the asset",
        ]
        lines += [f"`time_serie` with 100 new rows {_cell(one['100 new rows'])}. One timestamp leaves:", ""]
        lines += ["| rows in | |", "|---|---|"]
        lines += [f"| `{name}` | {number:g} |" for name, number in sorted(one["rows"].items())]
        shared = "events in the database of all runs" if backend == "sqlite" else "events"
        lines += ["", f"| {shared} | number | characters |", "|---|---|---|"]
        lines += [f"| {name} | {n:g} | {size:.0f} |" for name, (n, size) in sorted(one["events"].items())]
        if "run_events" in one:
            lines += ["", "| events in the database of the run | number | characters |", "|---|---|---|"]
            lines += [f"| {name} | {n:g} | {size:.0f} |" for name, (n, size) in sorted(one["run_events"].items())]
            lines += ["", f"The run's database has {one['run_database_bytes'] / 1e3:.0f} kB."]
        counts = list(data["many"])
        lines += ["", "| bytes in, a timestamp | " + " | ".join(f"{int(n):,}" for n in counts) + " |"]
        lines += ["|---|" + "---|" * len(counts)]
        for part in dict.fromkeys(p for n in counts for p in data["many"][n]["bytes"]):
            sizes = [data["many"][n]["bytes"].get(part, 0) / int(n) for n in counts]
            if sizes[-1] >= 100:  # others are made once, not for each timestamp
                lines.append(f"| {part} | " + " | ".join(f"{size:.0f}" for size in sizes) + " |")
        for title, group in (("timestamps", "found"), ("a tick", "ticks")):
            lines += [
                "",
                f"| {title} | " + " | ".join(f"{int(n):,}" for n in counts) + " |",
                "|---|" + "---|" * len(counts),
            ]
            for name in dict.fromkeys(name for n in counts for name in data["many"][n][group]):
                lines.append(
                    f"| {name} | " + " | ".join(_cell(data["many"][n][group].get(name)) for n in counts) + " |"
                )
        for who in ("webserver", "code server"):
            memory = [data["many"][n]["memory"].get(who) for n in counts]
            cells = [f"{megabytes:.0f} MB" if megabytes else "" for megabytes in memory]
            lines.append(f"| memory of the {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--counts", default="100,1000,10000", show_default=True, help="Numbers of timestamps, rising.")
@click.option("--backends", default="sqlite,postgres", show_default=True)
@click.option("--backfills", default="1000,10000", show_default=True, help="Counts at which a backfill is launched.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=HERE, show_default="benchmarks", help="Folder of the results."
)
@click.option("--add", is_flag=True, help="Keep what is in the results already, for other counts or backends.")
def main(counts: str, backends: str, backfills: str, out: Path, add: bool) -> None:
    """Measure, and write SCALING.md and scaling.json."""
    started = time.perf_counter()

    command = f"python -m benchmarks.scaling --counts {counts} --backends {backends} --backfills {backfills}"
    earlier: Figures = json.loads((out / "scaling.json").read_text()) if add else {"commands": [], "backends": {}}
    facts = machine()
    commands = [*earlier["commands"], f"`{command}` at commit {facts['commit']}"]
    results: Figures = {"commands": commands, "machine": facts, "backends": earlier["backends"]}

    def say(text: str) -> None:
        click.echo(f"{time.perf_counter() - started:6.0f} s  {text}", err=True)
        (out / "scaling.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "SCALING.md").write_text(markdown(results))

    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        for backend in backends.split(","):
            root = Path(folder, backend)
            make_lake(root)
            with make_place(root, backend) as place:
                one = measure_one(place)
                data = results["backends"].setdefault(backend, {"one": one, "many": {}})
                known = 0
                for count in map(int, counts.split(",")):
                    figures: Figures = {}
                    data["many"][str(count)] = figures
                    launch = str(count) in backfills.split(",")
                    measure_many(place, count, known, launch, figures, say)
                    known = count
                    say(f"{backend}, {count} timestamps: done")
    click.echo(markdown(results))


if __name__ == "__main__":
    main()
