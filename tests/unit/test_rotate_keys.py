"""playbooks/rotate_keys.yml with its role, on proxy hosts that are all this machine, before workers that know what their keys file says."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_roll import ROOT, House

OLD, NEW, ADMIN, ADMIN_NEW = (
    hashlib.sha256(name.encode()).hexdigest() for name in ("old", "new", "admin", "admin new")
)
HOSTS = {"api1": "127.0.0.8", "api2": "127.0.0.7"}


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Proxies(House):
    """The house with these proxy hosts, whose files are below one directory each."""

    def __init__(self, directory: Path, hosts: dict[str, str]) -> None:
        # It needs no facts.
        super().__init__(directory, directory / "facts")
        self.environment |= {"ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml"}
        tasks = directory / "roles/proxy/tasks"
        (tasks / "worker").mkdir()
        for name in ("keys.yml", "worker/list.yml"):
            shutil.copy(ROOT / "roles/proxy/tasks" / name, tasks / name)
        playbook = directory / "playbooks/rotate_keys.yml"
        playbook.write_text(playbook.read_text().replace("/etc/proxy/", "{{ test_etc }}/"))
        paths = directory / "roles/proxy/vars/main.yml"
        text = paths.read_text().replace("__proxy_user: ec2-inference-proxy", "__proxy_user: root")
        for name, value in (("home", "/opt/proxy"), ("etc", "/etc/proxy")):
            assert f"__proxy_{name}: {value}\n" in text
            text = text.replace(f"__proxy_{name}: {value}\n", f'__proxy_{name}: "{{{{ test_{name} }}}}"\n')
        paths.write_text(text)
        self.servers = {name: self.worker(name, address) for name, address in hosts.items()}
        programs = directory / "programs"
        programs.mkdir()
        whole = yaml.safe_load((directory / "hosts.yml").read_text())
        for name, address in hosts.items():
            etc, home = self.etc(name), directory / name / "opt"
            etc.mkdir(parents=True)
            (home / "current/venv/bin").mkdir(parents=True)
            checker = home / "current/venv/bin/inference-proxy"
            checker.write_text('#!/bin/sh\ngrep -q . "$2"\n')
            checker.chmod(0o755)
            self.write(name, [{"name": "alice", "sha256": sha(OLD)}])
            for config in (etc / "config.yml", home / "current/config.yml"):
                config.write_text(f'engines: []\nadmin:\n  address: "127.0.0.1"\n  key_sha256: "{sha(ADMIN)}"\n')
            # In the place of systemd's.
            bin_of_host = programs / name
            bin_of_host.mkdir()
            unit = f"proxy@{self.servers[name].server_port}.service loaded active running"
            (bin_of_host / "systemctl").write_text(f"#!/bin/sh\necho '{unit}'\n")
            (bin_of_host / "systemctl").chmod(0o755)
            whole["all"]["hosts"][name] = {
                "stack_address": address,
                "proxy_workers": 1,
                "proxy_start_timeout_s": 2,
                "test_etc": str(etc),
                "test_home": str(home),
                "path_of_host": str(bin_of_host),
            }
        whole["all"]["children"]["proxy"]["hosts"] = {name: {} for name in hosts}
        (directory / "hosts.yml").write_text(yaml.safe_dump(whole))
        text = (tasks / "worker/list.yml").read_text()
        (tasks / "worker/list.yml").write_text(
            text.replace("argv: [systemctl,", 'argv: ["{{ path_of_host }}/systemctl",')
        )

    def etc(self, name: str) -> Path:
        return self.directory / name / "etc"

    def write(self, name: str, keys: list[dict[str, Any]]) -> None:
        (self.etc(name) / "keys.yml").write_text(yaml.safe_dump(keys))

    def keys(self, name: str) -> dict[str, str]:
        return {key["name"]: key["sha256"] for key in yaml.safe_load((self.etc(name) / "keys.yml").read_text())}

    def worker(self, name: str, address: str) -> ThreadingHTTPServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                known = sha(token) in outer.keys(name).values() or self.path == "/health/ready"
                body = json.dumps({"config_error": "keys.yml: no" if name in outer.deaf else None}).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.deaf: set[str] = set()
        server = ThreadingHTTPServer((address, 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def rotate(self, *options: str, keys: list[dict[str, str]], admin: str = ADMIN) -> tuple[int, str]:
        path = self.directory / "hosts.yml"
        whole = yaml.safe_load(path.read_text())
        whole["all"]["vars"] |= {"proxy_keys": keys, "proxy_admin_key": admin}
        path.write_text(yaml.safe_dump(whole))
        status, output = self.run("rotate_keys", *options)
        for secret in (OLD, NEW, ADMIN, ADMIN_NEW, *map(sha, (OLD, NEW, ADMIN, ADMIN_NEW))):
            assert secret not in output
        assert not self.lock.exists()
        return status, output


@pytest.fixture
def proxies(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Proxies]:
    """One proxy host, or more where a test is about several: each of them takes its time."""
    number = getattr(request, "param", 1)
    proxies = Proxies(tmp_path, dict(list(HOSTS.items())[:number]))
    yield proxies
    for server in proxies.servers.values():
        server.shutdown()
        server.server_close()


BOTH = pytest.mark.parametrize("proxies", [2], indirect=True)
OLD_KEY, NEW_KEY = {"name": "alice", "key": OLD}, {"name": "alice-2", "owner": "alice", "key": NEW}


def test_a_key_is_replaced_by_two_runs_and_a_third_changes_nothing(proxies: Proxies) -> None:
    status, output = proxies.rotate("--check", keys=[OLD_KEY, NEW_KEY])
    assert status == 0, output
    assert "alice-2: new key of alice, beside alice" in output
    assert proxies.keys("api1") == {"alice": sha(OLD)}
    for keys, admin in (([OLD_KEY, NEW_KEY], ADMIN), ([NEW_KEY], ADMIN_NEW)):
        status, output = proxies.rotate(keys=keys, admin=admin)
        assert status == 0, output
        for name in proxies.servers:
            assert proxies.keys(name) == {key["name"]: sha(key["key"]) for key in keys}
            # What the workers read, and what the next switch to the release would bring back.
            for config in (proxies.etc(name) / "config.yml", proxies.directory / name / "opt/current/config.yml"):
                assert yaml.safe_load(config.read_text())["admin"]["key_sha256"] == sha(admin)
    status, output = proxies.rotate(keys=[NEW_KEY], admin=ADMIN_NEW)
    assert status == 0, output
    assert "nothing to rotate" in output
    assert "changed=" in output
    assert re.search(r"changed=[1-9]", output) is None


@BOTH
def test_a_key_that_would_end_at_once_on_one_host_stops_all(proxies: Proxies) -> None:
    """As when the first of the two runs did not reach it."""
    proxies.write(
        "api1", [{"name": "alice", "sha256": sha(OLD)}, {"name": "alice-2", "owner": "alice", "sha256": sha(NEW)}]
    )
    status, output = proxies.rotate(keys=[NEW_KEY])
    assert status != 0
    assert "key 'alice' would end at once, and its clients get 401" in output
    assert set(proxies.keys("api1")) == {"alice", "alice-2"}
    status, output = proxies.rotate(keys=[OLD_KEY, NEW_KEY])
    assert status == 0, output
    assert set(proxies.keys("api2")) == {"alice", "alice-2"}


def test_a_worker_that_does_not_take_a_key_is_named_and_the_next_run_goes_on(proxies: Proxies) -> None:
    proxies.deaf.add("api1")
    status, output = proxies.rotate(keys=[OLD_KEY, NEW_KEY])
    assert status != 0
    assert "api1: Wait until each worker has read its files" in output
    assert "Do not hand out new keys" in output
    assert set(proxies.keys("api1")) == {"alice", "alice-2"}
    status, output = proxies.rotate(keys=[OLD_KEY, NEW_KEY])
    assert status != 0, "nothing is new, and still not taken"
    proxies.deaf.clear()
    status, output = proxies.rotate(keys=[OLD_KEY, NEW_KEY])
    assert status == 0, output


@pytest.mark.parametrize(
    ("keys", "options", "said"),
    [
        ([{"name": "alice", "key": "short"}], [], "key 'alice' has 5 characters and can be guessed"),
        ([OLD_KEY], ["-e", "rotate_now=alcie"], "rotate_now names 'alcie', which is no key: there are admin, alice"),
        (
            [OLD_KEY],
            ["-e", "rotate_now=alice"],
            "rotate_now names 'alice', which does not end: it is the same as before",
        ),
        ([OLD_KEY], ["--start-at-task", "Write them, and wait until the workers take them"], "The checks were skipped"),
    ],
)
def test_what_is_wrong_changes_nothing(
    proxies: Proxies, keys: list[dict[str, str]], options: list[str], said: str
) -> None:
    status, output = proxies.rotate(*options, keys=keys)
    assert status != 0
    assert said in output
    assert proxies.keys("api1") == {"alice": sha(OLD)}


@BOTH
def test_hosts_that_have_no_keys_yet_are_to_be_deployed(proxies: Proxies) -> None:
    (proxies.etc("api2") / "keys.yml").unlink()
    status, output = proxies.rotate(keys=[OLD_KEY])
    assert status != 0
    assert "api2 has no keys yet. Deploy it first, with playbooks/proxy.yml." in output
