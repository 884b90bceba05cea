"""Preflight accepts every example of variables that the pages show."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from preflight_inventory import ENGINE, OPTIONS, ROOT, SECRET, changed, problems

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "roles").glob("*/README.md"))]
APPLICATION = ROOT / "proxy_app" / "README.md"
# The examples' models.
ENGINES = [
    ENGINE | {"name": name, "served_model_name": name, "port": port, "gpus": [port - 8000]}
    for port, name in ((8000, "qwen3-8b"), (8001, "qwen3-4b"))
]
# Of two ways that one example shows, an operator chooses one.
OTHER_WAY = {"proxy_store_url"}
VARIABLES = {name for variables in OPTIONS.values() for name in variables}


def blocks(page: Path) -> Iterator[Any]:
    """The indented and fenced blocks of a page that are YAML."""
    text = page.read_text()
    written = [match[1] for match in re.finditer(r"```\w*\n(.*?)```", text, re.DOTALL)]
    written += [match[0] for match in re.finditer(r"(?:^ {4,}.*\n|^\n(?= {4}))+", text, re.MULTILINE)]
    for block in written:
        try:
            yield yaml.safe_load(block)
        except yaml.YAMLError:
            continue


def examples() -> Iterator[Any]:
    """The variables of each example, those of the application's own files under the role's names."""
    for page in PAGES:
        for block in blocks(page):
            if isinstance(block, dict) and VARIABLES & block.keys():
                yield pytest.param(block, id=f"{page.parent.name}: {', '.join(block)}")
    for block in blocks(APPLICATION):
        if isinstance(block, dict):
            variables = {f"proxy_{name}": value for name, value in block.items() if f"proxy_{name}" in VARIABLES}
            # The role has variables of its own for the store.
            variables.get("proxy_limits", {}).pop("store", None)
        elif isinstance(block, list) and all(isinstance(item, dict) and "sha256" in item for item in block):
            variables = {"proxy_keys": [item | {"sha256": "0" * 64} for item in block]}
        else:
            continue
        if variables:
            yield pytest.param(variables, id=f"application: {', '.join(variables)}")


EXAMPLES = list(examples())


def test_the_pages_have_examples() -> None:
    shown = {name for example in EXAMPLES for name in example.values[0]}
    assert shown >= {"vllm_engines", "proxy_timeouts", "proxy_limits", "proxy_models", "proxy_keys"}


@pytest.mark.parametrize("variables", EXAMPLES)
def test_an_example_is_right(variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # The examples' domains lead to the web tier of the good inventory.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("127.0.0.1", 443))])
    inventory = {"vllm_engines": ENGINES, "proxy_workers": 1, "proxy_store_password": SECRET}
    secrets = dict.fromkeys(variables.keys() & {"proxy_store_password", "vllm_cluster_token"}, SECRET)
    chosen = {name: value for name, value in variables.items() if name not in OTHER_WAY}
    assert problems(with_cluster_hosts(changed(**inventory | chosen | secrets))) == []


def with_cluster_hosts(inventory: dict[str, Any]) -> dict[str, Any]:
    """The inventory with the hosts that its clusters name, which have the example's variables; the others keep their engines."""
    engine1 = inventory["hostvars"]["engine1"]
    hosts = [host for cluster in engine1.get("vllm_clusters", []) for host in cluster["hosts"]]
    for number, host in enumerate(hosts):
        inventory["groups"]["vllm"].append(host)
        inventory["hostvars"][host] = engine1 | {"stack_address": f"10.0.1.{number}"}
    if hosts:
        inventory["hostvars"]["engine1"] = engine1 | {"vllm_engines": ENGINES}
    return inventory
