"""The UI as a person sees it: ``dagster dev`` on the sample lake, in Debian's Chromium.

With ``SCREENSHOTS`` set to a folder, what was seen is kept there: the README's pictures.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pandas as pd
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.runs.instance import UNFINISHED
from thess_agg_dagster.sample import MISSING_SCENE, make_sample_lake, real_time_serie, write_scene
from thess_agg_dagster_tests.runs.test_dagster_dev import Ui, dagster_dev

pytestmark = [pytest.mark.browser]

AGGREGATED = "/assets/data_raw/aggregated"
PIXEL = 100


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    root = tmp_path / "sample-lake"
    make_sample_lake(root, PIXEL)
    return DataLake(root)


@pytest.fixture
def ui(lake: DataLake) -> Iterator[Ui]:
    with dagster_dev(lake.root) as opened:
        yield opened


@pytest.fixture
def page(ui: Ui) -> Iterator[Page]:
    with sync_playwright() as playwright:
        flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=[*flags.split(), "--disable-component-update", "--disable-sync"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900}, base_url=ui.url)
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield page
        browser.close()


def keep(page: Page, name: str) -> None:
    """Keep what is seen, once nothing is loading any more."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)
    expect(page.get_by_text(re.compile("^Loading"))).to_have_count(0)
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def partitions(page: Page, key: str = "") -> None:
    page.goto(f"{AGGREGATED}?view=partitions" + (f"&partition={quote(key)}" if key else ""))


def statuses(lake: DataLake) -> dict[str, str]:
    if not lake.audit_table("status").exists():
        return {}
    table = pd.read_csv(lake.audit_table("status"), dtype=str)
    return dict(zip(table["timestamp"], table["status"], strict=True))


def test_a_series_from_its_list_to_its_repair(lake: DataLake, ui: Ui, page: Page) -> None:
    rows = real_time_serie()
    (broken,) = (row["acq_datetime"] for row in rows if MISSING_SCENE in row["tile_ids"])
    first = rows[0]["acq_datetime"]

    # The sensor found the list: its timestamps are there, and have run.
    ui.wait_until(lambda: len(ui.runs(dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE)) >= 7)
    partitions(page)
    expect(page.get_by_text("Failed (1)")).to_be_visible()
    expect(page.get_by_text("Materialized (5)")).to_be_visible()

    # A backfill of all of them, launched by hand.
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    expect(dialog.get_by_text("6 partitions", exact=True)).to_be_visible()
    keep(page, "backfill")
    dialog.get_by_role("button", name=re.compile("Launch")).click()
    ui.wait_until(lambda: len(ui.backfill_runs(dg.DagsterRunStatus.SUCCESS)) == 5)
    ui.wait_until(lambda: len(ui.backfill_runs(dg.DagsterRunStatus.FAILURE)) == 1)
    page.goto("/runs?view=backfills")
    keep(page, "runs")

    # A green one shows what it looks like.
    partitions(page, first)
    expect(page.get_by_text("Materialized (5)")).to_be_visible()
    page.get_by_text("[Show Markdown]").click()
    picture = page.get_by_role("dialog").locator("img")
    expect(picture).to_be_visible()
    assert picture.evaluate("img => img.complete && img.naturalWidth > 300")
    keep(page, "quicklook")
    page.get_by_role("button", name="Close").click()
    for text in ("cloud_share", "valid_share", "megabytes_per_second", "EPSG:32635"):
        expect(page.get_by_text(text).first).to_be_visible()

    # The red one says why, on the asset's page and on the run's: two clicks from its partition.
    reason = f"{MISSING_SCENE}: no such file; download the tile again"
    (failed,) = ui.backfill_runs(dg.DagsterRunStatus.FAILURE)
    partitions(page)
    page.get_by_title(broken).click()
    page.get_by_role("link", name=failed.run_id[:8]).first.click()
    expect(page.get_by_text(reason).first).to_be_visible()
    page.goto(f"{AGGREGATED}?view=events&partition={quote(broken)}")
    page.get_by_text(re.compile(broken[:10])).first.click()
    expect(page.get_by_text(reason).first).to_be_visible()
    keep(page, "failure")
    page.goto(f"{AGGREGATED}?view=checks&checkDetail=inputs_complete")
    page.get_by_text("Execution history").click()
    expect(page.get_by_text("no such file; download the tile again").first).to_be_visible()
    keep(page, "checks")

    # The report tells of it at a glance.
    ui.wait_until(lambda: sorted(statuses(lake).values()) == ["failed_missing_inputs", *["success"] * 5])
    page.goto("/assets/timestamps_aggregation?view=events")
    page.get_by_text("[Show Markdown]").first.click()
    expect(page.get_by_role("dialog").locator("img")).to_be_visible()
    keep(page, "report")

    # Its tile arrives, and a sensor repairs it; the report follows by itself.
    write_scene(lake, MISSING_SCENE, PIXEL)
    ui.wait_until(lambda: lake.mosaic(broken, "SCL").exists())
    ui.wait_until(lambda: set(statuses(lake).values()) == {"success"})
    partitions(page)
    expect(page.get_by_text("Materialized (6)")).to_be_visible()
    expect(page.get_by_text("Failed (0)")).to_be_visible()

    # A new list with one more row.
    for scene in rows[4]["tile_ids"].split("|"):
        write_scene(lake, scene, PIXEL)
    listed = list(csv.DictReader(lake.time_serie.read_text().splitlines()))
    replacement = lake.time_serie.with_suffix(".new")
    with replacement.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*listed, rows[4]])
    replacement.rename(lake.time_serie)
    ui.wait_until(lambda: statuses(lake).get(rows[4]["acq_datetime"]) == "success")
    partitions(page)
    expect(page.get_by_text("Materialized (7)")).to_be_visible()
    keep(page, "partitions")

    # The launchpad says at once what a parameter may not be, and launches nothing.
    config = "resources:\n  params:\n    config:\n      merge_method: maxi\n"
    page.goto(f"/locations/thess_agg_dagster/jobs/report_only/playground/setup?config={quote(config)}")
    expect(page.get_by_text(re.compile("config:merge_method not in enum type .*'max'.* got maxi"))).to_be_visible()
    expect(page.get_by_role("button", name="Launch Run")).to_be_disabled()

    # The automation, the graph.
    page.goto("/automation")
    for name in ("time_serie_sensor", "late_tiles_sensor", "report_sensor", "verify_published_schedule"):
        expect(page.get_by_text(name).first).to_be_visible()
    keep(page, "automation")
    groups = ("inputs", "mosaics", "audit")
    page.goto("/asset-groups?expanded=" + ",".join(f"global@global:{group}" for group in groups))
    for name in (*groups, "time_serie", "aggregated", "composites"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(
        page.get_by_text(re.compile("^times.*_aggregation$")).first
    ).to_be_visible()  # a long name is cut in its middle
    keep(page, "lineage")
    ui.wait_until(lambda: not ui.runs(*UNFINISHED))
    assert "locked" not in ui.log.read_text()
