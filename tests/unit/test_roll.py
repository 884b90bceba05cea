"""How a roll goes on and stops: playbooks/roll.yml with a role that does as it is told, on hosts that are all this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.module_python import module_python

ROOT = Path(__file__).resolve().parents[2]
# Each entry point writes its name and the host to a log, and then fails or loses the host if it is told so. `service` may have changed a host.
# `raw`, because each run of a module costs a third of a second.
ENTRY = """
- ansible.builtin.set_fact:
    __stack_out: "{{{{ {{inventory_hostname ~ ':one': {{'since': 1.0, 'until': 4.0}}}} }}}}"
  when: "'{name}' == 'service' and inventory_hostname == changed_by_service | default('')"
- ansible.builtin.raw: "echo {name} {{{{ inventory_hostname }}}} >> {log}"
- ansible.builtin.ping:
  when: inventory_hostname == lost_in_{name} | default('')
  vars: {{ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1}}
- ansible.builtin.fail:
    msg: "{{{{ inventory_hostname }}}} is to fail in {name}"
  when: inventory_hostname in (fail_in_{name} | default('')).split(',')
"""


class House:
    """A copy of the playbooks and plugins, whose roles are stubs and whose lock is a file of this test."""

    def __init__(self, directory: Path, facts: Path) -> None:
        self.directory, self.log, self.lock = directory, directory / "log", directory / "stack.lock"
        self.environment = {**os.environ, "ANSIBLE_CONFIG": str(directory / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        # The hosts' facts, which the first run gathers for all.
        self.environment |= {"ANSIBLE_CACHE_PLUGIN": "jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(facts)}
        for part in ("playbooks", "plugins"):
            shutil.copytree(ROOT / part, directory / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        program = directory / "playbooks/files/lock_file.py"
        program.write_text(program.read_text().replace("/run/ec2-inference-stack.lock", str(self.lock)))
        # The checks read the roles' argument specs.
        shutil.copytree(ROOT / "roles", directory / "roles", ignore=shutil.ignore_patterns("files", "__pycache__"))
        for role in ("vllm", "proxy", "nginx_certbot"):
            tasks = directory / "roles" / role / "tasks"
            shutil.rmtree(tasks)
            tasks.mkdir()
            for name in ("prepare", "service", "rollback", "find_previous", "return"):
                (tasks / f"{name}.yml").write_text(ENTRY.format(name=name, log=self.log))
        shutil.copy(ROOT / "ansible.cfg", directory)
        hosts = {
            f"engine{number}": {
                "stack_address": f"127.0.0.{number}",
                "vllm_engines": [{"name": "one", "model": "/nowhere", "served_model_name": "m", "port": 8000}],
            }
            for number in (1, 2, 3, 4)
        }
        hosts["api1"] = {
            "stack_address": "127.0.0.8",
            "proxy_keys": [{"name": "a", "key": "0123456789abcdef" * 2}],
            "proxy_workers": 1,
        }
        hosts["web1"] = {"stack_address": "127.0.0.9", "nginx_certbot_public_addresses": ["127.0.0.1", "::1"]}
        groups = {"vllm": [f"engine{number}" for number in (1, 2, 3, 4)], "proxy": ["api1"], "nginx": ["web1"]}
        common = {"ansible_connection": "local", "ansible_become": False, "stack_domain": "localhost"}
        common["ansible_python_interpreter"] = module_python(directory)
        children = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
        (directory / "hosts.yml").write_text(
            yaml.safe_dump({"all": {"vars": common, "hosts": hosts, "children": children}})
        )

    def start(self, playbook: str, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                Path(sys.executable).parent / "ansible-playbook",
                "-i",
                "hosts.yml",
                f"playbooks/{playbook}.yml",
                *options,
            ],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, playbook: str, *options: str) -> tuple[int, str]:
        """Exit status and output, on one line, since messages are wrapped."""
        process = self.start(playbook, *options)
        output, _ = process.communicate(timeout=300)
        return process.returncode, " ".join(output.split())

    def done(self) -> list[str]:
        """What was done since the last call, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("facts")


@pytest.fixture
def house(tmp_path: Path, facts: Path) -> House:
    return House(tmp_path, facts)


def of(name: str, *numbers: int) -> list[str]:
    return [f"{name} engine{number}" for number in numbers]


def test_a_roll_takes_one_host_after_the_other_and_ends_with_a_table(house: House) -> None:
    status, output = house.run("vllm")
    assert status == 0, output
    done = house.done()
    assert sorted(done[:4]) == of("prepare", 1, 2, 3, 4)
    assert done[4:] == of("service", 1, 2, 3, 4)
    assert "host changed out of service runs" in output
    assert "engine4 no - nothing" in output
    assert not house.lock.exists()


def test_a_host_that_fails_stops_the_roll_and_gives_the_lock_back(house: House) -> None:
    status, output = house.run("vllm", "-e", "fail_in_service=engine2 fail_in_rollback=engine2")
    assert status != 0
    assert house.done()[4:] == [*of("service", 1, 2), *of("rollback", 2)]
    assert "engine2 did not become healthy and was rolled back; the hosts after it were not touched." in output
    assert "engine2 is to fail in service" in output
    assert re.search("Its rollback failed, too: .*engine2 is to fail in rollback", output), output
    assert "engine1 no - nothing" in output, "the table"
    assert not house.lock.exists()


def test_all_hosts_that_cannot_be_prepared_are_told_and_none_is_taken_out(house: House) -> None:
    status, output = house.run("vllm", "-e", "fail_in_prepare=engine2,engine3")
    assert status != 0
    assert sorted(house.done()) == of("prepare", 1, 2, 3, 4)
    for host in ("engine2", "engine3"):
        assert f"{host} could not be prepared:" in output
    assert not house.lock.exists()


def test_a_host_that_is_lost_in_a_batch_stops_the_roll_after_it(house: House) -> None:
    status, output = house.run("vllm", "-e", "stack_batch=50% lost_in_service=engine2")
    assert status != 0
    assert sorted(house.done()[4:]) == of("service", 1, 2)
    assert "engine2 was lost in the middle of its change, which is unfinished" in output
    assert "--limit 'all:!engine2'" in output
    assert not house.lock.exists()


def test_a_host_that_is_gone_is_told_and_nothing_is_begun(house: House) -> None:
    whole = yaml.safe_load((house.directory / "hosts.yml").read_text())
    whole["all"]["hosts"]["engine1"] |= {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    (house.directory / "hosts.yml").write_text(yaml.safe_dump(whole))
    status, output = house.run("vllm")
    assert status != 0
    assert "engine1 was not begun: it cannot be reached" in output
    assert "--limit 'all:!engine1'" in output
    assert [line for line in house.done() if "service" in line] == []
    assert not house.lock.exists()


def test_an_odd_batch_or_one_in_the_inventory_is_refused(house: House) -> None:
    """Ansible reads the batch where no variable of the inventory is known: it would have no effect there."""
    whole = yaml.safe_load((house.directory / "hosts.yml").read_text())
    whole["all"]["vars"]["stack_batch"] = "101%"
    (house.directory / "hosts.yml").write_text(yaml.safe_dump(whole))
    status, output = house.run("vllm")
    assert status != 0
    assert "must be a number of hosts from 1, or a percentage such as 25%" in output
    assert "stack_batch is set in the inventory: give it to the run that needs it, with -e stack_batch=…" in output
    assert house.done() == []


def test_another_run_is_refused_and_told_who_has_the_lock(house: House) -> None:
    theirs = {
        "id": "x",
        "who": "AWX job 17",
        "runs": "playbooks/proxy.yml",
        "since": "2026-11-27T03:00:00Z",
        "machine": "",
        "pid": 1,
        "started": "",
    }
    house.lock.write_text(json.dumps(theirs))
    status, output = house.run("vllm")
    assert status != 0
    assert house.done() == []
    assert "AWX job 17 runs playbooks/proxy.yml, since 2026-11-27T03:00:00Z" in output
    status, output = house.run("rollback", "-e", "tier=engine", "--check")
    assert status == 0, "under --check it is told what a real run would be told"
    assert "AWX job 17 runs playbooks/proxy.yml" in output
    assert json.loads(house.lock.read_text()) == theirs
    house.done()
    status, output = house.run("vllm", "-e", '{"stack_break_lock": "AWX job 17"}')
    assert status == 0, output
    assert "this run takes its place, because stack_break_lock says so" in output
    assert not house.lock.exists()


def test_a_host_that_is_lost_by_itself_ends_the_run_which_the_next_one_continues(house: House) -> None:
    """No task is left to give the lock back, as when the run itself is killed."""
    status, output = house.run("vllm", "-e", "lost_in_service=engine2")
    assert status != 0
    assert house.done()[4:] == of("service", 1, 2)
    assert "engine2: lost in the middle of this run" in output
    assert "add --limit 'all:!engine2'" in output
    assert house.lock.exists()
    status, output = house.run("vllm")
    assert status == 0, output
    assert "this run takes its place, because its process on this machine has ended" in output
    assert "lost in the middle" not in output
    assert house.done()[4:] == of("service", 1, 2, 3, 4)
    assert not house.lock.exists()


def test_a_rollback_has_its_own_steps(house: House) -> None:
    status, output = house.run("rollback", "-e", "tier=engine", "--limit", "engine1,engine2")
    assert status == 0, output
    done = house.done()
    assert sorted(done[:2]) == of("find_previous", 1, 2)
    assert done[2:] == of("return", 1, 2)
    assert "The inventory still wants the newer release" in output


def test_an_odd_tier_is_refused_with_the_list(house: House) -> None:
    status, output = house.run("rollback", "-e", "tier=engines")
    assert status != 0
    assert (
        "tier is engines: write -e tier=engine (or its group's name, vllm), -e tier=proxy or -e tier=nginx. Nothing was changed."
        in output
    )
    assert house.done() == []


METRICS = """
import json, pathlib
calls = pathlib.Path({calls!r})
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
times = len(calls.read_text())
nothing = {{"first_token": {{}}, "inter_token": {{}}}}
bad, good = ({{"requests": 100 * times, "failed": failed * times, **nothing}} for failed in ({failed}, 0))
print(json.dumps({{"engine1:one": bad, "engine2:one": good}}))
"""


@pytest.mark.parametrize("failed", [0, 50])
def test_a_canary_that_does_worse_goes_back_and_the_others_are_not_touched(house: House, failed: int) -> None:
    program = house.directory / "playbooks/files/proxy_metrics.py"
    program.write_text(METRICS.format(calls=str(house.directory / "calls"), failed=failed))
    options = "stack_canary=1 stack_canary_soak_s=1 stack_batch=3 changed_by_service=engine1"
    status, output = house.run("vllm", "-e", options)
    done = house.done()[4:]
    assert f"changed: 100 requests, {failed}.0 % failed" in output
    assert "engine1 yes one 3 s nothing" in output, "the table"
    if not failed:
        assert status == 0, output
        assert done[0] == "service engine1"
        assert sorted(done[1:]) == of("service", 2, 3, 4)
        return
    assert status != 0
    assert done == [*of("service", 1), *of("find_previous", 1), *of("return", 1)]
    assert "engine1 did worse than the hosts that were not changed; the hosts after it were not touched." in output
    assert "It returned to the release before." in output
    assert "50.0 % of their requests failed, and 0.0 % of the others'" in output
    assert not house.lock.exists()
