"""Hosts download models at the same time, but never more of them than wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from ansible.module_utils.common.yaml import yaml_load
from helpers.module_python import module_python

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "roles" / "vllm" / "tasks" / "configure" / "models.yml"
HOSTS, AT_ONCE = 3, 2
# Each download notes how many run with it. It waits until as many as wanted have met, and then for one too many, which comes only if
# there is no cap: the five seconds for that can hide a missing cap on a very slow machine, and never fail a right one.
DOWNLOAD = """
import fcntl, json, sys, time
from pathlib import Path

state = Path(sys.argv[1])

def counted(by):
    with state.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        now = json.loads(file.read())
        now["running"] += by
        now["most"] = max(now["most"], now["running"])
        file.seek(0)
        file.truncate()
        file.write(json.dumps(now))
        return now

def wait_for(number, seconds):
    deadline = time.monotonic() + seconds
    while counted(0)["most"] < number and time.monotonic() < deadline:
        time.sleep(0.05)

counted(1)
wait_for(int(sys.argv[2]), 60)
wait_for(int(sys.argv[2]) + 1, 5)
counted(-1)
print('{"changed": true, "path": "/srv/models/m", "seconds": 0}')
"""


def test_no_more_hosts_download_at_the_same_time_than_wanted(tmp_path: Path) -> None:
    (download,) = (task for task in yaml_load(TASKS.read_text()) if task["name"].startswith("Download"))
    state = tmp_path / "state.json"
    state.write_text('{"running": 0, "most": 0}')
    (tmp_path / "download.py").write_text(DOWNLOAD)
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars": {
            "vllm_fetch_parallel_hosts": AT_ONCE,
            "__vllm_fetch_command": [sys.executable, str(tmp_path / "download.py"), str(state), str(AT_ONCE)],
            "__vllm_missing_names": ["m"],
            "__vllm_entries": {"m": {"model": "m"}},
        },
        "tasks": [json.loads(json.dumps(download))],
    }
    own = {"ansible_connection": "local", "ansible_python_interpreter": module_python(tmp_path)}
    inventory = {"all": {"vars": own, "hosts": {f"engine{number}": {} for number in range(HOSTS)}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(state.read_text()) == {"running": 0, "most": AT_ONCE}, done.stdout
