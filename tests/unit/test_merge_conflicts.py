"""No file holds the marks of a merge conflict: Markdown with them is still valid, so no other check finds them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_file_holds_a_conflict() -> None:
    command = ["git", "grep", "--line-number", "--extended-regexp", "^(<{7}|>{7}) "]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 1  # git grep found nothing; more would be an error of its own
