"""What the proxy role writes is what the application takes: its templates, rendered by Ansible and checked by `inference-proxy`."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.module_python import module_python

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "roles" / "proxy"
INVENTORY = {
    "nginx": {"hosts": {"web1": {"stack_address": "10.0.0.1"}}},
    "proxy": {
        "hosts": {
            "api1": {"stack_address": "10.0.0.2", "ansible_connection": "local"},
            "api2": {"stack_address": "10.0.0.3"},
        }
    },
    "vllm": {
        "hosts": {
            "gpu1": {
                "stack_address": "10.0.0.4",
                "vllm_engines": [
                    {
                        "name": "a",
                        "port": 8001,
                        "served_model_name": "big",
                        "weight": 2,
                        "pool": "long",
                        "max_in_flight": 64,
                    },
                    {
                        "name": "b",
                        "port": 8002,
                        "beside_port": 8102,
                        "served_model_name": "small",
                        "probe": "completions",
                        "weight": 3,
                    },
                ],
            },
            "gpu2": {
                "stack_address": "fd00::4",
                "vllm_engines": [{"name": "a", "port": 8001, "served_model_name": "big"}],
            },
            "gpu3": {
                "stack_address": "10.0.0.5",
                "hub_model": "Qwen/Qwen3-8B",
                "vllm_engines": [{"model": "{{ hub_model }}", "adapters": [{"name": "sql", "model": "/srv/sql"}]}],
            },
        }
    },
}
EVERYTHING: dict[str, Any] = {
    "proxy_keys": [
        {"name": "open", "key": "k" * 32},
        {
            "name": "narrow",
            "sha256": "0" * 64,
            "owner": "research",
            "models": ["big"],
            "priority": "batch",
            "expires": "2027-01-31T00:00:00Z",
            "cidrs": ["203.0.113.0/24"],
            "limits": {"requests_per_minute": 60, "models": {"big": {"concurrent_requests": 4}}},
        },
    ],
    "proxy_priorities": {"default": {"share": 4}, "batch": {"share": 1, "engine_priority": 10}},
    "proxy_models": [
        {
            "name": "big",
            "aliases": ["gpt-4o-mini"],
            "size": "large",
            "fallback": "small",
            "defaults": {"temperature": 0.7},
        }
    ],
    "proxy_api_versions": ["v1", "openai/v1"],
    "proxy_custom_endpoints": [{"path": "/terms", "answer": {"body": {"terms": "be kind"}}}],
    "proxy_limits": {
        "default": {"tokens_per_day": 5000},
        "models": {"small": {"requests_per_minute": 9}},
        "tokens_without_cap": 100,
    },
    "proxy_store_host": "api2",
    "proxy_store_password": "p" * 32,
    "proxy_timeouts": {"connect_s": 4, "total_s": {"generation": 1800}},
    "proxy_routing": {"pools": {"long": {"prompt_tokens": 16000}}},
    "proxy_queue": {"max_in_flight": 256},
    "proxy_health": {"failures": 3},
    "proxy_retries": {"attempts": 3},
    "proxy_admin_key": "a" * 32,
    "proxy_log_content": True,
}
POOL = {"proxy_routing": EVERYTHING["proxy_routing"]}  # which the inventory's engine is in


class OnceLoader(yaml.SafeLoader):
    """YAML in which a key stands once: a parser takes the last of two without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        assert len(names) == len(set(names)), f"one of {names} stands twice"
        return super().construct_mapping(node, deep)


def rendered(directory: Path, settings: dict[str, Any]) -> tuple[Any, Any]:
    """config.yml and keys.yml of the host api1, after `inference-proxy` has had no complaint."""
    names = ("config.yml", "keys.yml")
    play = {
        "hosts": "api1",
        "gather_facts": False,
        "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
        "tasks": [
            {"stack_engines": {"group": "vllm"}, "register": "__proxy_engines"},
            *(
                {"ansible.builtin.template": {"src": str(ROLE / f"templates/{name}.j2"), "dest": str(directory / name)}}
                for name in names
            ),
        ],
    }
    for name, content in (
        ("inventory.yml", INVENTORY),
        ("play.yml", [play]),
        ("settings.json", {"proxy_workers": 2, "ansible_python_interpreter": module_python(directory)} | settings),
    ):
        (directory / name).write_text(json.dumps(content))
    scripts = Path(sys.executable).parent
    command = [scripts / "ansible-playbook", "-i", "inventory.yml", "play.yml", "-e", "@settings.json"]
    environment = os.environ | {"ANSIBLE_ACTION_PLUGINS": str(ROOT / "plugins" / "action")}
    run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    environment = os.environ | {"PYTHONPATH": str(ROOT / "proxy_app/src")}
    for name in names:
        check = [sys.executable, "-m", "inference_proxy", f"check-{Path(name).stem}", str(directory / name)]
        run = subprocess.run(check, env=environment, capture_output=True, text=True, timeout=60)
        assert (run.returncode, run.stderr) == (0, "")
    config, keys = (yaml.load((directory / name).read_text(), OnceLoader) for name in names)
    return config, keys


def test_with_nothing_said(tmp_path: Path) -> None:
    config, keys = rendered(tmp_path, POOL)
    assert [engine["id"] for engine in config["engines"]] == [
        "gpu1:a",
        "gpu1:b",
        "gpu1:b.beside",
        "gpu2:a",
        "gpu3:qwen3-8b",
    ]
    assert config["engines"][0] | {"weight": 2, "pool": "long", "max_in_flight": 64} == config["engines"][0]
    assert config["engines"][3]["url"] == "http://[fd00::4]:8001"
    assert config["engines"][4]["url"] == "http://10.0.0.5:8000", "of a host on which the role vllm has not run"
    assert config["engines"][4]["models"] == ["Qwen/Qwen3-8B", "sql"]
    # The engine that serves while a roll replaces another one is like it, and need not be there.
    own, second = config["engines"][1:3]
    assert second == own | {"id": "gpu1:b.beside", "url": "http://10.0.0.4:8102", "optional": True}
    assert config["trusted_proxies"] == ["10.0.0.1"]
    assert config["limits"] == {"store": None}
    assert keys == []


def test_with_everything_said(tmp_path: Path) -> None:
    config, keys = rendered(tmp_path, EVERYTHING)
    for section in (
        "timeouts",
        "routing",
        "queue",
        "health",
        "retries",
        "priorities",
        "models",
        "api_versions",
        "custom_endpoints",
    ):
        assert config[section] == EVERYTHING[f"proxy_{section}"]
    store = config["limits"].pop("store")
    assert config["limits"] == EVERYTHING["proxy_limits"]
    assert (store["url"], store["workers"]) == ("redis://10.0.0.3:6379", 4)
    assert config["admin"]["key_sha256"] == hashlib.sha256(b"a" * 32).hexdigest()
    assert config["log_content"] is True
    assert keys[0] == {"name": "open", "sha256": hashlib.sha256(b"k" * 32).hexdigest(), "models": []}
    assert keys[1] == EVERYTHING["proxy_keys"][1]


def test_a_key_that_stands_twice_is_seen() -> None:
    with pytest.raises(AssertionError, match="twice"):
        yaml.load("a: 1\na: 2\n", OnceLoader)
