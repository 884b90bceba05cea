"""The release role's entry points, called by a role outside of the collection: switch, proof, rollback, prune."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.module_python import module_python

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the role gives what it writes to root")


class Host:
    """A directory of this machine with releases in it, and runs of the role's entry points on them."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.unit = directory / "units" / "x@.service"
        self.directory = directory
        self.unit.parent.mkdir(exist_ok=True)

    def build(self, name: str) -> None:
        """A complete release, as a role leaves it."""
        release = self.home / "releases" / name
        release.mkdir(parents=True)
        (release / "x@.service").write_text(f"unit of {name}\n")
        (self.home / "venvs" / name).mkdir(parents=True)
        (release / "venv").symlink_to(self.home / "venvs" / name)

    def run(self, *steps: str, name: str, options: tuple[str, ...] = ()) -> str:
        """Call the entry points from a role that has the release's name in its own variable; returns the output on one line."""
        caller = self.directory / "roles" / "caller"
        for part, content in (
            (
                "vars",
                {
                    "__caller_path": "{{ home }}/releases/{{ name_of_release }}",
                    "__caller_unit": "{{ lookup('template', 'x.j2') }}",
                },
            ),
            ("tasks", [self._call(step) for step in steps]),
        ):
            (caller / part).mkdir(parents=True, exist_ok=True)
            (caller / part / "main.yml").write_text(json.dumps(content))
        (caller / "templates").mkdir(exist_ok=True)
        (caller / "templates" / "x.j2").write_text("unit of {{ name_of_release }}\n")
        play = {"hosts": "localhost", "gather_facts": False, "roles": ["caller"]}
        play["vars"] = {"home": str(self.home), "unit": str(self.unit), "name_of_release": name}
        (self.directory / "play.yml").write_text(json.dumps([play]))
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": f"{self.directory / 'roles'}:{ROOT / 'roles'}",
            "ANSIBLE_NOCOLOR": "1",
        }
        python = json.dumps(
            {"ansible_connection": "local", "ansible_python_interpreter": module_python(self.directory)}
        )
        command = [
            Path(sys.executable).parent / "ansible-playbook",
            "-i",
            "localhost,",
            "play.yml",
            "-e",
            python,
            *options,
        ]
        done = subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    @staticmethod
    def _call(step: str) -> dict[str, Any]:
        every = {
            "release_home": "{{ home }}",
            "release_path": "{{ __caller_path }}",
            "release_unit": "{{ __caller_unit }}",
            "release_unit_path": "{{ unit }}",
            "release_keep": 0,
            "release_environment_link": "venv",
            "release_caches": "",
        }
        return {"ansible.builtin.include_role": {"name": "release", "tasks_from": step}, "vars": every}

    def link(self, name: str) -> str:
        """The release that a link points to."""
        return (self.home / name).resolve().name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directory of a host, and a copy of it to begin each test with. Made once: a playbook takes seconds."""
    directory, copy = tmp_path_factory.mktemp("release") / "host", tmp_path_factory.mktemp("saved") / "host"
    directory.mkdir()
    host = Host(directory)
    for name in ("one", "two", "three"):
        host.build(name)
    host.run("find", "mark_complete", "switch", "mark_proven", name="one")
    host.run("switch", name="two")
    shutil.copytree(directory, copy, symlinks=True)
    return directory, copy


@pytest.fixture
def host(saved: tuple[Path, Path]) -> Host:
    """Three releases: one was switched to and proven, two switched to after it."""
    directory, copy = saved
    shutil.rmtree(directory)
    # At the same path, because its links are absolute.
    shutil.copytree(copy, directory, symlinks=True)
    return Host(directory)


def test_a_switch_installs_the_unit_and_remembers_what_was_proven(host: Host) -> None:
    assert (host.link("current"), host.link("previous")) == ("two", "one")
    assert host.unit.read_text() == "unit of two\n"
    assert "changed=0" in host.run("switch", name="two"), "idempotent"
    host.run("switch", name="three")
    assert (host.link("current"), host.link("previous")) == ("three", "one"), "two was never proven"


def test_a_rollback_returns_to_what_was_proven_last(host: Host) -> None:
    assert "changed=0" in host.run("rollback", name="three"), "the failure came before the switch"
    assert host.link("current") == "two"
    host.run("rollback", name="two")
    assert host.link("current") == "one"
    assert host.unit.read_text() == "unit of one\n"
    assert "changed=0" in host.run("rollback", name="two"), "idempotent"


def test_without_a_proven_release_a_rollback_says_so_and_changes_nothing(host: Host) -> None:
    (host.home / "previous").unlink()
    said = host.run("rollback", name="two")
    assert "no earlier release was ever proven" in said
    assert "changed=0" in said
    assert host.link("current") == "two"


def test_prune_keeps_current_and_previous_and_under_check_mode_only_reports(host: Host) -> None:
    assert "changed=1" in host.run("prune", name="two", options=("--check",))
    assert (host.home / "releases" / "three").exists()
    host.run("prune", name="two")
    assert {path.name for path in (host.home / "releases").iterdir()} == {"one", "two"}
    assert {path.name for path in (host.home / "venvs").iterdir()} == {"one", "two"}
    assert "changed=0" in host.run("prune", name="two"), "idempotent"
