"""What identifies a mosaic, and what is due: a lake is a table of fingerprints here, and identities are spelled out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from thess_agg_dagster.audit.outcome import Attempt, BandRecord, RecordedAttempt
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.time_serie import Acquisition
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.paths import File
from thess_agg_dagster.timestamp import freshness
from thess_agg_dagster.timestamp.freshness import (
    changed_inputs,
    code_version,
    current_bands,
    identify_bands,
    identify_inputs,
    is_due,
    is_identified,
    tile_names,
    together,
)
from thess_agg_dagster_tests.rasters import listing

KEY = "2023-02-02 09:21:09+00:00"
ROW = Acquisition(KEY, ("S2_A", "S2_B"))
LAKE = DataLake(Path("/nowhere/lake"))
PUBLISHED = ("manifest.json", "quicklook.jpg", "item.json", "source.tif", "B04.tif", "B08.tif", "SCL.tif")


def params(**given: Any) -> TimestampsAggregationParams:
    return TimestampsAggregationParams(**{"bands": ["B04", "B08"]} | given)


def all_there(lake: DataLake = LAKE) -> dict[File, str]:
    """Every file of the two scenes and of the published timestamp, with a fingerprint of its own."""
    tiles = [lake.tile(scene, band) for scene in ROW.scene_ids for band in ("B04", "B08", "SCL")]
    items = [lake.scene_item(scene) for scene in ROW.scene_ids]
    made = [lake.timestamp_folder(KEY) / name for name in PUBLISHED]
    return {path: str(number) for number, path in enumerate([*tiles, *items, *made])}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def made_now(
    given: TimestampsAggregationParams, fingerprints: Mapping[File, str], status: Any = "success"
) -> RecordedAttempt:
    identities = identify_bands(ROW, LAKE, given, given.bands, listing(fingerprints))
    records = [BandRecord(band, "success", inputs=identities[band]) for band in given.bands]
    return RecordedAttempt(Attempt(KEY, status, "", records, inputs=together(identities)), "run", 1.0, 1)


def test_a_band_is_identified_by_version_parameters_and_files() -> None:
    fingerprints = all_there()
    lines = "".join(
        f"{path.parent.name}/{path.name} {fingerprints[path]}\n"
        for path in [
            LAKE.tile("S2_A", "B04"),
            LAKE.tile("S2_B", "B04"),
            LAKE.scene_item("S2_A"),
            LAKE.scene_item("S2_B"),
        ]
    )
    assert identify_bands(ROW, LAKE, params(), ["B04"], listing(fingerprints)) == {"B04": digest("1\n{}\n" + lines)}
    del fingerprints[LAKE.tile("S2_B", "B04")]
    missing = lines.replace("S2_B/B04.tif 3", "S2_B/B04.tif missing")
    assert identify_bands(ROW, LAKE, params(), ["B04"], listing(fingerprints)) == {"B04": digest("1\n{}\n" + missing)}


def test_all_bands_together_are_identified_by_each() -> None:
    assert together({"B08": "b", "B04": "a"}) == digest('{"B04": "a", "B08": "b"}')
    fingerprints = listing(all_there())
    bands = identify_bands(ROW, LAKE, params(), ["B04", "B08"], fingerprints)
    assert identify_inputs(ROW, LAKE, params(), fingerprints) == digest(json.dumps(bands))


@pytest.mark.parametrize(
    ("changed", "given", "others"),
    [
        ("S2_A/B04.tif", {}, {"B04"}),
        ("S2_B/B08.tif", {}, {"B08"}),
        ("S2_A/SCL.tif", {}, set()),
        ("S2_A/SCL.tif", {"mask_scl_classes": [9]}, {"B04", "B08"}),
        ("S2_A/B08.tif", {"match_band": "B08"}, {"B04", "B08"}),
        ("stac_items/S2_A.json", {}, {"B04", "B08"}),
        ("S2_A/B04.tif.sha256", {}, {"B04"}),
    ],
)
def test_a_file_changes_the_bands_that_read_it(changed: str, given: dict[str, Any], others: set[str]) -> None:
    fingerprints = all_there()
    before = identify_bands(ROW, LAKE, params(**given), ["B04", "B08"], listing(fingerprints))
    after = identify_bands(
        ROW, LAKE, params(**given), ["B04", "B08"], listing(fingerprints | {LAKE.root / "cache/s2" / changed: "x"})
    )
    assert {band for band in before if before[band] != after[band]} == others


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"resampling": "cubic"}, False),
        ({"merge_method": "max"}, False),
        ({"mask_scl_classes": [9]}, False),
        ({"stac": True}, True),
        ({"threads": 1}, True),
    ],
)
def test_parameters_that_decide_pixels_change_it(given: dict[str, Any], same: bool) -> None:
    fingerprints = listing(all_there())
    assert (
        identify_inputs(ROW, LAKE, params(), fingerprints) == identify_inputs(ROW, LAKE, params(**given), fingerprints)
    ) is same


def test_a_checksum_that_is_published_later_changes_its_band(tmp_path: Path) -> None:
    lake = DataLake(tmp_path)
    before = identify_bands(ROW, lake, params(), ["B04", "B08"])
    lake.assets_manifest.parent.mkdir()
    lake.assets_manifest.write_text(f"scene_id,checksum_b04\nS2_A,{'0' * 64}\n")
    after = identify_bands(ROW, lake, params(), ["B04", "B08"])
    assert after["B04"] != before["B04"]
    assert after["B08"] == before["B08"]


def test_tiles_that_a_timestamp_reads() -> None:
    def bands(required: bool = False, **given: Any) -> list[str]:
        names = tile_names(ROW, params(**given), required) if required else tile_names(ROW, params(**given))
        assert [scene for scene, _ in names] == sorted(["S2_A", "S2_B"] * (len(names) // 2))
        return [band for scene, band in names if scene == "S2_B"]

    assert bands() == ["B04", "B08"]
    assert bands(mask_scl_classes=[9]) == ["B04", "B08", "SCL"]
    assert bands(mask_scl_classes=[9], bands=["scl", "B04"]) == ["scl", "B04"]
    assert bands(mask_scl_classes=[9], missing_scl="unmasked") == ["B04", "B08", "SCL"]
    assert bands(required=True, mask_scl_classes=[9], missing_scl="unmasked") == ["B04", "B08"]
    assert bands(required=True, mask_scl_classes=[9]) == ["B04", "B08", "SCL"]


def test_due_without_a_success() -> None:
    fingerprints = all_there()
    assert is_due(ROW, None, LAKE, params(), listing(fingerprints))
    for status in ("failed_no_tiles", "failed_missing_inputs", "failed_invalid_inputs", "failed_merge", "exception"):
        assert is_due(ROW, made_now(params(), fingerprints, status), LAKE, params(), listing(fingerprints))
    assert not is_due(ROW, made_now(params(), fingerprints), LAKE, params(), listing(fingerprints))


@pytest.mark.parametrize(
    ("given", "due"),
    [
        ({}, False),
        ({"bands": ["B08"]}, False),
        ({"bands": ["B04", "B08", "SCL"]}, True),
        ({"stac": True}, False),
        ({"resampling": "cubic"}, True),
    ],
)
def test_due_with_other_parameters(given: dict[str, Any], due: bool) -> None:
    fingerprints = all_there()
    assert is_due(ROW, made_now(params(), fingerprints), LAKE, params(**given), listing(fingerprints)) is due


@pytest.mark.parametrize("gone", PUBLISHED)
@pytest.mark.parametrize(
    ("given", "more"), [({}, ()), ({"stac": True}, ("item.json",)), ({"provenance": True}, ("source.tif",))]
)
def test_due_where_something_is_gone(gone: str, given: dict[str, Any], more: tuple[str, ...]) -> None:
    fingerprints = all_there()
    last = made_now(params(**given), fingerprints)
    assert not is_due(ROW, last, LAKE, params(**given), listing(fingerprints))
    del fingerprints[LAKE.timestamp_folder(KEY) / gone]
    expected = gone in ("manifest.json", "quicklook.jpg", "B04.tif", "B08.tif", *more)
    assert is_due(ROW, last, LAKE, params(**given), listing(fingerprints)) is expected


def test_due_with_other_tiles() -> None:
    fingerprints = all_there()
    last = made_now(params(), fingerprints)
    assert is_due(Acquisition(KEY, ("S2_A",)), last, LAKE, params(), listing(fingerprints))
    assert is_due(Acquisition(KEY, ("S2_B", "S2_A")), last, LAKE, params(), listing(fingerprints))
    assert is_due(ROW, last, LAKE, params(), listing(fingerprints | {LAKE.tile("S2_B", "B08"): "new"}))


def test_current_bands_are_those_made_of_what_is_there() -> None:
    fingerprints = all_there()
    made = made_now(params(bands=["B04", "B08", "SCL"]), fingerprints).attempt
    fingerprints[LAKE.tile("S2_A", "B08")] = "new"
    assert current_bands(made, ROW, LAKE, params(), listing(fingerprints)) == {"B04", "SCL"}


# --- NDVI -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "ndvi", "identified"),
    [
        (["B04", "B08"], "int16", True),
        (["B08", "SCL", "B04"], "int16", True),
        (["B04", "B08"], None, False),
        (["B04", "SCL"], "int16", False),
        (["B08"], "float32", False),
        (["SCL"], "float32", False),
    ],
)
def test_ndvi_is_identified_by_its_dtype_and_its_two_bands(
    bands: list[str], ndvi: str | None, identified: bool
) -> None:
    found = identify_bands(ROW, LAKE, params(), bands, listing(all_there()), ndvi)
    assert set(found) == {*bands, *(["NDVI"] if identified else [])}
    if identified:
        spelt = {"B04": found["B04"], "B08": found["B08"], "NDVI": f"1 {ndvi}"}
        assert found["NDVI"] == digest(json.dumps(spelt))


def made_with_ndvi(fingerprints: Mapping[File, str], dtype: str = "int16") -> Attempt:
    found = identify_bands(ROW, LAKE, params(), ["B04", "B08", "SCL"], listing(fingerprints), dtype)
    records = [
        BandRecord(band, "success", inputs=text, **({"derived_from": ("B08", "B04")} if band == "NDVI" else {}))  # type: ignore[arg-type]
        for band, text in found.items()
    ]
    return Attempt(
        KEY, "success", "", [replace(each, dtype=dtype if each.derived_from else "uint16") for each in records]
    )


@pytest.mark.parametrize(
    ("given", "current"),
    [
        ({}, True),  # it is not asked for, and is as it was
        ({"ndvi": "int16"}, True),
        ({"ndvi": "float32"}, False),
        ({"bands": ["NDVI"]}, False),  # tiles of that name are asked for
    ],
)
def test_ndvi_is_current_while_its_bands_are(given: dict[str, Any], current: bool) -> None:
    fingerprints = all_there()
    made = made_with_ndvi(fingerprints)
    merged = {"B04", "B08", "SCL"}
    expected = merged | {"NDVI"} if current else merged
    assert current_bands(made, ROW, LAKE, params(**given), listing(fingerprints)) == expected
    fingerprints[LAKE.tile("S2_A", "B08")] = "new"
    assert current_bands(made, ROW, LAKE, params(**given), listing(fingerprints)) == {"B04", "SCL"}


def test_ndvi_is_due_where_it_is_asked_for_and_missing() -> None:
    fingerprints = all_there()
    last = RecordedAttempt(made_with_ndvi(fingerprints), "run", 1.0, 1)
    assert is_due(ROW, last, LAKE, params(ndvi="int16"), listing(fingerprints))
    fingerprints[LAKE.timestamp_folder(KEY) / "NDVI.tif"] = "there"
    assert not is_due(ROW, last, LAKE, params(ndvi="int16"), listing(fingerprints))
    assert is_due(ROW, last, LAKE, params(ndvi="float32"), listing(fingerprints))
    assert is_due(ROW, made_now(params(), fingerprints), LAKE, params(ndvi="int16"), listing(fingerprints))


# --- 0.1.0 ----------------------------------------------------------------------------------------------------


def identity_of_0_1_0(fingerprints: Mapping[File, str], bands: list[str], **given: Any) -> str:
    """As that release made it: its number, all parameters, tiles, items."""
    values: dict[str, Any] = {
        "aoi": None, "aoi_mask": False, "bands": bands, "bounds": None, "compress": "zstd", "dtype": None,
        "format": "geotiff", "grid": "tiles", "harmonize": False, "mask_scl_classes": [], "match_band": None,
        "merge_method": "first", "missing_scl": "fail", "nodata": float("nan"), "overviews": False,
        "reduction": "average", "resampling": "nearest", "resolution": None, "stac": False, "target_crs": "first",
    }  # fmt: skip
    names = [*bands, "SCL"] if given.get("mask_scl_classes") and "SCL" not in bands else bands
    paths = [LAKE.tile(scene, band) for scene in ROW.scene_ids for band in names]
    lines = [
        f"{path.parent.name}/{path.name} {fingerprints[path]}\n"
        for path in [*paths, *map(LAKE.scene_item, ROW.scene_ids)]
    ]
    return digest(f"0.1.0\n{json.dumps(values | given, sort_keys=True)}\n" + "".join(lines))


@pytest.mark.parametrize(
    "given", [{}, {"stac": True}, {"merge_method": "max", "dtype": "float32"}, {"mask_scl_classes": [9]}]
)
def test_what_0_1_0_made_is_current(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = all_there()
    bands = ["B04", "B08"]
    records = [BandRecord(band, "success") for band in bands]
    made = Attempt(KEY, "success", "", records, inputs=identity_of_0_1_0(fingerprints, bands, **given), schema=0)
    assert current_bands(made, ROW, LAKE, params(**given), listing(fingerprints)) == set(bands)
    assert not is_due(ROW, RecordedAttempt(made, "run", 1.0, 1), LAKE, params(**given), listing(fingerprints))
    assert current_bands(made, ROW, LAKE, params(**given, resampling="cubic"), listing(fingerprints)) == set()
    assert current_bands(replace(made, schema=1), ROW, LAKE, params(**given), listing(fingerprints)) == set()
    # Other pixels than that release's: then it is not.
    monkeypatch.setattr(freshness, "PIXELS_VERSION", 2)
    assert current_bands(made, ROW, LAKE, params(**given), listing(fingerprints)) == set()


def test_the_first_version_of_the_pixels_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version() is None
    monkeypatch.setattr(freshness, "PIXELS_VERSION", 2)
    assert code_version() == "2"


def test_changes_are_told_of_listed_timestamps_that_were_made_of_something_else(tmp_path: Path) -> None:
    lake = DataLake(tmp_path)
    for path in (Path(str(file)) for file in all_there(lake)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    lake.tables_folder.mkdir()
    lake.time_serie.write_text(f"acq_datetime,tile_ids\n{KEY},S2_A|S2_B\n")
    identities = identify_bands(ROW, lake, params(), ["B04", "B08"])
    assert identities == identify_bands(ROW, lake, params(), ["B04", "B08"], lake.fingerprints())
    records = [BandRecord(band, "success", inputs=text) for band, text in identities.items()]
    made = RecordedAttempt(Attempt(KEY, "success", "", records), "run", 1.0, 1)
    published = {KEY: made, "2020-01-01": made}
    assert changed_inputs(published, lake, params()) == {}
    assert changed_inputs(published, lake, params(bands=["B08"])) == {}
    assert is_identified(together(identities), ROW, lake, params())
    lake.tile("S2_B", "B08").write_bytes(b"12")
    assert changed_inputs(published, lake, params()) == {KEY: identify_inputs(ROW, lake, params())}
    assert changed_inputs(published, lake, params(bands=["B04"])) == {}
    assert not is_identified(together(identities), ROW, lake, params())
