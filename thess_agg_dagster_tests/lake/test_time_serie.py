"""Reading ``time_serie.csv``: what is accepted, what is refused, and by which line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thess_agg_dagster.lake.time_serie import TimeSerie, TimeSerieError, read_time_serie
from thess_agg_dagster.sample import real_time_serie
from thess_agg_dagster_tests.lake.test_layout import HOSTILE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "time_serie.csv"


def series(path: Path, text: str) -> TimeSerie:
    path.write_text(text, encoding="utf-8", newline="")
    return read_time_serie(path)


def scenes(found: TimeSerie) -> dict[str, tuple[str, ...]]:
    return {key: acquisition.scene_ids for key, acquisition in found.acquisitions.items()}


def test_the_real_rows_all_parse() -> None:
    import thess_agg_dagster

    found = read_time_serie(Path(thess_agg_dagster.__file__).parent / "sample_time_serie.csv")
    assert found.refused == ()
    assert scenes(found) == {row["acq_datetime"]: tuple(row["tile_ids"].split("|")) for row in real_time_serie()}
    assert len(found.acquisitions) == 14


@pytest.mark.parametrize("cell", ["a|b|c", "a,b,c", "a;b;c", " a | b ,c; ", "a||b|c|", "a|b|a|c|b"])
def test_separators_spaces_and_duplicates(path: Path, cell: str) -> None:
    found = series(path, f'acq_datetime,tile_ids\n2023-01-01,"{cell}"\n')
    assert scenes(found) == {"2023-01-01": ("a", "b", "c")}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffacq_datetime,tile_ids\n2023-01-01,a\n",
        "acq_datetime,tile_ids\r\n2023-01-01,a\r\n",
        '"acq_datetime","tile_ids"\n"2023-01-01","a"\n',
        " acq_datetime , tile_ids \n 2023-01-01 , a \n",
        'extra,acq_datetime,tile_ids\n"x, y\nz",2023-01-01,a\n',
        "acq_datetime,tile_ids\n\n2023-01-01,a\n,\n\n",
    ],
    ids=["BOM", "CRLF", "quotes", "spaces", "other columns", "blank lines"],
)
def test_how_the_file_is_written_does_not_matter(path: Path, text: str) -> None:
    found = series(path, text)
    assert scenes(found) == {"2023-01-01": ("a",)}
    assert found.refused == ()


def test_rows_of_one_timestamp_are_united_in_order(path: Path) -> None:
    found = series(path, "acq_datetime,tile_ids\n2023-01-02,b|a\n2023-01-01,x\n2023-01-02,a|c\n")
    assert scenes(found) == {"2023-01-01": ("x",), "2023-01-02": ("b", "a", "c")}


def test_a_row_without_tiles_is_a_timestamp_without_tiles(path: Path) -> None:
    assert scenes(series(path, "acq_datetime,tile_ids\n2023-01-01,\n")) == {"2023-01-01": ()}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("yesterday,a", "not an ISO 8601 datetime"),
        ("2023-13-01,a", "not an ISO 8601 datetime"),
        (",a", "not an ISO 8601 datetime"),
        ('"2023-01-05 09:00:00,5",a', "not an ISO 8601 datetime"),
        ("2023-01-05/09:00,a", "not an ISO 8601 datetime"),
        ("=2023-01-05,a", "not an ISO 8601 datetime"),
        ("２023-01-05,a", "not an ISO 8601 datetime"),
        ("2023-01-01T00:00:00Z,a", "is the same instant as '2023-01-01' on line 2"),
        ("2023-01-01 02:00:00+02:00,a", "is the same instant as '2023-01-01' on line 2"),
        ("2023-01-05,../../etc/passwd", "'../../etc/passwd' is not a plain name"),
        ("2023-01-05,a|/etc", "'/etc' is not a plain name"),
        ("2023-01-05", "has 1 fields, the header has 2"),
        ("2023-01-05,a,b", "has 3 fields, the header has 2; put a list with commas in quotes, or | between its ids"),
        ("2023-01-05,a, ,b", "has 4 fields, the header has 2; put a list with commas in quotes"),
        ("2023-01-05," + "a|" * 65_537, "cannot be read (field larger than field limit (131072)); split it"),
        ("9999-12-31 23:59:59-05:00,a", "not an ISO 8601 datetime"),
    ],
)
def test_a_bad_row_is_refused_by_line_and_the_others_go_on(path: Path, row: str, reason: str) -> None:
    found = series(path, f"acq_datetime,tile_ids\n2023-01-01,a\n{row}\n2023-01-03,b\n")
    assert scenes(found) == {"2023-01-01": ("a",), "2023-01-03": ("b",)}
    (refused,) = found.refused
    assert refused.line == 3
    assert reason in str(refused)


def test_lines_are_counted_as_in_an_editor(path: Path) -> None:
    found = series(path, 'note,acq_datetime,tile_ids\n"two\nlines",2023-01-01,a\n\nx,nonsense,b\n')
    assert [refused.line for refused in found.refused] == [5]


@pytest.mark.parametrize("name", [name for name in HOSTILE if name], ids=lambda name: repr(name[:12]))
def test_hostile_tile_ids_are_refused_and_not_echoed_whole(path: Path, name: str) -> None:
    found = series(path, f'acq_datetime,tile_ids\n2023-01-01,"good|{name}"\n')
    assert scenes(found) == {}
    assert len(str(found.refused[0])) < 200
    assert str(found.refused[0]).isprintable()


def test_no_rows(path: Path) -> None:
    found = series(path, "acq_datetime,tile_ids\n")
    assert (scenes(found), found.refused) == ({}, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column(s) acq_datetime, tile_ids (found: none)"),
        ("acq_datetime,tiles\n", "lacks the column(s) tile_ids (found: acq_datetime, tiles)"),
        ("acq_datetime,tile_ids,tile_ids\n", "has the column(s) tile_ids twice; leave one of each"),
        ("acq_datetime,tile_ids, acq_datetime\n", "has the column(s) acq_datetime twice"),
        ("acq_datetime;tile_ids\n2023-01-01;a\n", "is separated by semicolons, not by commas; export it with commas"),
        ('"note, short";"acq_datetime";"tile_ids"\n', "is separated by semicolons, not by commas"),
        ("acq_datetime\ttile_ids\n2023-01-01\ta\n", "is separated by tabs, not by commas"),
        ("acq_datetime," + "a" * 131_073 + ",tile_ids\n", "line 1: cannot be read (field larger"),
    ],
)
def test_missing_columns_are_named(path: Path, text: str, message: str) -> None:
    with pytest.raises(TimeSerieError) as caught:
        series(path, text)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(TimeSerieError, match=r"time_serie.csv: no such file; put .* acq_datetime, tile_ids"):
        read_time_serie(path)


def test_not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x01" * 100)
    with pytest.raises(TimeSerieError, match="cannot be read as UTF-8 CSV"):
        read_time_serie(path)


def test_a_field_without_end_is_not_swallowed(path: Path) -> None:
    found = series(path, "acq_datetime,tile_ids\n2023-01-01,b\n2023-01-02," + "a" * 300_000)
    assert list(found.acquisitions) == ["2023-01-01"]
    assert str(found.refused[0]).startswith("line 3: cannot be read (field larger")


def test_empty_cells_beyond_the_header_are_fine(path: Path) -> None:
    """As spreadsheets leave them."""
    assert scenes(series(path, "acq_datetime,tile_ids\n2023-01-01,a|b,, \n")) == {"2023-01-01": ("a", "b")}


def test_200_megabytes_on_one_line_are_refused_in_bounded_memory(path: Path) -> None:
    with path.open("w") as file:
        file.write("acq_datetime,tile_ids\n2023-01-01,")
        for _ in range(200):
            file.write("a|" * 500_000)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from thess_agg_dagster.lake.time_serie import TimeSerieError, read_time_serie\n"
        "try: read_time_serie(Path(sys.argv[1]))\n"
        "except TimeSerieError as error: print(error)\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(status['VmHWM'].split()[0])\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    message, kilobytes = result.stdout.splitlines()
    assert "line 2 is longer than 1000000 characters" in message
    assert int(kilobytes) < 60_000


def test_a_million_rows_are_answered_clearly(path: Path) -> None:
    with path.open("w") as file:
        file.write("acq_datetime,tile_ids\n")
        for number in range(1_000_000):
            file.write(
                f"{2000 + number // 40000}-01-01 {number // 3600 % 11:02d}:{number // 60 % 60:02d}:{number % 60:02d}.{number:06d},a\n"
            )
    with pytest.raises(TimeSerieError, match="more than 200000 timestamps; split it"):
        read_time_serie(path)


def test_a_quote_without_end_is_told(path: Path) -> None:
    found = series(path, 'acq_datetime,tile_ids,note\n2023-01-01,a,\n2023-01-02,b,"cloudy\n2023-01-03,c,\n')
    assert list(found.acquisitions) == ["2023-01-01"]
    assert [str(row)[:24] for row in found.refused] == ["line 3: has a quote that"]


def test_a_space_after_a_quote_is_fine(path: Path) -> None:
    assert scenes(series(path, '"acq_datetime" , "tile_ids"\n"2023-01-01" , "a|b" \n')) == {"2023-01-01": ("a", "b")}


_KEY = "2023-02-02 09:21:09.024000+00:00"


def test_a_list_of_another_spelling_is_refused_with_the_one_that_is_expected(tmp_path: Path) -> None:
    (tmp_path / "time_series.csv").write_text(f"acq_datetime,tile_ids\n{_KEY},a\n")
    with pytest.raises(
        TimeSerieError, match=r"time_serie.csv: no such file; time_series.csv beside it is another spell"
    ):
        read_time_serie(tmp_path / "time_serie.csv")


@pytest.mark.parametrize(
    "header", ["tiles_count,tile_ids,coverage_frac,acq_datetime,anchor_date", "tile_ids,acq_datetime"]
)
def test_columns_may_stand_in_any_order_and_others_be_missing(tmp_path: Path, header: str) -> None:
    row = {"acq_datetime": _KEY, "tile_ids": "b|a"}
    path = tmp_path / "time_serie.csv"
    path.write_text(f"{header}\n{','.join(row.get(name, '1') for name in header.split(','))}\n")
    assert read_time_serie(path).acquisitions[_KEY].scene_ids == ("b", "a")


def test_the_list_is_parsed_once_per_change(tmp_path: Path) -> None:
    path = tmp_path / "time_serie.csv"
    path.write_text(f"acq_datetime,tile_ids\n{_KEY},a\n")
    first = read_time_serie(path)
    assert read_time_serie(path) is first
    kept = path.stat().st_mtime_ns
    path.write_text(f"acq_datetime,tile_ids\n{_KEY},b\n")
    os.utime(path, ns=(kept, kept))  # as long as before, and as old by its looks
    assert read_time_serie(path).acquisitions[_KEY].scene_ids == ("b",)
    path.unlink()
    with pytest.raises(TimeSerieError, match="no such file"):
        read_time_serie(path)
