"""The account that the playbooks work on: moto's server in this process, and ansible-playbook beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# First, because it sets what moto reads when it is imported.
from ec2lab import ec2  # isort: skip

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

ec2.complete()

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
IMAGE = "/fleet-test/image"
# One of those that moto has, for x86_64.
MOTOS_IMAGE = "ami-12c6146b"
DOMAIN = "llm.example.com"


@dataclass
class Account:
    """An AWS account, and the variables of an operator."""

    url: str
    directory: Path
    fleets: dict[str, Any] = field(default_factory=dict)
    engines: list[dict[str, Any]] = field(default_factory=list)

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "STACK_", "ANSIBLE_"))
        }
        inherited |= {"AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        inherited |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "ANSIBLE_NOCOLOR": "1"}
        return inherited | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"} | more

    def play(self, playbook: str, *options: str, **environment: str) -> Run:
        """Run a playbook with the variables of this account's operator."""
        variables = {"stack_fleets": self.fleets, "stack_domain": DOMAIN, "vllm_engines": self.engines}
        path = self.directory / "variables.yml"
        path.write_text(yaml.safe_dump(variables))
        done = subprocess.run(
            [PROGRAMS / "ansible-playbook", ROOT / "playbooks" / playbook, "-e", f"@{path}", *options],
            cwd=ROOT,
            env={name: value for name, value in self.environment(**environment).items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr)

    def provision(self, *options: str) -> Run:
        return self.play("provision.yml", "-e", "provision_confirmed=true", *options)

    def inventory(self, **environment: str) -> dict[str, Any]:
        done = subprocess.run(
            [PROGRAMS / "ansible-inventory", "--list"],
            cwd=ROOT,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return dict(json.loads(done.stdout, object_hook=lambda told: told.get("__ansible_unsafe", told)))

    def tagged(self, environment: str) -> list[str]:
        """What carries the tags of an environment's fleet, of any kind that exists."""
        filters = [{"Key": "Stack", "Values": ["ec2-inference"]}, {"Key": "Environment", "Values": [environment]}]
        rows = self.client("resourcegroupstaggingapi").get_resources(TagFilters=filters)["ResourceTagMappingList"]
        ended = {
            instance["InstanceId"]
            for reservation in self.client("ec2").describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            if instance["State"]["Name"] == "terminated"
        }
        return [row["ResourceARN"] for row in rows if row["ResourceARN"].rpartition("/")[2] not in ended]


@dataclass
class Run:
    """What a playbook did."""

    status: int
    output: str

    @property
    def words(self) -> str:
        """The output on one line, since messages are wrapped."""
        return " ".join(self.output.replace("\\n", " ").replace('"', " ").split())

    @property
    def changed(self) -> int:
        return int(self.output.rpartition("changed=")[2].split()[0])

    def good(self) -> Run:
        assert self.status == 0, self.output[-6000:]
        return self


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of AWS's API."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def account(server: str, tmp_path: Path) -> Account:
    """An empty account, and the variables of a small fleet in two zones."""
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"), timeout=30).close()
    found = Account(server, tmp_path)
    found.client("ssm").put_parameter(Name=IMAGE, Value=MOTOS_IMAGE, Type="String")
    found.client("route53").create_hosted_zone(Name="example.com.", CallerReference="test")
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB5dPBZgH2f2bWv8Yp9wCkzFhHqCm1L0sJpQFqW3u1oT ops@controller\n")
    found.engines = [{"name": "one", "model": "s3://models/tiny", "served_model_name": "tiny", "port": 8000}]
    found.fleets = {
        "production": {
            "zones": ["us-east-1a", "us-east-1b"],
            "public_key_file": str(key),
            "ssh_from": ["203.0.113.0/24"],
            "dns_zone": "example.com",
            "hosts": {
                "web": {"tiers": ["nginx"], "count": 1, "type": "t3.small", "image": IMAGE},
                "api": {"tiers": ["proxy"], "count": 1, "type": "c7i.large", "image": IMAGE},
                "engine": {
                    "tiers": ["vllm"],
                    "count": 2,
                    "type": "g6.xlarge",
                    "image": IMAGE,
                    "disk_gb": 100,
                    "spot": True,
                    "cluster": True,
                },
            },
        }
    }
    return found
