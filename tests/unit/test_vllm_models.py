"""What the vLLM role does with what fetch_model.py says of the models: where they are, and whether the disk has room for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.yaml import yaml_load
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[2] / "roles" / "vllm"
GB = 10**9


def tasks() -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in yaml_load((ROLE / "tasks" / "configure" / "models.yml").read_text())}


def trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: trusted(inner) for name, inner in value.items()}
    return trust_as_template(value) if isinstance(value, str) else value


def template(value: Any, variables: dict[str, Any]) -> Any:
    return Templar(loader=DataLoader(), variables=trusted(variables)).template(trusted(value))


def compared(free_gb: int, **engines: tuple[str, int]) -> dict[str, Any]:
    """The variables after the comparison: engines by their name, each with its model's directory and the GB that are missing."""
    known = yaml_load((ROLE / "vars" / "main.yml").read_text())
    entries = [{"name": name, "model": "s3://b/m"} for name in engines] + [{"name": "local", "model": "/srv/m"}]
    results = [
        {
            "name": name,
            "stdout": json.dumps(
                {
                    "path": f"/models/{directory}",
                    "changed": gb > 0,
                    "missing_bytes": gb * GB,
                    "free_bytes": free_gb * GB,
                }
            ),
        }
        for name, (directory, gb) in engines.items()
    ]
    variables = {
        "inventory_hostname": "engine1",
        "vllm_models_dir": "/models",
        "__vllm_engines": entries,
        "__vllm_names": [entry["name"] for entry in entries],
        "__vllm_models_reserve_bytes": known["__vllm_models_reserve_bytes"],
        "__vllm_compared": {"results": results},
    }
    note = tasks()["Note where each engine's model is, or will be"]
    return variables | template(note["ansible.builtin.set_fact"], variables | note["vars"])


def room(variables: dict[str, Any]) -> tuple[bool, str]:
    """Whether the play goes on, and what it says otherwise."""
    task = tasks()["Stop if the disk has no room for the missing models"]
    known = variables | task["vars"]
    if not template("{{ " + task["when"] + " }}", known):
        return True, ""
    stop = task["ansible.builtin.assert"]
    return template("{{ " + stop["that"] + " }}", known), template(stop["fail_msg"], known)


def test_each_engine_gets_the_directory_of_its_model() -> None:
    variables = compared(100, a=("m@1", 0), b=("m@2", 5))
    assert variables["__vllm_model_paths"] == {"a": "/models/m@1", "b": "/models/m@2", "local": "/srv/m"}
    assert variables["__vllm_missing_names"] == ["b"]


@pytest.mark.parametrize(
    ("free_gb", "engines", "fits"),
    [
        (0, {"a": ("m@1", 0)}, True),
        (16, {"a": ("m@1", 10), "b": ("m@2", 5)}, True),
        (15, {"a": ("m@1", 10), "b": ("m@2", 5)}, False),
        (11, {"a": ("m@1", 10), "b": ("m@1", 10)}, True),
    ],
    ids=["nothing is missing", "room for both", "the reserve is short", "a model that two engines share counts once"],
)
def test_all_missing_models_have_to_fit_together(free_gb: int, engines: dict[str, Any], fits: bool) -> None:
    assert room(compared(free_gb, **engines))[0] == fits


def test_a_disk_without_room_is_told_with_the_figures() -> None:
    _, said = room(compared(15, a=("m@1", 10), b=("m@2", 5)))
    assert (
        "engine1: /models has 15.0 GB free, and the models that are missing need\n16.0 GB, 1 GB of it to stay free. Nothing was"
        in said
    )
    assert "m@1: 10.0 GB" in said
