"""Problems that the roles' own preflight finds: ports that are in use (from `ss -Hltnp`), and keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.module_python import module_python

ROOT = Path(__file__).resolve().parents[3]
SECRET = "9f86d081884c7d659a2feaa0c55ad015"
LINE = 'LISTEN 0 2048 {} 0.0.0.0:* users:(("{}",pid=7,fd=3))'
# For each role, whether a listener at this address conflicts with proxy workers at 10.0.0.3:9000 and their admin API at 127.0.0.1:9500,
# or with an engine at 10.0.0.3:8000.
CASES = {
    "proxy": {
        "10.0.0.3:9000": True,
        "0.0.0.0:9001": True,
        "*:9000": True,
        "[::]:9000": True,
        "127.0.0.1:9000": False,
        "[::1]:9000": False,
        "127.0.0.1:9501": True,
        "10.0.0.3:9501": False,
        "10.0.0.3:9002": False,
    },
    "vllm": {
        "10.0.0.3:8000": True,
        "0.0.0.0:8000": True,
        "*:8000": True,
        "127.0.0.1:8000": False,
        "10.0.0.3:8001": False,
        "10.0.0.3:8100": True,
    },
}
VARIABLES: dict[str, Any] = {
    "stack_address": "10.0.0.3",
    "proxy_workers": 0,
    "proxy_limits": {"default": {"requests_per_minute": 1}},
    "proxy_keys": [
        {"name": SECRET, "key": "alice", "cidrs": [SECRET]},
        {"name": SECRET, "key": "alice", "expires": SECRET},
        {"name": "bob", "sha256": "x"},
    ],
    "proxy_source_dir": str(ROOT / "proxy_app"),
    "vllm_engines": [
        {"name": "one", "model": "s3://models/one", "served_model_name": "m", "port": 8000, "beside_port": 8100},
        {"name": "two", "model": "s3://models/two", "served_model_name": "n", "port": 8005},
    ],
    "vllm_requirements": str(ROOT / "roles/vllm/files/requirements-cuda.txt"),
    "__proxy_ports": [9000, 9001],
    "__vllm_configs": {},
    "__vllm_missing_adapters": [],
    "__vllm_closed_paths": {},
    "__vllm_local_models": {},
    "__vllm_gpu_devices": {"matched": 0},
}
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "distribution_version": "12",
    "os_family": "Debian",
    "service_mgr": "systemd",
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The problems that each role's preflight finds for all its cases; the listener of each case has another program name."""
    directory = tmp_path_factory.mktemp("ports")
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.set_fact": FACTS | {"cacheable": True}},
        {"stack_engines": None, "register": "__vllm_completed"},
    ]
    for role, cases in CASES.items():
        template = ROOT / "roles" / role / "templates" / "problems.yml.j2"
        lines = [LINE.format(address, f"at {address}") for address in cases]
        tasks.append(
            {
                "ansible.builtin.template": {"src": str(template), "dest": str(directory / role)},
                "vars": {f"__{role}_listeners": {"stdout_lines": lines}},
            }
        )
    check = {"role": "proxy", "facts": {"proxy_workers": 2}}
    write = {"content": "{{ checked.problems | join('\n') }}"}
    for name, collecting in (("keys", False), ("facts", True)):
        known = {"__stack_preflight_collect": collecting}
        tasks.append({"stack_preflight": check, "register": "checked", "vars": known})
        tasks.append({"ansible.builtin.copy": write | {"dest": str(directory / name)}})
    files = [str(ROOT / "roles" / role / place / "main.yml") for role in CASES for place in ("defaults", "vars")]
    play = {"hosts": "api1", "gather_facts": False, "vars_files": files, "tasks": tasks}
    host = {"ansible_connection": "local", "ansible_python_interpreter": module_python(directory)}
    inventory = {"proxy": {"hosts": {"api1": host}}}
    for name, content in (("inventory.yml", inventory), ("play.yml", [play]), ("settings.json", VARIABLES)):
        (directory / name).write_text(json.dumps(content))
    scripts = Path(sys.executable).parent
    command = [scripts / "ansible-playbook", "-i", "inventory.yml", "play.yml", "-e", "@settings.json"]
    environment = os.environ | {"ANSIBLE_ACTION_PLUGINS": str(ROOT / "plugins" / "action")}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {role: "\n".join(yaml.safe_load((directory / role).read_text()) or []) for role in CASES}
    return found | {name: (directory / name).read_text() for name in ("keys", "facts")}


@pytest.mark.parametrize(("role", "address"), [(role, address) for role, cases in CASES.items() for address in cases])
def test_a_port_is_held_where_it_is_wanted(problems: dict[str, str], role: str, address: str) -> None:
    said = f"port {address.rpartition(':')[2]} is held by at {address}:"
    assert (said in problems[role]) == CASES[role][address], problems[role]


def test_a_key_in_the_wrong_place_is_not_shown(problems: dict[str, str]) -> None:
    for said in (
        "key proxy_keys[0] ('9f86…') and key proxy_keys[1] ('9f86…') are the same key",
        "key proxy_keys[1] ('9f86…') stands twice in proxy_keys",
        "key proxy_keys[0] ('9f86…') has 5 characters and can be guessed",
        "key proxy_keys[0] ('9f86…'): '9f86…' in cidrs is not a network",
        "key proxy_keys[1] ('9f86…'): expires is '9f86…', not a moment in UTC",
        "proxy_keys[2] (bob).sha256 is a value of another kind, but must be 64 hexadecimal digits",
    ):
        assert said in problems["keys"], problems["keys"]
    assert SECRET[:5] not in problems["keys"] + problems["proxy"]


def test_what_the_inventory_tells_is_left_to_the_sites_preflight(problems: dict[str, str]) -> None:
    """Only the host knows how many workers one per core are."""
    (line,) = problems["facts"].splitlines()
    assert "multiplied by the number of workers" in line
