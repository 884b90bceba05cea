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


def rendered(directory: Path, **variables: Any) -> tuple[str, list[str]]:
    """nginx.conf, and the problems that preflight finds."""
    files = ["defaults/main.yml", "vars/main.yml", "vars/Debian.yml"]
    play = {
        "hosts": "web1",
        "gather_facts": False,
        "vars_files": [str(ROLE / name) for name in files],
        "tasks": [
            {"ansible.builtin.template": {"src": str(ROLE / f"templates/{name}.j2"), "dest": str(directory / name)}}
            for name in ("problems.yml", "nginx.conf")
        ],
    }
    for name, content in (("inventory.yml", INVENTORY), ("play.yml", [play]), ("variables.json", BASE | variables)):
        (directory / name).write_text(json.dumps(content))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "inventory.yml", "play.yml"]
    command += ["-e", "@variables.json"]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    problems = yaml.safe_load((directory / "problems.yml").read_text()) or []
    return (directory / "nginx.conf").read_text(), problems


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    return rendered(tmp_path_factory.mktemp("plain"))


def entries(conf: str) -> str:
    (found,) = re.findall(r"map \$uri \$did_you_mean \{\n(.*?)\n    \}", conf, re.DOTALL)
    return str(found)


def test_without_origins_nothing_is_said_of_other_sites(plain: tuple[str, list[str]]) -> None:
    conf, problems = plain
    assert problems == []
    assert "cors" not in conf
    assert "add_header Access-Control" not in conf
    assert "Vary" not in conf
    assert "proxy_hide_header Access-Control-Allow-Origin;" in conf, "nor may anybody else"


def test_each_path_has_one_location_and_one_entry(tmp_path: Path) -> None:
    conf, _ = rendered(tmp_path, proxy_api_versions=["v1", "v2"])
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
def test_the_nearest_path_is_found(plain: tuple[str, list[str]], path: str, meant: str | None) -> None:
    known = re.findall(r'^ +(/\S+) "";$', entries(plain[0]), re.MULTILINE)
    patterns = re.findall(r'^ +"~\*(.+)" " Did you mean (\S+)\?";$', entries(plain[0]), re.MULTILINE)
    found = None
    if path not in known:
        found = next((right for pattern, right in patterns if re.search(pattern, path, re.IGNORECASE)), None)
    assert found == meant


ORIGINS = [
    "https://app.example.com",
    "http://localhost:3000",
    "http://127.0.0.1:8080",
    "https://[fd00::1]:8443",
    "app://obsidian.md",
    "chrome-extension://abcdefghijklmnop",
]


def test_listed_origins_are_told_back_and_no_credentials(tmp_path: Path) -> None:
    conf, problems = rendered(tmp_path, nginx_certbot_cors_origins=ORIGINS)
    assert problems == []
    for origin in ORIGINS:
        assert f'"{origin}" $http_origin;' in conf
    assert "add_header Vary Origin always;" in conf
    assert "add_header Access-Control-Allow-Credentials" not in conf
    anybody, problems = rendered(tmp_path, nginx_certbot_cors_origins=["*"])
    assert problems == []
    assert '"~." "*";' in anybody


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


def test_what_is_no_origin_is_refused_before_anything_changes(tmp_path: Path) -> None:
    _, problems = rendered(tmp_path, nginx_certbot_cors_origins=[ORIGINS[0], *NO_ORIGINS])
    assert len(problems) == len(NO_ORIGINS)
    for origin, problem in zip(NO_ORIGINS, problems, strict=True):
        assert f"nginx_certbot_cors_origins has {json.dumps(origin)}, which" in problem
        assert "such as https://app.example.com:" in problem


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["*", "https://app.example.com"], "allows every site"),
        (["https://a.example", "https://a.example"], "twice"),
        ("https://app.example.com", "not a list"),
    ],
)
def test_a_list_that_says_two_things_is_refused(tmp_path: Path, value: Any, words: str) -> None:
    _, (problem,) = rendered(tmp_path, nginx_certbot_cors_origins=value)
    assert words in problem
