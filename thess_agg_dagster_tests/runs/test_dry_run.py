"""A dry run: what is due, missing, to fetch and to write, against what then happens; and nothing is done."""

from __future__ import annotations

import json
from pathlib import Path

from thess_agg_dagster_tests.conftest import FIRST, SECOND, THIRD, SmallLake
from thess_agg_dagster_tests.processes import invoke


def lake_with_one_done(small_lake: SmallLake) -> tuple[str, Path]:
    """Of three timestamps one is made, one is due and whole, one lacks two tiles, of which one has a known size."""
    ids = [small_lake.add_timestamp(key) for key in (FIRST, SECOND, THIRD)]
    small_lake.list_rows(*zip((FIRST, SECOND, THIRD), ids, strict=True))
    done = invoke("--data-lake", str(small_lake.root), "--timestamps", FIRST, "--max-workers", "1")
    assert done.exit_code == 0, done.output
    missing = [small_lake.lake.tile(ids[2][0], band) for band in ("B04", "SCL")]
    for path in missing:
        path.unlink()
    item = small_lake.lake.scene_item(ids[2][0])
    item.parent.mkdir(parents=True)
    item.write_text(json.dumps({"assets": {"B04_10m": {"file:size": 3_500_000}}}))
    return str(small_lake.root), missing[0]


def test_it_tells_what_would_be_done_and_does_nothing(small_lake: SmallLake) -> None:
    root, missing = lake_with_one_done(small_lake)
    before = {path: path.stat().st_mtime_ns for path in small_lake.root.glob("[!.]*/**/*")}
    result = invoke("--data-lake", root, "--dry-run", "--max-workers", "1")
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in small_lake.root.glob("[!.]*/**/*")} == before
    lines = result.stdout.splitlines()
    assert f"{SECOND}  due" in lines
    assert f"{THIRD}  due  2 tiles missing" in lines
    assert f"  {missing}" in lines
    assert not any(line.startswith(FIRST) for line in lines)
    assert (
        "2 timestamps due; 2 tiles missing (set download_from to download them): 3.5 MB and 1 of unknown size" in lines
    )
    # Two timestamps of as many tiles as the one that was made: twice its bytes.
    written = sum(path.stat().st_size for path in small_lake.lake.timestamp_folder(FIRST).glob("*.tif"))
    assert any(line.startswith(f"To write: about {2 * written / 1e6:.1f} MB in ") for line in lines)


def test_with_sources_it_tells_what_is_fetched(small_lake: SmallLake) -> None:
    root, missing = lake_with_one_done(small_lake)
    result = invoke("--data-lake", root, "--dry-run", "--download-from", "example.org", "--timestamps", THIRD)
    assert "1 timestamps due; 2 tiles to fetch: 3.5 MB and 1 of unknown size" in result.stdout
    assert str(missing) not in result.stdout


def test_a_lake_where_nothing_was_made_yet(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    result = invoke("--data-lake", str(small_lake.root), "--dry-run")
    assert "1 timestamps due; 0 tiles missing" in result.stdout
    assert "unknown, because nothing has been aggregated here yet" in result.stdout
    assert not small_lake.lake.aggregated.exists()
