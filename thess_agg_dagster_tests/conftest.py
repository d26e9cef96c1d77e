"""A small lake and a real Dagster instance (SQLite) for the tests of the top floor."""

from __future__ import annotations

import functools
import io
import multiprocessing.util
import os
import shutil
import signal
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alembic.script
import dagster as dg
import pandas as pd
import pytest
import rasterio.session
import sqlalchemy
import yaml

import thess_agg_dagster
from thess_agg_dagster.audit.event_log import latest_attempts
from thess_agg_dagster.audit.outcome import RecordedAttempt
from thess_agg_dagster.keys import AGGREGATED, REPORT, TIME_SERIE
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.publish import local_folder
from thess_agg_dagster.lake.tile_template import TILES
from thess_agg_dagster.runs.batch import run_asset
from thess_agg_dagster.runs.private import InstanceRef
from thess_agg_dagster.runs.sqlite import kept_open
from thess_agg_dagster.storage.paths import lake_path
from thess_agg_dagster_tests.rasters import ZONE_34, ZONE_35, noise, write_tile
from thess_agg_dagster_tests.servers import (
    S3_ENVIRONMENT,
    S3Server,
    bucket_content,
    make_bucket,
    restore_bucket,
    serving_s3,
)

FIRST, SECOND, THIRD = (
    "2023-02-02 09:21:09.024000+00:00",
    "2023-04-13 09:20:29.024000+00:00",
    "2023-06-22 09:15:59.024000+00:00",
)
BANDS = ("B04", "B08", "SCL")

# Two tiles at the border of two zones, a few hundred pixels of 100 m and 200 m.
WEST, EAST = (ZONE_34, (690000, 4500000)), (ZONE_35, (199980, 4500000))


# A shell that starts a script in the background has it ignore Ctrl-C, and with it every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files whose tests wait for processes most of the time, then those that compute for half a minute and more, each the
# longest first: no worker is left with a long one when the others have ended.
_BEGUN_FIRST = (
    "test_fleet",
    "test_reliability",
    "test_browser",
    "test_command",
    "test_docs",
    "test_dagster_dev",
    "test_lakes_in_yaml",
    "test_sensors",
    "test_series_index",
    "test_composites",
    "test_series",
    "test_component",
    "test_object_storage",
    "test_assets",
    "test_composites_command",
    "test_provenance",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(_BEGUN_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("THESS_", "DAGSTER_", "DATA_LAKE", "AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
    for name in [name for name in os.environ if name.startswith(ours)]:
        monkeypatch.delenv(name)


def scene(timestamp: str, tile: str) -> str:
    day = timestamp[:10].replace("-", "")
    return f"S2B_MSIL2A_{day}T092109_N0510_R093_{tile}_20240815T155145"


@dataclass
class SmallLake:
    """A lake in the making: tiles are written, rows are listed, assets are run."""

    root: Path
    instance: dg.DagsterInstance
    tiles: str = TILES

    def __reduce__(self) -> Any:
        """For a process of its own, which opens the instance anew."""
        return _small_lake, (self.root, self.instance.get_ref(), self.tiles)

    @property
    def lake(self) -> DataLake:
        return DataLake.at(str(self.root), tiles=self.tiles)

    def add_tile(self, scene_id: str, band: str, *, east: bool = False, **options: Any) -> Path:
        crs, corner = EAST if east else WEST
        step = 2 if band == "SCL" else 1
        shape = (120 // step, 120 // step)
        pixels = noise(len(scene_id) + ord(band[-1]) + east, shape, high=12 if band == "SCL" else 10000)
        pixels = pixels.astype("uint8" if band == "SCL" else "uint16")
        given: dict[str, Any] = {"crs": crs, "corner": corner, "pixel": 100 * step, "pixels": pixels} | options
        return write_tile(self.lake.tile(scene_id, band), given.pop("pixels"), **given)

    def add_timestamp(self, timestamp: str, bands: Sequence[str] = BANDS, jpeg2000: bool = False) -> list[str]:
        """Both tiles of a timestamp, the one in zone 35 first."""
        ids = [scene(timestamp, "T35TKF"), scene(timestamp, "T34TFL")]
        for scene_id in ids:
            for band in bands:
                self.add_tile(scene_id, band, east=scene_id == ids[0], jpeg2000=jpeg2000)
        return ids

    def add_slow_timestamp(self, timestamp: str, shape: tuple[int, int]) -> list[str]:
        """One that takes seconds to decode: JPEG 2000 of this many pixels a tile, all tiles the same."""
        ids = [scene(timestamp, "T35TKF"), scene(timestamp, "T34TFL")]
        for scene_id in ids:
            for band in BANDS:
                path = self.lake.tile(scene_id, band)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_slow_tile(shape))
        return ids

    def list_rows(self, *rows: tuple[str, Sequence[str]]) -> None:
        self.lake.tables_folder.mkdir(parents=True, exist_ok=True)
        lines = ["acq_datetime,tile_ids", *(f"{timestamp},{'|'.join(ids)}" for timestamp, ids in rows)]
        self.lake.time_serie.write_text("\n".join(lines) + "\n")

    def resources(self, **params: Any) -> dict[str, Any]:
        return {
            "io_manager": {"config": {"data_lake": str(self.root), "tiles": self.tiles}},
            "params": {"config": params},
        }

    def read_list(self) -> None:
        run_asset(self.instance, self.resources(), TIME_SERIE)

    def aggregate(self, timestamp: str, **params: Any) -> RecordedAttempt:
        """Run the asset for a timestamp, failing or not, and return the attempt as recorded in the event log."""
        try:
            run_asset(self.instance, self.resources(**params), AGGREGATED, timestamp)
        except Exception as error:
            self.error = error
        return latest_attempts(self.instance, AGGREGATED)[timestamp]

    def tables(self, **params: Any) -> dict[str, pd.DataFrame]:
        """Run the report and read the tables back from disk, as a user would."""
        run_asset(self.instance, self.resources(**params), REPORT)
        return self.tables_on_disk()

    def tables_on_disk(self) -> dict[str, pd.DataFrame]:
        return {
            name: pd.read_csv(io.BytesIO(self.lake.audit_table(name).read_bytes()), dtype=str, keep_default_na=False)
            for name in ("status", "summary", "band_report")
        }

    def left_behind(self) -> list[Path]:
        """What is in the folder where mosaics are made."""
        folder = local_folder(self.lake.staging)
        return list(folder.iterdir()) if folder.exists() else []

    def checks(self, key: dg.AssetKey = AGGREGATED) -> dict[str, dg.AssetCheckEvaluation]:
        """The check results of the latest run that left any, by name."""
        records = self.instance.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION), limit=50
        )
        found: dict[str, dg.AssetCheckEvaluation] = {}
        for record in records:
            event = record.event_log_entry.dagster_event
            assert event is not None
            evaluation = event.asset_check_evaluation_data
            if evaluation.asset_key == key:
                found.setdefault(evaluation.check_name, evaluation)
        return found


@functools.cache
def _slow_tile(shape: tuple[int, int]) -> bytes:
    crs, corner = WEST
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tile.tif")
        write_tile(path, noise(1, shape), crs=crs, corner=corner, pixel=10, jpeg2000=True, block=512)
        return path.read_bytes()


def _small_lake(root: Path, instance: Any, tiles: str) -> SmallLake:
    return SmallLake(root, dg.DagsterInstance.from_ref(instance), tiles)


#: For tests that hold wherever a lake is kept.
in_folder_and_bucket = pytest.mark.parametrize("lake_kind", ["folder", "bucket"])


@pytest.fixture(scope="session", autouse=True)
def _quick_databases() -> Iterator[None]:
    """SQLite as the product has it, but for what is the same for each of hundreds of databases: Dagster's migrations,
    a hundred modules, are read once. And nothing waits for the disk: a database outlives a killed process as it is."""

    def do_not_wait_for_the_disk(connection: Any, record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    directory = alembic.script.ScriptDirectory
    once = functools.cache(directory.from_config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "from_config", once)
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", do_not_wait_for_the_disk)
        yield
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", do_not_wait_for_the_disk)


def _open_instance(home: Path) -> dg.DagsterInstance:
    """As the command opens it; with the settings of the product's dagster.yaml that cost time, output not captured."""
    packaged = yaml.safe_load(Path(thess_agg_dagster.__file__).with_name("dagster.yaml").read_text())
    overrides: Any = {name: packaged[name] for name in ("telemetry", "compute_logs")}
    return dg.DagsterInstance.from_ref(kept_open(InstanceRef.from_dir(str(home), overrides=overrides)))


@pytest.fixture(scope="session")
def _empty_instance(_quick_databases: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an instance with empty databases, to be copied."""
    home = tmp_path_factory.mktemp("empty-instance")
    with _open_instance(home) as instance:
        instance.get_runs_count()
        instance.get_dynamic_partitions("timestamp")
        instance.all_instigator_state()
        # The database of a first run is copied for all others.
        instance.report_engine_event("first", run_id="first", job_name="first")
    (home / "history" / "runs" / "first.db").unlink()
    return home


@pytest.fixture
def lake_kind() -> str:
    return "folder"


#: A lake as left by a function that prepares it.
Begin = Callable[[Callable[["SmallLake"], None]], "SmallLake"]


@dataclass
class _Prepared:
    """A lake that several tests begin with, in its place, and how to put back what it was when it was prepared."""

    lake: Path
    home: Path
    kept_home: Path
    restore: Callable[[], None]

    def put_back(self) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.kept_home, self.home)
        self.restore()


def _prepare(place: Path, empty: Path, server: S3Server | None, prepare: Callable[[SmallLake], None]) -> _Prepared:
    home, root, kept, bucket = place / "home", place / "lake", place / "kept", f"lake-{uuid.uuid4().hex}"
    if server:
        make_bucket(server, bucket)
        root = lake_path(f"s3://{bucket}/some/where")
    shutil.copytree(empty, home)
    with _open_instance(home) as instance:
        prepare(SmallLake(root, instance))
    shutil.copytree(home, place / "kept-home")
    if server:
        content = bucket_content(server, bucket)
        return _Prepared(root, home, place / "kept-home", lambda: restore_bucket(server, bucket, content))
    shutil.copytree(root, kept)

    def restore() -> None:
        if root.exists():  # a test may have moved it
            shutil.rmtree(root)
        shutil.copytree(kept, root)

    return _Prepared(root, home, place / "kept-home", restore)


@pytest.fixture(scope="session")
def _prepared() -> dict[tuple[Callable[[SmallLake], None], str], _Prepared]:
    """The lakes that several tests begin with, by who prepares them and their kind."""
    return {}


@pytest.fixture
def begin_with(
    lake_kind: str,
    _empty_instance: Path,
    _prepared: dict[tuple[Callable[[SmallLake], None], str], _Prepared],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Begin]:
    """A lake that is prepared once, and put back in its place, as it was then, for each test."""
    server: S3Server | None = None
    if lake_kind == "bucket":
        request.getfixturevalue("in_bucket")
        server = request.getfixturevalue("s3_server")
    with ExitStack() as opened:

        def begin(prepare: Callable[[SmallLake], None]) -> SmallLake:
            if (prepare, lake_kind) not in _prepared:
                place = tmp_path_factory.mktemp("prepared")
                _prepared[prepare, lake_kind] = _prepare(place, _empty_instance, server, prepare)
            found = _prepared[prepare, lake_kind]
            found.put_back()
            return SmallLake(found.lake, opened.enter_context(_open_instance(found.home)))

        yield begin


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3Server]:
    with serving_s3() as server:
        yield server


@pytest.fixture(scope="session")
def _session_of_boto() -> Callable[[], rasterio.session.Session]:
    """Rasterio's session of the environment, made once: it makes one for each file that it opens, in 20 to 40 ms."""
    return functools.cache(rasterio.session.Session.from_environ)


@pytest.fixture
def s3_server(
    _s3: S3Server, _session_of_boto: Callable[[], rasterio.session.Session], monkeypatch: pytest.MonkeyPatch
) -> S3Server:
    """An S3 server without faults, and an environment in which it is found."""
    monkeypatch.setattr(rasterio.session.Session, "from_environ", _session_of_boto)
    _s3.faults.clear()
    _s3.requests.clear()
    for name, value in {"AWS_ENDPOINT_URL": _s3.url, **S3_ENVIRONMENT}.items():
        monkeypatch.setenv(name, value)
    return _s3


@pytest.fixture
def in_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own for temporary files, with a name short enough for sockets (whose own folder stays)."""
    multiprocessing.util.get_temp_dir()
    scratch = tempfile.mkdtemp(prefix="t-")
    monkeypatch.setattr(tempfile, "tempdir", scratch)
    monkeypatch.setenv("TMPDIR", scratch)
    yield
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def new_bucket(s3_server: S3Server) -> str:
    """The address of an empty bucket."""
    name = f"lake-{uuid.uuid4().hex}"
    make_bucket(s3_server, name)
    return f"s3://{name}"


@pytest.fixture
def small_lake(
    tmp_path: Path, lake_kind: str, _empty_instance: Path, request: pytest.FixtureRequest
) -> Iterator[SmallLake]:
    home = tmp_path / "home"
    shutil.copytree(_empty_instance, home)
    root = tmp_path / "lake"
    if lake_kind == "bucket":
        request.getfixturevalue("in_bucket")
        root = lake_path(f"{request.getfixturevalue('new_bucket')}/some/where")
    with _open_instance(home) as instance:
        yield SmallLake(root, instance)
