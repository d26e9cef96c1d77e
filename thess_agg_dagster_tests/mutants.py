"""Mutation scores: small faults are put into a module, one at a time, and its tests are to fail (``make mutants``).

The faults are cosmic-ray's. Its own runner starts a process per fault, seconds each for importing rasterio and Dagster;
here all that is not ours is imported once, and each fault is tried in a fork, whose import of the module gets the
mutated text. No file is changed. ``python -m thess_agg_dagster_tests.mutants [module ...]``, with names as
``mosaic/rules``; ``SAMPLE=40`` in the environment tries that many faults of each.
"""

from __future__ import annotations

import ast
import difflib
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

_PACKAGE, _TESTS = "thess_agg_dagster", Path(__file__).parent
_AT_ONCE = len(os.sched_getaffinity(0))

#: The tests that are to notice faults in a module: few and fast, without conftest's fixtures.
MODULES = {
    "mosaic/rules": ["mosaic/test_rules.py"],
    "mosaic/radiometry": ["mosaic/test_radiometry.py"],
    "mosaic/plan": ["mosaic/test_plan.py"],
    "lake/publish": ["lake/test_publish.py"],
    "lake/published": ["lake/test_published.py"],
    "audit/outcome": ["audit/test_outcome.py", "audit/test_statuses.py"],
    "audit/attempts": ["audit/test_attempts.py", "audit/test_event_log.py"],
    "audit/rows": ["audit/test_tables.py"],
    "audit/tables": ["audit/test_tables.py"],
    "audit/event_log": ["audit/test_event_log.py"],
    "timestamp/freshness": ["timestamp/test_freshness.py"],
    "timestamp/records": ["timestamp/test_records.py"],
    "timestamp/plan": ["timestamp/test_plan.py"],
    "period/freshness": ["period/test_freshness.py"],
}


class _WithoutAnnotations(ast.NodeTransformer):
    """What of a module is ever evaluated: ``from __future__ import annotations`` leaves types unread."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node


def mutants(source: str) -> Iterator[str]:
    """Every text that a module becomes by one fault, once; in an order that is random, and the same each time."""

    def meaning(text: str) -> str:
        return ast.dump(_WithoutAnnotations().visit(ast.parse(text)))

    # Other operators need to be told which variables.
    operators = [kind() for name in operator_names() if not (kind := get_operator(name)).arguments()]
    nodes = list(ast_nodes(get_ast(source)))
    places = [
        (operator, place)
        for operator in operators
        for place in range(sum(len(list(operator.mutation_positions(node))) for node in nodes))
    ]
    random.Random(0).shuffle(places)
    seen = {meaning(source)}
    for operator, place in places:
        # No program at all; or an exception with a dotted name, which cosmic-ray cannot replace.
        with suppress(SyntaxError, AttributeError):
            text = mutate_code(source, operator, place)
            if text and (meant := meaning(text)) not in seen:
                seen.add(meant)
                yield text


@dataclass
class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module as ``text`` has it."""

    name: str
    path: Path
    text: str

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.text, self.path, "exec"), module.__dict__)


def _start(module: str, text: str, told: Path) -> int:
    """Run a module's tests on a text of it, in a fork that ends with pytest's status; what it imported goes to ``told``."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.setpgid(0, 0)
        sink = os.open(told.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(dir=told.parent)
        os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        path = _TESTS.parent / _PACKAGE / f"{module}.py"
        sys.meta_path.insert(0, _Mutated(f"{_PACKAGE}.{module.replace('/', '.')}", path, text))
        import hypothesis
        import pytest

        # A machine under load is no fault that was noticed.
        hypothesis.settings.register_profile("mutants", deadline=None, database=None, derandomize=True)
        hypothesis.settings.load_profile("mutants")
        options = ["-x", "-q", "-p", "no:cacheprovider", "--noconftest", "-o", "addopts=", "--tb=no"]
        status = pytest.main([*options, *(str(_TESTS / test) for test in MODULES[module])])
        told.write_text("\n".join(name for name in sys.modules if not name.startswith((_PACKAGE, "__"))))
    finally:
        os._exit(int(status))


def _survivors(module: str, folder: Path, most: int | None) -> tuple[int, list[str]]:
    """How many faults were tried in a module, and those that its tests did not notice, as diffs."""
    source = (_TESTS.parent / _PACKAGE / f"{module}.py").read_text()
    told = folder / "imported"
    begun = time.monotonic()
    if os.waitpid(_start(module, source, told), 0)[1]:
        sys.exit(f"the tests of {module} fail as it is:\n{told.with_suffix('.log').read_text()}")
    for name in told.read_text().split():
        with suppress(Exception):  # some are made up by whoever imported them
            importlib.import_module(name)
    limit = 10 + 10 * (time.monotonic() - begun)
    waiting, running, survived, tried = (
        list(islice(mutants(source), most)),
        dict[int, tuple[str, float]](),
        list[str](),
        0,
    )
    while waiting or running:
        while waiting and len(running) < _AT_ONCE:
            text = waiting.pop()
            running[_start(module, text, folder / str(len(waiting)))] = text, time.monotonic()
        for child, (text, since) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() - since < limit:
                continue
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if not ended:  # it hangs, which is noticed, too
                os.waitpid(child, 0)
            del running[child]
            tried += 1
            code = os.waitstatus_to_exitcode(status) if ended else 1
            if code == 0:
                lines = difflib.unified_diff(source.splitlines(), text.splitlines(), module, "mutant", n=0, lineterm="")
                survived.append("\n".join(list(lines)[2:]))
            elif code not in (1, 2):  # a test failed, or could not be imported; anything else is no answer
                raise RuntimeError(f"pytest ended with {code} on a mutant of {module}; run it again")
        time.sleep(0.01)
    return tried, survived


def main() -> None:
    most = int(os.environ["SAMPLE"]) if os.environ.get("SAMPLE") else None
    for module in sys.argv[1:] or MODULES:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            tried, survived = _survivors(module, Path(folder), most)
        print(*survived, sep="\n")
        noticed = tried - len(survived)
        print(
            f"{module}: {noticed} of {tried} noticed, {noticed / tried:.0%}, {time.monotonic() - begun:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
