"""A package imports only those below it, so that each can be read without what uses it."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/inference_proxy"

LAYERS = (
    ("config", "faults", "systemd", "__init__"),
    ("http",),
    ("api",),
    ("keys",),
    ("request",),
    ("settings",),
    ("accounting", "engines"),
    ("scheduling", "limits"),
    ("state",),
    ("admin", "pipeline"),
    ("local_endpoints", "reload"),
    ("app",),
    ("worker",),
    ("cli",),
    ("__main__",),
)
"""Lowest first. Names on one level do not import each other."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The packages and top-level modules of ours that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = f"{node.module}."
            assert node.level == 0, f"{path.name}: import it by its full name"
            if whole.startswith("inference_proxy."):
                inside = node.module.split(".")[1:]
                found |= {inside[0]} if inside else {alias.name for alias in node.names}
    return {name if name in LEVEL else "__init__" for name in found} - {room(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_package_imports_only_packages_below_it(path: Path) -> None:
    assert room(path) in LEVEL, "give it its place in LAYERS"
    above = {name for name in imported(path) if LEVEL[name] >= LEVEL[room(path)]}
    assert not above, f"{room(path)} is below {', '.join(sorted(above))} or beside them"


def test_no_modules_of_a_package_import_each_other_in_a_circle() -> None:
    def within(path: Path) -> set[Path]:
        package = f"inference_proxy.{room(path)}."
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {node.module for node in nodes if node.module and node.module.startswith(package)}
        return {SOURCE.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in names}

    left = {path: within(path) & set(FILES) for path in FILES}
    while leaves := [path for path, needs in left.items() if not needs & left.keys()]:
        for path in leaves:
            del left[path]
    assert not left, f"in a circle: {', '.join(sorted(path.stem for path in left))}"
