"""The commands ``demo``, which shows on a small sample lake what this project does, and ``ui``, which starts Dagster's UI."""

from __future__ import annotations

import os
import sys
from importlib.resources import as_file, files
from pathlib import Path

import click

from thess_agg_dagster.defs.io_manager import DataLakeIOManager
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.lake.published import QUICKLOOK
from thess_agg_dagster.runs.command import ALL_GOOD, SOME_FAILED, main
from thess_agg_dagster.runs.instance import open_instance
from thess_agg_dagster.runs.options import data_lake_option

# One whose quicklook shows both zones, clouds and the edge of the swath.
_SHOWN = "2024-05-07 09:15:49.024000+00:00"
# The UI is started in another folder.
_PATHS = ("THESS_TABLES", "THESS_AOI", "THESS_CATALOGUE_AOI")


@main.command(help="Make a sample lake in FOLDER (./sample-lake), aggregate it and show the result.")
@click.argument("folder", default="sample-lake", type=click.Path(file_okay=False, path_type=Path))
@click.pass_context
def demo(context: click.Context, folder: Path) -> None:
    from thess_agg_dagster.sample import NotASampleError, make_sample_lake  # here, because nobody else needs it

    folder = folder.absolute()
    click.echo("Making a sample lake (real pixels on the real tiles of Thessaloniki, a few seconds) ...")
    try:
        make_sample_lake(folder)
    except NotASampleError as error:
        raise click.UsageError(str(error)) from error
    os.environ.pop("DAGSTER_HOME", None)  # that of another lake
    called = context.find_root().info_name
    try:
        main.main(["--data-lake", str(folder), "--force"], prog_name=called)
    except SystemExit as ended:
        if ended.code != SOME_FAILED:  # one scene is missing
            raise
    lake = DataLake(folder)
    click.echo(
        "\nOne scene was left out on purpose, to show what a failure looks like."
        f"\nLook at  {lake.timestamp_folder(_SHOWN) / QUICKLOOK}"
        f"\nand at   {lake.glance}"
        f"\nThe UI on this lake:  {called} ui --data-lake {folder}"
    )
    sys.exit(ALL_GOOD)


@main.command(
    help="Start Dagster's UI on the lake, with its sensors, until Ctrl-C. Options after -- are those of `dagster dev`."
)
@data_lake_option
@click.option("--port", default=3000, show_default=True, help="Of http://localhost.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- DAGSTER DEV OPTIONS]")
def ui(port: int, more: tuple[str, ...]) -> None:
    root = DataLakeIOManager.from_environment().lake.root
    os.environ["DATA_LAKE"] = str(root)
    for name in _PATHS:
        if (path := os.environ.get(name)) and Path(path).exists():
            os.environ[name] = str(Path(path).absolute())
    os.environ.pop("DAGSTER_MODULE_NAME", None)  # its children would inherit it beside the workspace, and hang
    # Dagster warns of functions that it is to rename; that says nothing to a user.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Function")
    with open_instance(root):  # made before any of Dagster's processes opens it
        pass
    # Elsewhere, Dagster would find another dagster.yaml or workspace.yaml.
    os.chdir(os.environ["DAGSTER_HOME"])
    with as_file(files("thess_agg_dagster") / "workspace.yaml") as workspace:
        command = [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "-p", str(port), *more]
        os.execv(sys.executable, command)
