"""The checks load wherever the playbooks run: in a checkout, in AWX (ansible-runner), and as an installed collection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from preflight_inventory import ROOT

VERSION = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
BIN = Path(sys.executable).parent
HOSTS = {
    "vllm": {"engine1": {"stack_address": "127.0.0.2", "vllm_engines": []}},
    "proxy": {"api1": {"stack_address": "127.0.0.3", "proxy_keys": [{"name": "a", "key": "short"}]}},
    "nginx": {"web1": {"stack_address": "127.0.0.1", "stack_domain": "localhost"}},
}
# Of the role's own preflight, only what needs no host.
ROLE = {"stack_preflight": {"role": "proxy"}, "register": "checked", "failed_when": "checked.problems | length > 0"}


def run(home: Path, config: Path, *command: str | Path) -> str:
    """The output of a command that finds problems."""
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_NOCOLOR": "1",
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=config.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0, done.stdout
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    children = {group: {"hosts": hosts} for group, hosts in HOSTS.items()}
    path = tmp_path / "inventory" / "hosts.yml"
    path.parent.mkdir()
    path.write_text(json.dumps({"all": {"vars": {"ansible_connection": "local"}, "children": children}}))
    return path


def test_as_an_installed_collection(tmp_path: Path, inventory: Path) -> None:
    collections, config = tmp_path / "collections", tmp_path / "ansible.cfg"
    config.write_text(f"[defaults]\ncollections_path = {collections}\n")
    galaxy = [BIN / "ansible-galaxy", "collection"]
    environment = os.environ | {"HOME": str(tmp_path), "ANSIBLE_CONFIG": str(config)}
    for command in (
        ["build", "--output-path", tmp_path, ROOT],
        ["install", "--no-deps", "--collections-path", collections, tmp_path / f"ec2_inference-stack-{VERSION}.tar.gz"],
    ):
        subprocess.run([*galaxy, *command], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    output = run(tmp_path, config, BIN / "ansible-playbook", "-i", inventory, "ec2_inference.stack.check_inventory")
    assert "key 'a' has 5 characters and can be guessed" in output
    play = [{"hosts": "proxy", "gather_facts": False, "collections": ["ec2_inference.stack"], "tasks": [ROLE]}]
    (tmp_path / tmp_path / "play.yml").write_text(json.dumps(play))
    output = run(tmp_path, config, BIN / "ansible-playbook", "-i", inventory, tmp_path / "play.yml")
    assert "key 'a' has 5 characters and can be guessed" in output


def test_in_ansible_runners_layout(tmp_path: Path, inventory: Path) -> None:
    (tmp_path / "project").symlink_to(ROOT)
    command = ["ansible-runner", "run", tmp_path, "-p", "playbooks/check_inventory.yml"]
    assert "key 'a' has 5 characters and can be guessed" in run(tmp_path, ROOT / "ansible.cfg", *command)


def test_in_a_checkout(tmp_path: Path, inventory: Path) -> None:
    command = [BIN / "ansible-playbook", "-i", inventory, ROOT / "playbooks" / "check_inventory.yml"]
    assert "key 'a' has 5 characters and can be guessed" in run(tmp_path, ROOT / "ansible.cfg", *command)
