"""Each file directly in a role's tasks/ is an entry point with an argument spec, and main.yml is the same list of phases in each role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = ["vllm", "proxy", "nginx_certbot", "nvidia_drivers"]
PHASES = ["preflight", "install", "configure", "service"]


def load(role: str, name: str) -> Any:
    return yaml.safe_load((ROOT / "roles" / role / name).read_text())


@pytest.mark.parametrize("role", [*ROLES, "release"])
def test_every_entry_point_has_an_argument_spec(role: str) -> None:
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]
    assert {path.stem for path in (ROOT / "roles" / role / "tasks").glob("*.yml")} == set(specs)
    assert [name for name, spec in specs.items() if not spec.get("short_description")] == []


@pytest.mark.parametrize("role", ROLES)
def test_main_imports_the_phases_in_their_order(role: str) -> None:
    tasks = load(role, "tasks/main.yml")
    assert [task["ansible.builtin.import_tasks"] for task in tasks] == [f"{phase}.yml" for phase in PHASES]
    for phase, task in zip(PHASES, tasks, strict=True):
        tags = task["tags"] if isinstance(task["tags"], list) else [task["tags"]]
        assert tags[0] == f"{role}_{phase}"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["preflight", "rollback"])
def test_bad_values_stop_neither_preflight_nor_a_rollback(role: str, name: str) -> None:
    """Preflight reports a bad value with its fix, and may be why a roll goes back. Validation would fail before either."""
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]
    assert "options" not in specs.get(name, {})
