"""The published collection has every file that another of its files names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from yamllint.config import YamlLintConfig

ROOT = Path(__file__).resolve().parents[2]
GALAXY = Path(sys.executable).parent / "ansible-galaxy"
# [text](target), without addresses and without headings of the same page.
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, built and unpacked."""
    directory = tmp_path_factory.mktemp("artifact")
    subprocess.run([GALAXY, "collection", "build", "--output-path", directory, ROOT], capture_output=True, check=True)
    (archive,) = directory.glob("*.tar.gz")
    unpacked = directory / "collection"
    unpacked.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", unpacked], check=True)
    return unpacked


def test_links_between_pages_lead_to_files_of_the_artifact(artifact: Path) -> None:
    broken = [
        f"{page.relative_to(artifact)}: {target}"
        for page in sorted(artifact.rglob("*.md"))
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == [], "leave the link out, or take the file out of build_ignore in galaxy.yml"


def test_its_yamllint_configuration_needs_no_other_file(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Galaxy's importer lints the artifact, in which there is no .gitignore."""
    monkeypatch.chdir(artifact)
    YamlLintConfig(file=".yamllint")


def test_what_belongs_to_a_checkout_is_not_in_it(artifact: Path) -> None:
    checkout = [
        "lab",
        "molecule",
        "tests",
        "tools",
        "inventory",
        "group_vars",
        "changelogs/fragments",
        "playbooks/roles",
    ]
    assert [name for name in checkout if (artifact / name).exists()] == []
    hidden = {path.name for path in artifact.iterdir() if path.name.startswith(".")}
    assert hidden == {".ansible-lint", ".yamllint"}
