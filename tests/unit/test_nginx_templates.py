"""What the web tier's templates make of its variables; what nginx makes of them is molecule's to show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles/nginx_certbot"
INVENTORY = {"nginx": {"hosts": {"web1": None}}, "proxy": {"hosts": {"api1": None}}}
BASE = {
    "stack_domain": "llm.example.com",
    "ansible_connection": "local",
    "ansible_python_interpreter": sys.executable,
    "ansible_facts": {"distribution": "Debian", "distribution_version": "13"},
    "here": {"nginx": "1.26.3", "ipv6": True},
    "proxy_api_versions": ["v1", "openai/v1"],
    "proxy_custom_endpoints": [
        {"path": "/v1/completions", "answer": {"body": "gone"}},
        {"path": "/v1/label", "upstream_path": "/classify"},
    ],
}
ORIGINS = [
    "https://app.example.com",
    "http://localhost:3000",
    "http://127.0.0.1:8080",
    "https://[fd00::1]:8443",
    "app://obsidian.md",
    "chrome-extension://abcdefghijklmnop",
]
NO_ORIGINS = [
    "https://app.example.com/",
    "https://app.example.com/path",
    "app.example.com",
    "https://*.example.com",
    "https://App.example.com",
    "https://app.example.com:443",
    "http://app.example.com:80",
    "https://user@app.example.com",
    "https://app.example.com?x",
    'https://a" 1; } evil {',
    "https://a.example\n",
    "null",
    "",
]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "versions": {"__nginx_certbot_versions": ["v1", "v2"]},
    "listed": {"nginx_certbot_cors_origins": ORIGINS},
    "anybody": {"nginx_certbot_cors_origins": ["*"]},
    "wrong": {"nginx_certbot_cors_origins": [ORIGINS[0], *NO_ORIGINS]},
    "all and one": {"nginx_certbot_cors_origins": ["*", ORIGINS[0]]},
    "twice": {"nginx_certbot_cors_origins": [ORIGINS[0], ORIGINS[0]]},
    "text": {"nginx_certbot_cors_origins": ORIGINS[0]},
}
Rendered = dict[str, tuple[str, list[str]]]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Of each case nginx.conf, and the problems that preflight finds."""
    directory = tmp_path_factory.mktemp("rendered")
    play = {
        "hosts": "web1",
        "gather_facts": False,
        "vars_files": [str(ROLE / name) for name in ("defaults/main.yml", "vars/main.yml", "vars/Debian.yml")],
        "tasks": [
            {
                "ansible.builtin.template": {
                    "src": str(ROLE / f"templates/{name}.j2"),
                    "dest": str(directory / f"{case} {name}"),
                },
                "vars": variables,
            }
            for case, variables in CASES.items()
            for name in ("problems.yml", "nginx.conf")
        ],
    }
    for name, content in (("inventory.yml", INVENTORY), ("play.yml", [play]), ("variables.json", BASE)):
        (directory / name).write_text(json.dumps(content))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "inventory.yml", "play.yml"]
    command += ["-e", "@variables.json"]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return {
        case: (
            (directory / f"{case} nginx.conf").read_text(),
            yaml.safe_load((directory / f"{case} problems.yml").read_text()) or [],
        )
        for case in CASES
    }


def entries(conf: str) -> str:
    (found,) = re.findall(r"map \$uri \$did_you_mean \{\n(.*?)\n    \}", conf, re.DOTALL)
    return str(found)


def test_without_origins_nothing_is_said_of_other_sites(rendered: Rendered) -> None:
    conf, problems = rendered["plain"]
    assert problems == []
    assert "cors" not in conf
    assert "add_header Access-Control" not in conf
    assert "Vary" not in conf
    assert "proxy_hide_header Access-Control-Allow-Origin;" in conf, "nor may anybody else"


@pytest.mark.parametrize("case", ["plain", "versions"])
def test_each_path_has_one_location_and_one_entry(rendered: Rendered, case: str) -> None:
    conf, _ = rendered[case]
    locations = re.findall(r"^ +location (\S+ \S+) \{", conf, re.MULTILINE)
    served = [location for location in locations if location.startswith("= ")]
    assert len(served) == len(set(served))
    assert {"= /v1/chat/completions", "= /v2/rerank", "= /classify", "= /v1/label"} <= set(served)
    exact = re.findall(r'^ +(/\S+) "";$', entries(conf), re.MULTILINE)
    assert sorted(f"= {path}" for path in exact) == sorted(served)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/x/Messages/Count_Tokens", "/v1/messages/count_tokens"),
        ("/v1/tokenize", "/tokenize"),
        ("/label", None),
        ("/x/v1/label/", "/v1/label"),
        ("/v1/chat-completions", None),
        ("/v1/models", None),
    ],
)
def test_the_nearest_path_is_found(rendered: Rendered, path: str, meant: str | None) -> None:
    of_map = entries(rendered["plain"][0])
    known = re.findall(r'^ +(/\S+) "";$', of_map, re.MULTILINE)
    patterns = re.findall(r'^ +"~\*(.+)" " Did you mean (\S+)\?";$', of_map, re.MULTILINE)
    found = None
    if path not in known:
        found = next((right for pattern, right in patterns if re.search(pattern, path, re.IGNORECASE)), None)
    assert found == meant


def test_listed_origins_are_told_back_and_no_credentials(rendered: Rendered) -> None:
    conf, problems = rendered["listed"]
    assert problems == []
    for origin in ORIGINS:
        assert f'"{origin}" $http_origin;' in conf
    assert "add_header Vary Origin always;" in conf
    assert "add_header Access-Control-Allow-Credentials" not in conf
    conf, problems = rendered["anybody"]
    assert problems == []
    assert '"~." "*";' in conf


def test_what_is_no_origin_is_refused_before_anything_changes(rendered: Rendered) -> None:
    _, problems = rendered["wrong"]
    assert len(problems) == len(NO_ORIGINS)
    for origin, problem in zip(NO_ORIGINS, problems, strict=True):
        assert f"nginx_certbot_cors_origins has {json.dumps(origin)}, which" in problem
        assert "such as https://app.example.com:" in problem


@pytest.mark.parametrize(
    ("case", "words"), [("all and one", "allows every site"), ("twice", "twice"), ("text", "not a list")]
)
def test_a_list_that_says_two_things_is_refused(rendered: Rendered, case: str, words: str) -> None:
    _, (problem,) = rendered[case]
    assert words in problem
