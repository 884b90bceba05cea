"""What a roll reports of an engine's time out of service: the role's own tasks, run on this machine with an engine that is a script."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.module_python import module_python

ROOT = Path(__file__).resolve().parents[2]


def test_a_roll_reports_the_time_without_what_running_requests_needed(tmp_path: Path) -> None:
    (tmp_path / "drained").mkdir()
    host = {
        "ansible_connection": "local",
        "stack_address": "127.0.0.1",
        "ansible_python_interpreter": module_python(tmp_path),
    }
    drain, undrain = (
        {
            "ansible.builtin.include_role": {"name": "vllm", "tasks_from": f"rotation/{step}"},
            "vars": {"__vllm_name": "a"},
        }
        for step in ("drain", "undrain")
    )
    started = {"ansible.builtin.set_fact": {"__vllm_started": {"start_s": 31.4, "proof_s": 2.6}}}
    shown = {"ansible.builtin.debug": {"msg": "{{ __stack_remarks }}"}}
    # Drained twice, as when a start has failed and the host is rolled back. What was not drained is not reported.
    play = {
        "name": "Roll",
        "hosts": "gpu1",
        "gather_facts": False,
        "tasks": [drain, drain, started, undrain, undrain, shown],
    }
    settings = {
        "__proxy_drained_dir": str(tmp_path / "drained"),
        "__vllm_home": str(tmp_path),
        "__vllm_probe_command": ["sh", "-c", "echo idle after 100.5 s"],
    }
    for name, content in (
        ("inventory.yml", {"proxy": {"hosts": {"api1": host}}, "vllm": {"hosts": {"gpu1": host}}}),
        ("play.yml", [play]),
        ("settings.json", settings),
        ("systemctl", "#!/bin/sh\n"),
    ):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "systemctl").chmod(0o755)
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    command = [
        Path(sys.executable).parent / "ansible-playbook",
        "-i",
        "inventory.yml",
        "play.yml",
        "-e",
        "@settings.json",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    reports = re.findall(
        r"a: out of service for (-?\d+) s, of which its start (\d+) s and its proof (\d+) s; before that its requests needed (\d+) s to finish",
        said,
    )
    assert len(reports) == 1, said
    # The script says that both waits took 100.5 s, and takes no time.
    assert int(reports[0][0]) < 0, reports
    assert reports[0][1:] == ("31", "3", "201"), reports
    assert not list((tmp_path / "drained").iterdir())
