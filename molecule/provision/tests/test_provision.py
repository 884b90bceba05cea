"""From an empty account to the first answer, more engines and fewer under load, and back to nothing. Each instance is a host of the lab."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from ec2lab import services
from ec2lab.model import Lab
from helpers.load import Load
from helpers.stack import CLIENT, MACHINE_ENVIRONMENT, MODEL, PROJECT, openai_client, playbook, ssh

testinfra_hosts = ["local://"]
LAB = Lab(os.environ["LAB_NAME"])
# One of those that the lab's EC2 API has, for x86_64.
IMAGE = "ami-12c6146b"


@pytest.fixture(scope="module", autouse=True)
def instances_boot() -> Iterator[None]:
    """Each running instance is a host, as long as the tests run."""
    command = [PROJECT / "lab/lab", "follow", os.environ["LAB_SHORT_NAME"], os.environ["LAB_TOPOLOGY"]]
    follower = subprocess.Popen(command, env=MACHINE_ENVIRONMENT)
    yield
    assert follower.poll() is None, "lab follow has ended"
    follower.terminate()
    follower.wait(60)


def fleet(engines: int) -> tuple[str, str]:
    """The options of a playbook that say the wanted fleet: a network of the lab's addresses, and hosts without GPUs."""
    kinds = {"web": ("nginx", 1), "api": ("proxy", 1), "engine": ("vllm", engines)}
    wanted: dict[str, Any] = {
        "zones": ["us-east-1a"],
        "network_cidr": str(LAB.network()),
        "public_key_file": str(CLIENT / "id_ed25519.pub"),
        "ssh_from": [f"{LAB.address()}/32"],
        "entry": "none",
        "hosts": {
            kind: {"tiers": [tier], "count": count, "type": "c7i.xlarge", "image": IMAGE}
            for kind, (tier, count) in kinds.items()
        },
    }
    return "-e", json.dumps({"stack_fleets": {"lab": wanted}, "stack_environment": "lab"})


def engines_seen() -> dict[str, str]:
    """The states in which the proxy's first worker sees the engines."""
    address = ssh("api-1", "ss -Hltn 'sport = :9000' | awk '{print $4}'").strip()
    ready = json.loads(ssh("api-1", f"curl -s http://{address}/health/ready"))
    return {engine["id"]: engine["state"] for engine in ready["engines"]}


def instances() -> set[str]:
    """The names of the instances that run."""
    running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    rows = boto3.client("ec2", **services.client_options(LAB)).describe_instances(Filters=running)["Reservations"]
    tags = [tag for row in rows for instance in row["Instances"] for tag in instance["Tags"]]
    return {tag["Value"] for tag in tags if tag["Key"] == "Name"}


def test_two_commands_lead_to_the_first_answer() -> None:
    playbook("provision", *fleet(1), "-e", "provision_confirmed=true")
    playbook("site", *fleet(1))
    with openai_client() as client:
        assert client.completions.create(model=MODEL, prompt="hello", max_tokens=4).choices
    again = playbook("provision", *fleet(1), "-e", "provision_confirmed=true")
    assert re.search(r"changed=[1-9]", again.stdout) is None, again.stdout[-4000:]


def test_more_engines_and_fewer_lose_no_request() -> None:
    with Load() as load:
        playbook("scale", *fleet(1), "-e", "pool=engine", "-e", "count=2")
        assert engines_seen() == {"engine-1:tiny": "serving", "engine-2:tiny": "serving"}
        playbook("scale", *fleet(2), "-e", "pool=engine", "-e", "count=1")
        (left,) = engines_seen().items()
        assert left[1] == "serving"
        assert instances() == {"web-1", "api-1", left[0].partition(":")[0]}
    load.assert_unharmed()


def test_nothing_is_left_at_the_end() -> None:
    playbook("deprovision", *fleet(1), "-e", "deprovision_confirmed=lab")
    assert instances() == set()
