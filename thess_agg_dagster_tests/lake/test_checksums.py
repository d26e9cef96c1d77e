"""Checksums: ours, and those that somebody else published."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from thess_agg_dagster.lake.catalogue import read_item
from thess_agg_dagster.lake.checksums import (
    BackgroundChecksums,
    ChangedError,
    Checksum,
    ChecksumError,
    checksum_of,
    expected_checksum,
    parse_checksum,
)
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.mosaic.radiometry import radiometry_of

DATA = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    lake = DataLake(tmp_path)
    tile = lake.tile("scene", "B04")
    tile.parent.mkdir(parents=True)
    tile.write_bytes(DATA)
    lake.tables_folder.mkdir()
    return lake


def test_checksums_against_other_programs(lake: DataLake) -> None:
    tile = lake.tile("scene", "B04")
    assert str(checksum_of(tile)) == f"xxh128:{xxhash.xxh3_128_hexdigest(DATA)}"
    for algorithm in ("md5", "sha256", "sha512"):
        tool = subprocess.run([f"{algorithm}sum", str(tile)], capture_output=True, text=True, check=True).stdout
        assert checksum_of(tile, algorithm).digest == tool.split()[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SHA256, ("sha256", SHA256)),
        (f"  {SHA256.upper()} ", ("sha256", SHA256)),
        (f"sha256:{SHA256}", ("sha256", SHA256)),
        (f"SHA-256:{SHA256}", ("sha256", SHA256)),
        (f"1220{SHA256}", ("sha256", SHA256)),
        (f"d50110{MD5}", ("md5", MD5)),
        (MD5, ("md5", MD5)),
        (f"xxh128:{MD5}", ("xxh128", MD5)),
        ("", None),
        ("n/a", None),
        ("crc32:deadbeef", None),
        ("abc", None),
        ("sha256:zz", None),
    ],
)
def test_every_way_to_write_one(text: str, expected: tuple[str, str] | None) -> None:
    found = parse_checksum(text)
    assert (found and (found.algorithm, found.digest)) == expected


def test_where_a_published_checksum_is_found(lake: DataLake) -> None:
    assert expected_checksum(lake, "scene", "B04") is None
    item = lake.scene_item("scene")
    item.parent.mkdir()
    item.write_text(json.dumps({"assets": {"B04_10m": {"file:checksum": f"1220{SHA256}"}}}))
    assert expected_checksum(lake, "scene", "B04") == (Checksum("sha256", SHA256), str(item))
    item.write_text(json.dumps({"assets": {"red": {"file:checksum": f"1220{SHA256}", "eo:bands": [{"name": "B04"}]}}}))
    assert expected_checksum(lake, "scene", "B04") == (Checksum("sha256", SHA256), str(item))
    lake.assets_manifest.write_text(f"scene_id,href_b04,checksum_b04\nscene,x,md5:{MD5}\n")
    assert expected_checksum(lake, "scene", "B04") == (Checksum("md5", MD5), str(lake.assets_manifest))
    lake.assets_manifest.write_text(f"scene_id,band,checksum\nscene,B08,{SHA256}\nscene,B04,{MD5}\n")
    assert expected_checksum(lake, "scene", "B04") == (Checksum("md5", MD5), str(lake.assets_manifest))
    sibling = lake.tile("scene", "B04").with_name("B04.tif.sha256")
    sibling.write_text(f"{SHA256}  B04.tif\n")
    assert expected_checksum(lake, "scene", "B04") == (Checksum("sha256", SHA256), str(sibling))
    assert expected_checksum(lake, "scene", "B8A") is None


@pytest.mark.parametrize(
    "text", ["", "<html>", "[]", '{"assets": 3}', '{"assets": {"B04": 1}}', '{"assets": {"B04": {}}}']
)
def test_an_item_that_says_nothing(lake: DataLake, text: str) -> None:
    item = lake.scene_item("scene")
    item.parent.mkdir()
    item.write_text(text)
    assert expected_checksum(lake, "scene", "B04") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{SHA256}  B04.tif\n", SHA256),
        (f"{SHA256} *T35TKF_B04.jp2\n", SHA256),
        (f"{SHA256.upper()}\n", SHA256),
        (f"sha256:{SHA256}", SHA256),
        (f"SHA256 (B04.tif) = {SHA256}\n", SHA256),  # sha256sum --tag, BSD
        (f"SHA256(B04.tif)= {SHA256}\n", SHA256),  # OpenSSL 1
        (f"SHA2-256(/data/B04.tif)= {SHA256}\n", SHA256),  # OpenSSL 3
        (f"MD5 (B04.tif) = {MD5}\n", MD5),
        (f"\\{SHA256}  new\\nline.tif\n", SHA256),
        (f"\\SHA256 (new\\nline.tif) = {SHA256}\n", SHA256),
        (f"# made by hand\r\n{SHA256}  B04.tif\r\n", SHA256),
        (f"{'0' * 64}  B08.tif\n{SHA256}  scene/B04.tif\n", SHA256),
        (f"{'0' * 64}  B08.tif\n{'1' * 64}  SCL.tif\n", None),
        (f"SHA256 (B04.tif) = {SHA256[:-1]}\n", None),
        (f"sha256:{MD5}", None),
        ("B04.tif: OK\n", None),
        ("BLAKE9 (B04.tif) = abcdef\n", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_form_of_a_file_beside_a_tile(lake: DataLake, text: str, expected: str | None, encoding: str) -> None:
    sibling = lake.tile("scene", "B04").with_name("B04.tif.sha256")
    sibling.write_bytes(text.encode(encoding))
    if expected:
        found = expected_checksum(lake, "scene", "B04")
        assert found is not None
        assert (found[0].digest, found[1]) == (expected, str(sibling))
    else:
        with pytest.raises(ChecksumError, match=f"the checksum in {re.escape(str(sibling))} cannot be parsed"):
            expected_checksum(lake, "scene", "B04")


def test_what_coreutils_and_openssl_write(lake: DataLake) -> None:
    tile = lake.tile("scene", "B04")
    for command in (
        ["sha256sum", tile.name], ["sha256sum", "--tag", tile.name], ["md5sum", "-b", tile.name],
        ["openssl", "dgst", "-sha256", tile.name], ["openssl", "sha1", tile.name],
    ):  # fmt: skip
        written = subprocess.run(command, cwd=tile.parent, capture_output=True, check=True).stdout
        tile.with_name("B04.tif.sha256").write_bytes(written)
        found = expected_checksum(lake, "scene", "B04")
        assert found is not None
        assert found[0] == checksum_of(tile, found[0].algorithm)


def test_a_checksum_in_the_manifest_that_cannot_be_understood(lake: DataLake) -> None:
    lake.assets_manifest.write_text("scene_id,checksum_b04\nscene,crc32:deadbeef\n")
    with pytest.raises(ChecksumError, match=r"assets_manifest_selected.csv cannot be parsed \('crc32:deadbeef'\)"):
        expected_checksum(lake, "scene", "B04")


def test_bad_catalogue_files_cost_nobody_else(lake: DataLake) -> None:
    item = lake.scene_item("scene")
    item.parent.mkdir()
    for text in (
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"properties": ["x"], "assets": {"a": {"bands": 5}, "b": {"eo:bands": "B04"}}}',
    ):
        item.write_text(text)
        assert expected_checksum(lake, "scene", "B04") is None
        assert radiometry_of("S2_N0510_", read_item(item)) == ("05.10", 1000)
    lake.assets_manifest.write_text(f"scene_id,checksum_b04\nother,{'x' * 131_073}\nscene,{MD5}\n")
    assert expected_checksum(lake, "scene", "B04") == (Checksum("md5", MD5), str(lake.assets_manifest))
    lake.assets_manifest.write_text(f"scene_id,{'x' * 131_073}\nscene,{MD5}\n")
    assert expected_checksum(lake, "scene", "B04") is None


def test_a_file_that_changes_while_it_is_read_is_noticed(lake: DataLake) -> None:
    tile = lake.tile("scene", "B04")
    with BackgroundChecksums([tile]) as checksums:
        assert checksums.of(tile) == checksum_of(tile)
        tile.write_bytes(DATA + b"!")
        with pytest.raises(ChangedError, match="changed while it was read"):
            checksums.of(tile)


def test_other_programs_check_ours(lake: DataLake) -> None:
    """The digest is in the byte order that the algorithm's own tool writes."""
    code = "import xxhash, sys; print(xxhash.xxh3_128(open(sys.argv[1], 'rb').read()).digest().hex())"
    tile = lake.tile("scene", "B04")
    found = subprocess.run([sys.executable, "-c", code, str(tile)], capture_output=True, text=True, check=True).stdout
    assert found.strip() == checksum_of(tile).digest
