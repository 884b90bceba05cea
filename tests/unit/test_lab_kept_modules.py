"""What runs of `ansible-playbook` in the lab share: modules put together once, which outlive the run and are used by the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.ping:
"""


def ping(directory: Path) -> str:
    """Run a task on this machine with the plugin on; returns what Ansible printed."""
    (directory / "ansible.cfg").touch()
    (directory / "ping.yml").write_text(PLAYBOOK)
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory / "home"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "lab" / "callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "kept_modules",
    }
    command = ["ansible-playbook", "--connection=local", "--inventory=localhost,", "ping.yml"]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_module_is_put_together_once_and_outlives_the_run(tmp_path: Path) -> None:
    kept = Path(sys.prefix, "ansible-modules")
    assert "kept_modules" not in ping(tmp_path), "Ansible complains of the plugin"
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("ansible.modules.ping-*")}
    assert before, "this version of Ansible keeps its modules elsewhere"
    ping(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in kept.glob("ansible.modules.ping-*")} == before
    assert not list((tmp_path / "home" / "tmp").iterdir()), "a run left its own directory behind"


def test_there_is_no_module_of_ours() -> None:
    # What is kept knows nothing of a checkout's sources: a module of ours would have to be left out, or changes to it go unseen.
    assert not (ROOT / "plugins" / "modules").exists()
    assert not (ROOT / "plugins" / "module_utils").exists()
    assert not list(ROOT.glob("roles/*/library"))
