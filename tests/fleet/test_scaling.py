"""playbooks/scale.yml against an EC2 API, with a proxy that is a stand-in on this machine, and site.yml that only notes that it ran."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import DOMAIN, IMAGE, PROGRAMS, ROOT, Account, Run
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import InstanceBackend

SITE = """---
- name: Note that the stack is deployed, and on which engine hosts
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Note it
      ansible.builtin.copy:
        content: "{{ groups['vllm'] | sort | join(' ') }}"
        dest: "LOG"
        mode: "0644"
"""
SYSTEMCTL = """#!/bin/sh
case "$*" in *proxy@*) echo "proxy@PORT.service loaded active running" ;; esac
"""


class Worker(http.server.BaseHTTPRequestHandler):
    """A proxy worker: what it has heard of is `engines`, and what lies in `drained` gets no new requests."""

    engines: dict[str, int]
    drained: Path

    def do_GET(self) -> None:
        rows = [
            {
                "id": name,
                "models": ["tiny"],
                "state": "drained" if (self.drained / name).exists() else "serving",
                "in_flight": load,
            }
            for name, load in self.engines.items()
        ]
        body = json.dumps({"engines": rows}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class House:
    """A copy of the playbooks, whose hosts are all this machine, and whose proxy host has the files of this test."""

    def __init__(self, account: Account, directory: Path, port: int) -> None:
        self.account, self.directory, self.log = account, directory / "house", directory / "deployed"
        root = directory / "root"
        self.drained = root / "etc/proxy/drained"
        self.drained.mkdir(parents=True)
        fingerprint = root / f"run/proxy-{port}/fingerprint"
        fingerprint.parent.mkdir(parents=True)
        fingerprint.write_text("PROXY_ADDRESS=127.0.0.1\n")
        for part in ("playbooks", "plugins", "roles", "inventory", "group_vars"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, self.directory / part, symlinks=True, ignore=ignored)
        shutil.copy(ROOT / "ansible.cfg", self.directory)
        (self.directory / "playbooks/site.yml").write_text(SITE.replace("LOG", str(self.log)))
        replaced = {
            "playbooks/files/host_report.py": ('ROOT = Path("/")', f"ROOT = Path({str(root)!r})"),
            "playbooks/files/lock_file.py": ("/run/ec2-inference-stack.lock", f"{directory}/stack.lock"),
            "playbooks/tasks/scale/forget.yml": ("/etc/proxy/drained", str(self.drained)),
            "playbooks/tasks/scale/drain.yml": ("/opt/vllm", f"{root}/opt/vllm"),
        }
        for name, (old, new) in replaced.items():
            path = self.directory / name
            assert old in path.read_text(), f"{name} has no {old} any more"
            path.write_text(path.read_text().replace(old, new))
        start = root / "opt/vllm/starts/one"
        start.parent.mkdir(parents=True)
        start.write_text("84")
        programs = directory / "bin"
        programs.mkdir()
        (programs / "systemctl").write_text(SYSTEMCTL.replace("PORT", str(port)))
        (programs / "systemctl").chmod(0o755)
        self.path = f"{programs}:{PROGRAMS}:/usr/bin:/bin"

    def scale(self, count: object, *options: str, pool: str = "engine") -> Run:
        variables = {
            "stack_fleets": self.account.fleets,
            "stack_domain": DOMAIN,
            "vllm_engines": self.account.engines,
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "stack_address": "127.0.0.1",
            "proxy_drain_timeout_s": 1,
            "__proxy_drained_dir": str(self.drained),
        }
        path = self.directory / "variables.yml"
        path.write_text(yaml.safe_dump(variables))
        self.log.unlink(missing_ok=True)
        said = ["-e", f"pool={pool}", "-e", f"count={count}", *options]
        done = subprocess.run(
            [PROGRAMS / "ansible-playbook", "playbooks/scale.yml", "-e", f"@{path}", *said],
            cwd=self.directory,
            env=self.account.environment(PATH=self.path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr)

    def deployed(self) -> list[str] | None:
        """The engine hosts on which site.yml would have run since the last call of `scale`; None if it did not."""
        return self.log.read_text().split() if self.log.exists() else None

    def instances(self) -> dict[str, str]:
        """The running engine hosts' ids by name."""
        alive = [
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
            {"Name": "tag:Name", "Values": ["engine-*"]},
        ]
        rows = self.account.client("ec2").describe_instances(Filters=alive)["Reservations"]
        found = [instance for reservation in rows for instance in reservation["Instances"]]
        return {next(t["Value"] for t in row["Tags"] if t["Key"] == "Name"): row["InstanceId"] for row in found}


@pytest.fixture
def house(account: Account, tmp_path: Path) -> Iterator[House]:
    """A fleet of one proxy and one engine in somebody else's subnet."""
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.1.0/24", AvailabilityZone="us-east-1a")["Subnet"]["SubnetId"]
    hosts = {
        "api": {"tiers": ["proxy"], "count": 1, "type": "t3.small", "image": IMAGE},
        "engine": {"tiers": ["vllm"], "count": 1, "type": "g6.xlarge", "image": IMAGE, "disk_gb": 100},
    }
    fleet = {"zones": ["us-east-1a"], "subnet_ids": [subnet], "entry": "none", "hosts": hosts}
    account.fleets = {"production": fleet}
    Worker.engines = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = House(account, tmp_path, server.server_address[1])
    Worker.drained = made.drained
    yield made
    server.shutdown()
    server.server_close()


def test_more_hosts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is missing is provisioning's, and nothing is half made.
    refused = house.scale(2)
    assert refused.status != 0
    assert "run playbooks/provision.yml first, which makes" in refused.words
    assert house.instances() == {}
    house.account.provision().good()

    # --check says what a run does, and what it costs.
    looked = house.scale(3, "--check", "--diff").good()
    assert "+ instance engine-3 (vllm): g6.xlarge in us-east-1a, 100 GiB" in looked.words
    assert "Pool engine of fleet production in us-east-1: 1 hosts now, 3 wanted" in looked.words
    # Two hosts at 0.8048 and a disk of 100 GiB at 8 a month.
    assert re.search(r"1\.6315 +1191\.0", looked.output), looked.output
    assert "count is 1: write 3 there" in looked.words
    assert list(house.instances()) == ["engine-1"]
    assert house.deployed() is None

    # A quota stops it; the next run goes on.
    def refuse(*_: object, **__: object) -> None:
        raise EC2ClientError("VcpuLimitExceeded", "You have requested more vCPU capacity than your current limit of 8.")

    with monkeypatch.context() as quota:
        quota.setattr(InstanceBackend, "run_instances", refuse)
        stopped = house.scale(3)
    assert stopped.status != 0
    assert "more vCPU capacity than your current limit of 8" in stopped.words
    assert "Ask for a higher quota" in stopped.words
    made = house.scale(3).good()
    reached = made.output.partition("Wait for the host")[2].partition("PLAY [")[0]
    assert all(f"ok: [engine-{number}]" in reached for number in (1, 2, 3)), made.output
    assert sorted(house.instances()) == ["engine-1", "engine-2", "engine-3"]
    assert house.deployed() == ["engine-1", "engine-2", "engine-3"]
    there = house.instances()
    again = house.scale(3).good()
    assert "nothing is to be launched or terminated" in again.words
    assert house.instances() == there


def test_fewer_hosts_and_none(house: House) -> None:
    house.account.fleets["production"]["hosts"]["engine"]["count"] = 3
    house.account.provision().good()
    there = house.instances()

    # A host that has requests is not terminated, and the newest goes if all serve.
    Worker.engines = {f"engine-{number}:one": 0 for number in (1, 2, 3)}
    busy = max(there, key=lambda name: (launched(house, there[name]), there[name]))
    Worker.engines[f"{busy}:one"] = 2
    late = house.scale(2)
    assert late.status != 0, late.output
    assert f"{busy}:one still has requests after proxy_drain_timeout_s" in late.words
    assert "Nothing was terminated" in late.words
    assert house.instances() == there
    marker = (house.drained / f"{busy}:one").read_text()
    assert marker.startswith("scaled in; by ")
    assert "; a start takes 84 s; since " in marker

    # It was drained first, so it is the one that goes when the run is repeated. An operator's marker does not outlive its host.
    Worker.engines[f"{busy}:one"] = 0
    (house.drained / f"{busy}:one").write_text("new disk; by alice@ops1\n")
    house.scale(2).good()
    stay = {name: identity for name, identity in there.items() if name != busy}
    assert house.instances() == stay
    assert house.deployed() == sorted(stay)
    assert list(house.drained.iterdir()) == []

    # As an alert asks for it that wants at least one host.
    house.scale(1, "-e", "scale_in=false").good()
    assert house.instances() == stay
    assert house.deployed() is None

    # The last engine of a model stays, unless it is said; then the proxies keep the model, with the time of its last start.
    del Worker.engines[f"{busy}:one"]
    last = house.scale(0)
    assert last.status != 0
    assert (
        "no other engine serves tiny, as api-1 sees it: to scale in nevertheless, add -e drain_last=true" in last.words
    )
    assert house.instances() == stay
    house.scale(0, "-e", "drain_last=true").good()
    assert house.instances() == {}
    assert house.deployed() is None
    assert sorted(path.name for path in house.drained.iterdir()) == sorted(f"{name}:one" for name in stay)

    # A new host of an old name is not born drained.
    house.scale(1, "-e", "scale_in=false").good()
    assert list(house.instances()) == ["engine-1"]
    assert house.deployed() == ["engine-1"]
    assert "engine-1:one" not in [path.name for path in house.drained.iterdir()]


def launched(house: House, identity: str) -> str:
    (reservation,) = house.account.client("ec2").describe_instances(InstanceIds=[identity])["Reservations"]
    return str(reservation["Instances"][0]["LaunchTime"])


@pytest.mark.parametrize(
    ("pool", "count", "options", "told"),
    [
        ("engnie", "-1", (), "2 problems; nothing was changed"),
        ("engine", "2", ("--limit", "localhost"), "--limit cannot be used here"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    house: House, pool: str, count: str, options: tuple[str, ...], told: str
) -> None:
    done = house.scale(count, *options, pool=pool)
    assert done.status != 0
    assert told in done.words, done.output
    assert house.instances() == {}
    assert house.account.client("iam").list_roles()["Roles"] == []
