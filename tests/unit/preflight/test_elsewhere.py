"""Variables in a directory that Ansible does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preflight_inventory import OPTIONS, inventory_module
from stack_preflight import load

elsewhere = load("subjects.elsewhere")


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of playbooks with group_vars, and another one of the inventory. The repository's own group_vars are none."""
    monkeypatch.setattr(elsewhere, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("playbooks/group_vars/proxy", "inventory"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "inventory" / "hosts.yml").touch()
    (tmp_path / "playbooks" / "group_vars" / "vllm.yml").write_text("vllm_engines:\n  - name: one\n")
    (tmp_path / "playbooks" / "group_vars" / "proxy" / "main.yml").write_text(
        "a: b: c\nproxy_keys: []\nproxy_port: 1\n"
    )
    return tmp_path


def said(inventory: dict[str, Any], directory: Path, sources: list[str]) -> list[str]:
    playbooks = [str(directory / "playbooks" / "site.yml"), "ec2_inference.stack.site"]
    seen = inventory_module.Inventory(inventory["groups"], inventory["hostvars"], OPTIONS, sources, playbooks=playbooks)
    return [line.replace(f"{directory}/", "") for line in elsewhere.check_elsewhere(seen)]


def test_variables_beside_the_playbooks_that_no_host_has_are_not_read(
    inventory: dict[str, Any], directories: Path
) -> None:
    source = [str(directories / "inventory" / "hosts.yml")]
    # All that is needed is there already: by files of the inventory's own, or by AWX's import.
    assert said(inventory, directories, source) == []
    del inventory["hostvars"]["engine1"]["vllm_engines"], inventory["hostvars"]["api1"]["proxy_keys"]
    (line,) = said(inventory, directories, source)
    assert line == (
        "playbooks/group_vars sets vllm_engines, proxy_keys, but is not read with this inventory: link or move it to inventory/group_vars"
    )
    (line,) = said(inventory, directories, ["engine1,api1,"])
    assert line.endswith("name an inventory file beside it with -i")


def test_variables_beside_the_inventory_are_read(inventory: dict[str, Any], directories: Path) -> None:
    del inventory["hostvars"]["engine1"]["vllm_engines"]
    (directories / "inventory" / "group_vars").symlink_to("../playbooks/group_vars")
    assert said(inventory, directories, [str(directories / "inventory")]) == []


@pytest.mark.parametrize(("name", "role"), [("group_vars/vllm.yml", "vllm"), ("group_vars/vault.example.yml", "proxy")])
def test_a_message_names_an_example_that_is_there(
    name: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("directories")
    assert (module.ROOT / name).exists()
    assert module.see_example(name, role) == f"see {name} for an example"
    monkeypatch.setattr(module, "ROOT", tmp_path)
    readme = module.ROLES_DIRECTORY / role / "README.md"
    assert module.see_example(name, role) == f"see {readme} for an example"
    assert {"vllm": "vllm_engines:", "proxy": "proxy_keys:"}[role] in readme.read_text()
