"""Which files belong to a timestamp: by its folder, or, in a bucket, by its manifest."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from thess_agg_dagster.lake.published import Published, is_beside, named_by, outputs_of, published_in, read_manifest

RUN = "20230202T092109Z-1f0c22ab"
FOLDER = Path("/lake/2023")


def test_names_of_files_that_describe_the_bands() -> None:
    beside = ["source", "observations", "source_B04", "source_SCL_20m"]
    bands = ["B04", "SCL", "NDVI", "count", "Source", "sources", "observation", "observations_B04", "resource_B04", ""]
    assert [name for name in [*beside, *bands] if is_beside(name)] == beside


def test_the_bands_among_the_files() -> None:
    names = ("B04.tif", "B8A.tif", "observations.tif", "source.tif", "source_B8A.tif", "tif.tif")
    published = Published(FOLDER, names)
    assert published.bands == ["B04", "B8A", "tif"]
    assert published.mosaic("B04") == FOLDER / "B04.tif"
    assert (published.quicklook, published.item) == (FOLDER / "quicklook.jpg", FOLDER / "item.json")
    assert Published(FOLDER).bands == []
    with pytest.raises(AttributeError):
        published.folder = Path("/another")  # type: ignore[misc]


def test_in_a_folder_they_are_the_geotiffs_that_are_there(tmp_path: Path) -> None:
    assert published_in(tmp_path / "missing") == Published(tmp_path / "missing", [])
    for name in ("B08.tif", "B04.tif", "quicklook.jpg", "manifest.json", "B04.tif.aux.xml"):
        (tmp_path / name).touch()
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "B11.tif").touch()
    # Not even asked, where the files themselves are there to see.
    (tmp_path / "manifest.json").write_text(json.dumps({"outputs": [{"file": "B12.tif"}]}))
    assert published_in(tmp_path) == Published(tmp_path, ["B04.tif", "B08.tif"])


@pytest.mark.parametrize(
    ("files", "folder", "names"),
    [
        ([f"{RUN}/B08.tif", f"{RUN}/B04.tif"], FOLDER / RUN, ["B04.tif", "B08.tif"]),
        (["B08.tif", "B04.tif"], FOLDER, ["B04.tif", "B08.tif"]),  # as 0.1.0 put them
        (["../../etc/B04.tif"], FOLDER, ["B04.tif"]),
        ([f"else/{RUN}/B04.tif"], FOLDER, ["B04.tif"]),
        (["20230202T092109Z/B04.tif"], FOLDER, ["B04.tif"]),
        ([], FOLDER, []),
    ],
)
def test_in_a_bucket_the_manifest_names_them_and_the_run_they_are_of(
    files: list[str], folder: Path, names: list[str]
) -> None:
    manifest = {"timestamp": "2023", "outputs": [{"file": file, "checksum": "x"} for file in files]}
    assert named_by(manifest, FOLDER) == Published(folder, names)
    bucket: Any = UPath(f"memory://bucket-{uuid.uuid4().hex}/2023")
    assert published_in(bucket) == Published(bucket, [])
    (bucket / "manifest.json").write_text(json.dumps(manifest))
    found = published_in(bucket)
    assert (str(found.folder), found.names) == (str(bucket / RUN if folder.name == RUN else bucket), names)


@pytest.mark.parametrize("outputs", [None, {}, "B04.tif", 7, {"file": "B04.tif"}])
def test_outputs_that_are_no_list_are_none(outputs: Any) -> None:
    assert outputs_of({"outputs": outputs}) == []
    assert outputs_of({}) == []
    assert named_by({"outputs": outputs}, FOLDER) == Published(FOLDER, [])


def test_of_outputs_only_those_count_that_tell_something() -> None:
    outputs = [{"file": "B04.tif"}, "B08.tif", None, ["B11.tif"], {"file": "B12.tif"}]
    assert outputs_of({"outputs": outputs}) == [outputs[0], outputs[4]]
    assert named_by({"outputs": outputs}, FOLDER).names == ["B04.tif", "B12.tif"]


@pytest.mark.parametrize(
    "text",
    [
        None, "", "{", "[]", "7", "null", '"text"', "\xff", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_empty(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "manifest.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert read_manifest(path) == {}
    path.write_text('{"timestamp": "2023"}')
    assert read_manifest(path) == {"timestamp": "2023"}
