"""Each job template's playbook, run by ansible-runner in the layout of an AWX job: project/, inventory/, env/ and artifacts/."""

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

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ANSWERS = {"tier": "engine", "drain_reason": "new disk", "request_id": "0d6e1c"}
# What AWX adds to each job's variables.
OF_AWX = {"awx_job_id": 17, "awx_job_launch_type": "manual", "awx_user_name": "alice", "tower_job_id": 17}
HOSTS = {
    "vllm": {"engine1": {"vllm_engines": []}},
    "proxy": {"api1": {"proxy_keys": [{"name": "a", "key": "0123456789abcdef" * 2}], "proxy_workers": 1}},
    "nginx": {"web1": {"nginx_certbot_public_addresses": ["127.0.0.1", "::1"]}},
}


def templates() -> list[dict[str, Any]]:
    """The job templates, with their questions; what is templated in them does not matter here."""
    loader = yaml.SafeLoader
    loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))
    jobs: list[dict[str, Any]] = yaml.load((ROOT / "playbooks/vars/automation.yml").read_text(), loader)[
        "__automation_jobs"
    ]
    return jobs


def answers(template: dict[str, Any]) -> dict[str, Any]:
    """The variables of a job that is launched without a change of the defaults."""
    questions = template.get("survey_spec", {}).get("spec", [])
    return {question["variable"]: ANSWERS.get(question["variable"], question.get("default")) for question in questions}


class Job:
    """The private directory of a job."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "project").symlink_to(ROOT)
        for part in ("inventory", "env", "home"):
            (directory / part).mkdir()
        hosts = {name: variables for group in HOSTS.values() for name, variables in group.items()}
        python = module_python(directory)
        for number, variables in enumerate(hosts.values(), 2):
            variables |= {"stack_address": f"127.0.0.{number}", "ansible_connection": "local", "ansible_become": False}
            variables |= {
                "stack_domain": "localhost",
                "remote_tower_enabled": "true",
                "ansible_python_interpreter": python,
            }
        whole = {group: {"hosts": list(names)} for group, names in HOSTS.items()} | {"_meta": {"hostvars": hosts}}
        script = directory / "inventory/hosts"
        script.write_text(f"#! {sys.executable}\n# -*- coding: utf-8 -*-\nprint({json.dumps(whole)!r})\n")
        script.chmod(0o700)
        (directory / "env/settings").write_text("{}\n")

    def run(self, playbook: str, variables: dict[str, Any], *options: str) -> tuple[int, str]:
        """Exit status and output, on one line, since messages are wrapped."""
        # AWX writes JSON, in which a number is one.
        (self.directory / "env/extravars").write_text(json.dumps(OF_AWX | variables))
        (self.directory / "env/cmdline").write_text(" ".join(options))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        # Without the inventory plugin for EC2, which takes a quarter of the start, for AWS's libraries.
        environment |= {"ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.script"}
        done = subprocess.run(
            [BIN / "ansible-runner", "run", self.directory, "-p", playbook],
            env=environment
            | {"HOME": str(self.directory / "home"), "PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize("template", templates(), ids=lambda template: template["playbook"])
def test_a_template_s_playbook_is_read_with_the_answers_of_its_survey(job: Job, template: dict[str, Any]) -> None:
    """Its roles and plugins are found, and lists of hosts and batches can be made of the answers."""
    status, output = job.run(template["playbook"], answers(template), "--list-tasks")
    assert status == 0, output
    assert "ERROR" not in output
    assert "play #1" in output


def test_the_checks_take_all_answers_as_awx_gives_them(job: Job) -> None:
    """Numbers as numbers, choices as text, and "" where an answer is left out. The only problem is the fleet's."""
    variables = {name: value for template in templates() for name, value in answers(template).items()}
    assert {type(value) for value in variables.values()} == {int, str}
    status, output = job.run("playbooks/check_inventory.yml", variables)
    assert status != 0
    assert "1 problem" in output, output
    assert "vllm_engines lists no engine" in output


def test_a_drain_without_a_limit_ends_instead_of_asking(job: Job) -> None:
    status, output = job.run(
        "playbooks/drain.yml", {"drain_reason": "new disk", "drain_instances": "", "drain_last": "false"}
    )
    assert status != 0
    assert "the hosts are not named: add --limit" in output


def test_one_that_asks_at_a_shell_ends_instead(job: Job) -> None:
    tasks = job.directory / "confirm.yml"
    play = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": {
                "__fleet": {"environment": "staging"},
                "__confirmed": False,
                "__confirm_variable": "provision_confirmed",
            },
            "tasks": [
                {"include_tasks": str(ROOT / "playbooks/tasks/confirm.yml"), "vars": {"__confirm_what": "Make this"}}
            ],
        }
    ]
    tasks.write_text(json.dumps(play))
    status, output = job.run(str(tasks), {})
    assert status != 0
    assert "nobody agreed. To agree without being asked: -e provision_confirmed=true" in output
