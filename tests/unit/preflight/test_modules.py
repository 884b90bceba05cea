"""Which module of preflight may import which: subjects stand side by side on the shared ones, below the table of checks."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from preflight_inventory import ROOT, checks

PACKAGE = ROOT / "plugins" / "plugin_utils" / "preflight"


def modules() -> dict[str, Path]:
    """All modules by their names within the package, such as subjects.keys."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imported(name: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parents = name.split(".")[: -node.level]
            base = [*parents, *(node.module or "").split(".")] if node.module else parents
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in modules() else ".".join(base))
    return found


@pytest.mark.parametrize("name", modules())
def test_a_subject_is_imported_by_the_table_of_checks_alone(name: str) -> None:
    subjects = {other for other in imported(name) if other.startswith("subjects")}
    assert name == "checks" or not subjects


def test_imports_run_one_way() -> None:
    graph = {name: imported(name) for name in modules()}
    assert set().union(*graph.values()) <= graph.keys()
    TopologicalSorter(graph).prepare()


def test_each_check_is_in_the_table_once() -> None:
    made = [(check.__module__.rpartition("preflight.")[2], check.__name__) for check in checks.FORM + checks.CHECKS]
    written = [
        (name, node.name)
        for name, path in modules().items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
    ]
    assert sorted(made) == sorted(written)
