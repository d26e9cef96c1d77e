"""A Dagster project with lakes in YAML, as ``dg`` lays it out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from thess_agg_dagster_tests.processes import clean_environment

#: The module of its definitions.
MODULE = "lakes_project.definitions"

_SETTINGS = """
[project]
name = "lakes-project"
version = "0.1"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "lakes_project"
code_location_name = "lakes"
"""
_DEFINITIONS = """
from pathlib import Path

import dagster as dg

defs = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
# As `create-dagster` writes it.
_LAZY = """
from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""


def write_project(folder: Path, *, lazy: bool = False, **lakes: Mapping[str, Any]) -> Path:
    """Write a project with these lakes, each by the attributes in its ``defs.yaml``; with ``lazy``, a function loads them."""
    package = folder / "lakes_project"
    (package / "defs").mkdir(parents=True)
    for path in (package, package / "defs"):
        (path / "__init__.py").touch()
    (folder / "pyproject.toml").write_text(_SETTINGS)
    (package / "definitions.py").write_text(_LAZY if lazy else _DEFINITIONS)
    for name, attributes in lakes.items():
        write_lake(folder, name, attributes)
    return folder


def write_lake(project: Path, folder: str, attributes: Mapping[str, Any]) -> Path:
    path = project / "lakes_project" / "defs" / folder / "defs.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"type": "thess_agg_dagster.ThessLake", "attributes": dict(attributes)}))
    return path


def environment_of(project: Path, home: Path) -> dict[str, str]:
    """The environment of processes that work on a project, with a Dagster instance."""
    home.mkdir(exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    python = Path(sys.executable).parent
    return clean_environment() | {
        "PYTHONPATH": str(project),
        "VIRTUAL_ENV": str(python.parent),
        "PATH": f"{python}:/usr/bin:/bin",
        "DAGSTER_HOME": str(home),
        "COLUMNS": "200",
    }
