"""Engines' markers on the proxies: the proxy role's own tasks, run against a directory of this machine."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers.module_python import module_python

ROOT = Path(__file__).resolve().parents[2]
LOGIN = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()

OPERATORS = ["rolling update of its kernel", "rolling update; by hand"]


@pytest.fixture
def drained(tmp_path: Path) -> Path:
    """The directory of markers of a proxy host, which is this machine, without workers."""
    directory = tmp_path / "drained"
    directory.mkdir()
    return directory


def roll(drained: Path, steps: list[str], engines: list[str], **variables: Any) -> str:
    """Run a play that calls the role's steps for each engine, as a roll does; returns its output on one line."""
    directory = drained.parent
    systemctl = directory / "systemctl"
    systemctl.write_text("#!/bin/sh\n")
    systemctl.chmod(0o755)
    host = {
        "ansible_connection": "local",
        "stack_address": "127.0.0.1",
        "ansible_python_interpreter": module_python(directory),
    }
    call = {"ansible.builtin.include_role": {"name": "proxy", "tasks_from": "{{ call.0 }}"}}
    task = (
        call
        | {"loop": "{{ steps | product(engines) }}"}
        | {"vars": {"proxy_drain_engine": "{{ call.1 }}"}, "loop_control": {"loop_var": "call"}}
    )
    play = {"name": "Roll; then look", "hosts": "gpu1", "gather_facts": False, "tasks": [task]}
    settings = {"__proxy_drained_dir": str(drained), "steps": steps, "engines": engines} | variables
    for name, content in (
        ("inventory.yml", {"proxy": {"hosts": {"api1": host}}, "vllm": {"hosts": {"gpu1": host}}}),
        ("play.yml", [play]),
        ("settings.json", settings),
    ):
        (directory / name).write_text(json.dumps(content))
    environment = {name: value for name, value in os.environ.items() if name != "SUDO_USER"}
    environment |= {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{directory}:{os.environ['PATH']}",
    }
    playbook = Path(sys.executable).parent / "ansible-playbook"
    command = [playbook, "-i", "inventory.yml", "play.yml", "-e", "@settings.json"]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("variables", "owner"),
    [
        ({"proxy_drain_start_s": 84}, f"{LOGIN}@{os.uname().nodename}"),
        ({"awx_job_id": 42, "tower_job_id": 42}, "AWX job 42"),
    ],
)
def test_a_roll_writes_who_and_when_and_says_so_when_it_is_over(
    drained: Path, variables: dict[str, Any], owner: str
) -> None:
    said = roll(drained, ["engine_drain", "engine_drain", "engine_undrain"], ["gpu1:a"], **variables)
    start = "; a start takes 84 s" if "proxy_drain_start_s" in variables else ""
    marker = (
        rf"rolling update; by {re.escape(owner)} \(Roll, then look\){start}; since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    )
    assert re.search(rf"api1: engine gpu1:a is put back, after 0 h [01] min: {marker}", said), said
    assert "changed=2 " in said, "a marker that is there is not written again"
    assert not list(drained.iterdir())


def test_what_killed_rolls_left_is_taken_back_and_what_operators_wrote_stays(drained: Path) -> None:
    since = (datetime.now(UTC) - timedelta(hours=26, minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    killed = f"rolling update; by bob@ops1 (Roll); since {since}"
    (drained / "killed").write_text(f"{killed}\n")
    (drained / "earlier-version").write_text("rolling update\n")
    for number, text in enumerate(OPERATORS):
        (drained / f"operator{number}").write_text(text)

    said = roll(drained, ["engine_drain", "engine_undrain"], [marker.name for marker in drained.iterdir()])

    assert re.search(rf"engine killed is put back, after 26 h \d+ min: {re.escape(killed)}", said), said
    assert "engine earlier-version is put back, its marker does not say since when it was out: rolling update" in said
    assert "changed=2 " in said
    assert [(drained / f"operator{number}").read_text() for number in range(len(OPERATORS))] == OPERATORS
    assert len(list(drained.iterdir())) == len(OPERATORS)


def test_a_person_s_drain_is_put_back_for_its_reason_or_for_any(drained: Path) -> None:
    roll(drained, ["engine_drain"], ["gpu1:a", "gpu1:b"], proxy_drain_reason="new disk (sda)")
    assert all(marker.read_text().startswith("new disk (sda); by ") for marker in drained.iterdir())
    roll(drained, ["engine_undrain"], ["gpu1:a"])
    assert len(list(drained.iterdir())) == 2, "a roll must not put back what a person took out"
    roll(drained, ["engine_undrain"], ["gpu1:a"], proxy_drain_reason="new disk (sda)")
    assert [marker.name for marker in drained.iterdir()] == ["gpu1:b"]
    said = roll(drained, ["engine_undrain"], ["gpu1:b"], proxy_drain_reason="")
    assert re.search(r"engine gpu1:b is put back, after 0 h \d+ min: new disk \(sda\); by", said), said
    assert not list(drained.iterdir())
