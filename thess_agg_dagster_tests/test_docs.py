"""What README and docs tell a user to type is typed, as printed. (Those of docs/SERIES.md: ``products/test_series.py``.)"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from thess_agg_dagster_tests.conftest import FIRST, SmallLake
from thess_agg_dagster_tests.runs.test_command import ROOT, clean_environment, statuses
from thess_agg_dagster_tests.services import Client


def blocks(page: str, language: str = "sh") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@contextmanager
def typed(block: str, lake: SmallLake) -> Iterator[subprocess.Popen[str]]:
    """A shell that runs a block in the project's folder, on this lake; what it has started ends with the test."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    output = (lake.root.parent / "output").open("w+")
    shell = subprocess.Popen(
        ["bash", "-euc", block.replace("/data/lake", str(lake.root))],
        cwd=ROOT, env=clean_environment() | {"PATH": path}, stdout=output, stderr=output, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield shell
    finally:
        print((lake.root.parent / "output").read_text())
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGINT)
            shell.wait(30)
        output.close()


def test_the_commands_of_the_readme(small_lake: SmallLake) -> None:
    make, command = blocks("README.md")
    assert subprocess.run(["make", "--dry-run", *re.findall(r"^make (\w+)", make, re.M)], cwd=ROOT).returncode == 0
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    with typed(command, small_lake) as shell:
        assert shell.wait(120) == 0
    assert statuses(small_lake.lake) == {FIRST: "success"}


def test_the_commands_of_docs_downloads(small_lake: SmallLake) -> None:
    """On a lake that has all of its tiles, so that none is asked for."""
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    (block,) = blocks("docs/DOWNLOADS.md")
    with typed(block, small_lake) as shell:
        assert shell.wait(120) == 0
    assert statuses(small_lake.lake) == {FIRST: "success"}


@pytest.mark.xdist_group("dagster dev")
def test_the_commands_of_docs_dagster_from_a_list_to_the_ui(small_lake: SmallLake) -> None:
    small_lake.list_rows((FIRST, small_lake.add_timestamp(FIRST)))
    (block,) = blocks("docs/DAGSTER.md")
    log = small_lake.root.parent / "output"
    with typed(block, small_lake):
        ui = Client()
        ui.wait_until(lambda: "Serving dagster-webserver on http" in log.read_text())
        (ui.url,) = re.findall(r"Serving dagster-webserver on (http://\S+)", log.read_text())
        ui.wait_until(ui.is_up)
        assert statuses(small_lake.lake) == {FIRST: "success"}
