"""Every file that CONTRIBUTING.md and the pages on decisions and releasing name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/releasing.md",
    *(f"docs/decisions/{p.name}" for p in (ROOT / "docs/decisions").iterdir()),
]
# Whatever stands in backticks and begins with a folder of the repository.
PATH = re.compile(
    r"`((?:lab|molecule|playbooks|plugins|proxy_app|requirements|roles|tests|tools|changelogs|docs)/[^`\s]*)`"
)


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    paths = [re.sub(r"<[a-z]+>", "*", path).rstrip("/") for path in PATH.findall((ROOT / page).read_text())]
    assert [path for path in paths if not list(ROOT.glob(path))] == []
