"""A lake that heals: tiles that are missing, broken or not what was published, from real servers on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thess_agg_dagster.lake.download import Downloader
from thess_agg_dagster.lake.download_policy import DownloadPolicy
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.timestamp.refetch import Refetched, download_policy, refetch
from thess_agg_dagster_tests.conftest import BANDS, EAST, FIRST, SECOND, WEST, SmallLake, in_folder_and_bucket, scene
from thess_agg_dagster_tests.processes import invoke
from thess_agg_dagster_tests.rasters import noise, write_tile
from thess_agg_dagster_tests.servers import PASSWORD, USER, Archive, serving


@pytest.fixture
def archive(small_lake: SmallLake) -> Iterator[Archive]:
    """Two timestamps, and an archive that has all of their tiles; the manifest says where."""
    small_lake.list_rows(
        (FIRST, small_lake.add_timestamp(FIRST)), (SECOND, small_lake.add_timestamp(SECOND, jpeg2000=True))
    )
    tiles = {f"/{path.parent.name}/{path.name}": path.read_bytes() for path in small_lake.root.glob("cache/s2/*/*.tif")}
    with serving(Archive(tiles)) as opened:
        publish(small_lake.lake, opened)
        yield opened


def publish(lake: DataLake, archive: Archive, checksums: bool = False) -> None:
    """Write the manifest: where the tiles are, and what they should be."""
    rows = ["scene_id,href_b04,href_b08,href_scl,checksum_b04,checksum_b08,checksum_scl"]
    for name in sorted({path.split("/")[1] for path in archive.files}):
        paths = [f"/{name}/{band}.tif" for band in BANDS]
        digests = [hashlib.sha256(archive.files[path]).hexdigest() if checksums else "" for path in paths]
        rows.append(",".join([name, *(archive.url + path for path in paths), *digests]))
    lake.assets_manifest.write_text("\n".join(rows) + "\n")


def downloader(archive: Archive, **options: Any) -> Downloader:
    given: dict[str, Any] = {"allowed": (archive.url,), "first_wait": 0.01, "timeout": 0.5} | options
    return Downloader(DownloadPolicy(**given))


def healed(small_lake: SmallLake, archive: Archive, band: str = "B08", **options: Any) -> tuple[Path, Refetched | str]:
    scene_id = scene(FIRST, "T34TFL")
    ((path, outcome),) = refetch([(scene_id, band)], small_lake.lake, downloader(archive), **options).items()
    assert path == small_lake.lake.tile(scene_id, band)
    return path, outcome


def published(archive: Archive, path: Path) -> bytes:
    return archive.files[f"/{path.parent.name}/{path.name}"]


def test_whole_tiles_are_left_alone(small_lake: SmallLake, archive: Archive) -> None:
    tiles = [(scene(FIRST, "T34TFL"), band) for band in BANDS]
    assert refetch(tiles, small_lake.lake, downloader(archive), deep=True) == {}
    assert archive.seen == []


@in_folder_and_bucket
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (None, "was missing"),
        (b"", "the file is empty"),
        (b"<html>sorry</html>", "is not a readable GeoTIFF or JPEG 2000 file"),
    ],
)
def test_what_replaces_a_broken_tile_is_whole_and_the_broken_one_is_kept(
    small_lake: SmallLake, archive: Archive, broken: bytes | None, why: str
) -> None:
    path = small_lake.lake.tile(scene(FIRST, "T34TFL"), "B08")
    path.unlink()
    if broken is not None:
        path.write_bytes(broken)
    _, outcome = healed(small_lake, archive)
    assert isinstance(outcome, Refetched)
    assert outcome.why.startswith(why)
    assert outcome.source == f"{archive.url}/{path.parent.name}/B08.tif"
    assert path.read_bytes() == published(archive, path)
    assert [kept.read_bytes() for kept in path.parent.glob("B08.tif.broken-*")] == ([] if broken is None else [broken])
    assert not list(path.parent.glob(".*"))


@in_folder_and_bucket
def test_damaged_pixels_are_found_by_decoding(small_lake: SmallLake, archive: Archive) -> None:
    path = small_lake.lake.tile(scene(FIRST, "T34TFL"), "B08")
    path.write_bytes(path.read_bytes()[:3000])
    assert refetch([(scene(FIRST, "T34TFL"), "B08")], small_lake.lake, downloader(archive)) == {}
    _, outcome = healed(small_lake, archive, deep=True)
    assert isinstance(outcome, Refetched)
    assert "cannot be read" in outcome.why
    assert path.read_bytes() == published(archive, path)


@in_folder_and_bucket
def test_a_tile_that_is_not_the_published_one(small_lake: SmallLake, archive: Archive) -> None:
    path = small_lake.lake.tile(scene(FIRST, "T34TFL"), "B08")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("B08.tif.sha256").write_text(digest)
    small_lake.add_tile(scene(FIRST, "T34TFL"), "B08", pixels=noise(9, (120, 120)))
    _, outcome = healed(small_lake, archive)
    assert isinstance(outcome, Refetched)
    assert outcome.why == f"did not match the published checksum (sha256:{digest})"
    # The archive itself has another file than it published: nothing is replaced.
    archive.files[f"/{path.parent.name}/B08.tif"] = path.read_bytes()[:-1] + b"!"
    path.write_bytes(b"broken")
    _, outcome = healed(small_lake, archive)
    assert "but sha256" in str(outcome)
    assert path.read_bytes() == b"broken"


def put(archive: Archive, path: Path, **options: Any) -> None:
    """Something else where the archive should have the tile."""
    crs, corner = WEST
    given: dict[str, Any] = {"crs": crs, "corner": corner, "pixel": 100, "pixels": noise(3, (120, 120))} | options
    other = write_tile(path.with_name("other"), given.pop("pixels"), **given)
    archive.files[f"/{path.parent.name}/{path.name}"] = other.read_bytes()
    other.unlink()


@pytest.mark.parametrize(
    ("band", "options", "message"),
    [
        ("B08", {"crs": EAST[0], "corner": EAST[1]}, "is in EPSG:32635, the scene's is EPSG:32634"),
        ("B08", {"corner": (700000, 4500000)}, "is not in the same place as B04.tif of the scene"),
        ("SCL", {}, "has values that are not classes of SCL"),
        ("SCL", {"pixels": np.full((60, 60), 99, "uint8"), "pixel": 200}, "has values that are not classes of SCL"),
        ("B08", {"crs": None}, "has no CRS"),
    ],
)
def test_another_tile_is_not_taken(
    small_lake: SmallLake, archive: Archive, band: str, options: dict[str, Any], message: str
) -> None:
    path = small_lake.lake.tile(scene(FIRST, "T34TFL"), band)
    put(archive, path, **options)
    path.write_bytes(b"broken")
    _, outcome = healed(small_lake, archive, band)
    assert message in str(outcome)
    assert path.read_bytes() == b"broken"
    assert sorted(each.name for each in path.parent.iterdir()) == ["B04.tif", "B08.tif", "SCL.tif"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("page", "it is a web page"), ("lie", "cannot be read|is not a readable"), ("404", "no such file")],
)
def test_what_a_server_sends_instead(small_lake: SmallLake, archive: Archive, fault: str, message: str) -> None:
    path = small_lake.lake.tile(scene(FIRST, "T34TFL"), "B08")
    archive.faults[f"/{path.parent.name}/B08.tif"] = [fault] * 9
    path.unlink()
    _, outcome = healed(small_lake, archive)
    assert isinstance(outcome, str)
    assert any(each in outcome for each in message.split("|"))
    assert not path.exists()
    archive.faults[f"/{path.parent.name}/B08.tif"] = [fault] * 2 if fault != "404" else []
    assert isinstance(healed(small_lake, archive)[1], Refetched)  # a server that comes to its senses


def test_an_address_of_another_band_or_of_none(small_lake: SmallLake, archive: Archive) -> None:
    scene_id = scene(FIRST, "T34TFL")
    path = small_lake.lake.tile(scene_id, "B08")
    path.unlink()
    small_lake.lake.assets_manifest.write_text(f"scene_id,href_b08\n{scene_id},{archive.url}/{scene_id}/B04.tif\n")
    assert "is B04 according to its name, not B08" in str(healed(small_lake, archive)[1])
    small_lake.lake.assets_manifest.write_text(f"scene_id,href_b08\n{scene_id},https://evil.example/B08.tif\n")
    assert "no allowed address in" in str(healed(small_lake, archive)[1])


def test_the_scenes_stac_item_tells_an_address_too(small_lake: SmallLake, archive: Archive) -> None:
    scene_id = scene(FIRST, "T34TFL")
    path = small_lake.lake.tile(scene_id, "B08")
    item = small_lake.lake.scene_item(scene_id)
    item.parent.mkdir()
    href = f"{archive.url}/{scene_id}/B08.tif"
    item.write_text(json.dumps({"assets": {"B08_10m": {"href": href, "file:size": path.stat().st_size}}}))
    small_lake.lake.assets_manifest.unlink()
    path.unlink()
    assert isinstance(healed(small_lake, archive)[1], Refetched)
    item.write_text(json.dumps({"assets": {"B08_10m": {"href": href, "file:size": 5}}}))
    path.unlink()
    assert "but 5 were published" in str(healed(small_lake, archive)[1])


# --- in a run -------------------------------------------------------------------------------------------------


@in_folder_and_bucket
def test_every_defect_heals_in_one_command(
    small_lake: SmallLake, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing, empty, a page, cut, not the published one, one whose server is down; a token is needed, and kept."""
    lake = small_lake.lake
    scenes = [scene(key, tile) for key in (FIRST, SECOND) for tile in ("T35TKF", "T34TFL")]
    tiles = [lake.tile(scene_id, band) for scene_id in scenes for band in BANDS]
    before = {path: path.read_bytes() for path in tiles}
    tiles[0].unlink()
    tiles[1].write_bytes(b"")
    tiles[2].write_text("<html>")
    tiles[3].write_bytes(before[tiles[3]][:3000])
    tiles[6].write_bytes(before[tiles[6]][:3000])  # JPEG 2000
    tiles[4].with_name("B08.tif.md5").write_text(hashlib.md5(before[tiles[4]]).hexdigest())
    tiles[4].write_bytes(before[tiles[1]])
    archive.needs_token = True
    archive.faults[f"/{tiles[0].parent.name}/B04.tif"] = ["503", "cut", "429 after 1"]
    options = ["--data-lake", str(small_lake.root), "--download-from", archive.url]
    options += ["--download-token-url", f"{archive.url}/token"]
    monkeypatch.setenv("THESS_DOWNLOAD_USER", USER)
    monkeypatch.setenv("THESS_DOWNLOAD_PASSWORD", PASSWORD)
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in tiles} == before
    tables = small_lake.tables_on_disk()
    assert set(tables["status"]["status"]) == {"success"}
    told = "\n".join(tables["band_report"]["refetched"])
    for number in (0, 1, 2, 3, 4, 6):
        name = f"{tiles[number].parent.name}/{tiles[number].stem}"
        assert f"{name} " in told
        assert f"from {archive.url}/{name}.tif at 20" in told
    assert "was missing" in told
    assert "did not match the published checksum" in told
    assert told.count(" at 20") == 6
    everything = result.output + "".join(
        str(record.event_log_entry) for run in small_lake.instance.get_runs() for record in
        small_lake.instance.get_records_for_run(run.run_id).records
    )  # fmt: skip
    for path in small_lake.root.rglob("*"):
        if path.is_file() and path.suffix in (".csv", ".json", ".db", ".log"):
            everything += path.read_bytes().decode("latin-1")
    assert PASSWORD not in everything
    assert not any(token in everything for token in archive.tokens)


@pytest.mark.parametrize(
    "item",
    [
        '{"assets": ' + "[" * 200_000,
        '{"bands": 5, "assets": {"B04": 5}}',
        '{"properties": ["x"], "assets": ["x"]}',
        "\0",
    ],
    ids=["deep", "number", "list", "no JSON"],
)
def test_a_catalogue_file_that_is_none_costs_its_own_timestamp_at_most(
    small_lake: SmallLake, archive: Archive, item: str
) -> None:
    """In the whole command; the manifest has a cell longer than Python's csv module takes, too."""
    lake = small_lake.lake
    stray, lost = scene(FIRST, "T34TFL"), scene(SECOND, "T34TFL")
    lake.scene_item(stray).parent.mkdir(parents=True)
    lake.scene_item(stray).write_text(item)
    manifest = lake.assets_manifest.read_text()
    lake.assets_manifest.write_text(f"{manifest}{stray}_2,{'x' * 131_073},,,,,\n")
    for scene_id in (stray, lost):
        lake.tile(scene_id, "B04").unlink()
    result = invoke("--data-lake", str(small_lake.root), "--download-from", archive.url)
    assert isinstance(result.exception, SystemExit | None), result.output
    found = small_lake.tables_on_disk()["status"].set_index("timestamp")
    assert found.loc[SECOND, "status"] == "success", result.output
    assert "Traceback" not in result.output
    if found.loc[FIRST, "status"] != "success":
        assert str(lake.scene_item(stray)) in str(found.loc[FIRST, "message"])


def test_what_cannot_be_fetched_is_told_with_the_reason(small_lake: SmallLake, archive: Archive) -> None:
    small_lake.read_list()
    tile = small_lake.lake.tile(scene(FIRST, "T34TFL"), "B08")
    tile.unlink()
    del archive.files[f"/{tile.parent.name}/B08.tif"]
    found = small_lake.aggregate(FIRST, download_from=[archive.url]).attempt
    assert found.status == "failed_missing_inputs"
    assert "(fetching it again failed: http://127.0.0.1" in found.message
    assert "the server answers 404; no such file)" in found.message
    assert small_lake.aggregate(FIRST).attempt.message.count("fetching it again") == 0  # off


def test_nothing_is_fetched_unless_asked(small_lake: SmallLake, archive: Archive) -> None:
    small_lake.read_list()
    small_lake.lake.tile(scene(FIRST, "T34TFL"), "B08").unlink()
    assert small_lake.aggregate(FIRST).attempt.status == "failed_missing_inputs"
    assert archive.seen == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"THESS_DOWNLOAD_USER": "u", "THESS_DOWNLOAD_PASSWORD": "p"}, ("u", "p", None)),
        ({"CDSE_USERNAME": "cu", "CDSE_PASSWORD": "cp"}, ("cu", "cp", None)),
        ({"CDSE_USERNAME": "cu", "CDSE_PASSWORD": "cp", "CDSE_TOTP": "123456"}, ("cu", "cp", "123456")),
        # Never one's name with the other's password.
        (
            {"THESS_DOWNLOAD_USER": "u", "CDSE_USERNAME": "cu", "CDSE_PASSWORD": "cp", "CDSE_TOTP": "1"},
            ("u", None, None),
        ),
        ({}, (None, None, None)),
    ],
)
def test_the_copernicus_tools_credentials_are_taken_where_ours_are_not_set(
    environment: dict[str, str], expected: tuple[str | None, ...]
) -> None:
    policy = download_policy(TimestampsAggregationParams(download_from=["example.org"]), environment)
    assert policy is not None
    assert (policy.user, policy.password, policy.one_time_code) == expected
    assert "cp" not in repr(policy)
    assert "123456" not in repr(policy)


def test_a_one_time_code_is_sent_with_the_password(small_lake: SmallLake, tmp_path: Path) -> None:
    with serving(Archive({"/tile": b"pixels"}, needs_token=True)) as archive:
        environment = {"CDSE_USERNAME": USER, "CDSE_PASSWORD": PASSWORD, "CDSE_TOTP": "123456"}
        params = TimestampsAggregationParams(download_from=[archive.url], download_token_url=f"{archive.url}/token")
        policy = download_policy(params, environment)
        assert policy is not None
        Downloader(policy).fetch(f"{archive.url}/tile", tmp_path / "tile")
        assert (tmp_path / "tile").read_bytes() == b"pixels"
        assert archive.forms[0]["totp"] == ["123456"]
