"""A registered result and a fact win over a task's `vars` of the same name, in every later task of the host. Only those of an include win."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def tasks_of(part: Any) -> Iterator[dict[str, Any]]:
    """All tasks, plays and blocks in a file."""
    for entry in part if isinstance(part, list) else []:
        yield entry
        for key in ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks_of(entry.get(key))


def names(files: list[Path]) -> tuple[set[str], set[str]]:
    """Names that tasks register or set as facts, and names in their `vars`."""
    kept: set[str] = set()
    passing: set[str] = set()
    for path in files:
        for task in tasks_of(yaml.safe_load(path.read_text())):
            kept |= {str(task["register"])} if "register" in task else set()
            kept |= set(task.get("ansible.builtin.set_fact") or {}) - {"cacheable"}
            if not any("include_" in str(key) for key in task):
                passing |= set(task.get("vars") or {})
    return kept, passing


@pytest.mark.parametrize("role", sorted(path.name for path in (ROOT / "roles").iterdir()))
def test_no_result_hides_a_variable_of_a_task(role: str) -> None:
    kept, passing = names(sorted((ROOT / "roles" / role / "tasks").rglob("*.yml")))
    assert kept & passing == set()
