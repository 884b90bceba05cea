"""inventory/aws_ec2.yml with an EC2 API: one environment at a time, unique names, and no instance silently left out of all tiers."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import stack_ec2 as plugin
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).resolve().parents[2]
SCALING_GROUP = "aws:autoscaling:groupName"
COMMAND = Path(sys.executable).parent / "ansible-inventory"


@dataclass
class Fleet:
    """An EC2 API, its instances, and the inventory that Ansible reads from it."""

    url: str

    def client(self) -> Any:
        return boto3.client(
            "ec2", **self.settings("endpoint_url", "aws_access_key_id", "aws_secret_access_key", "region_name")
        )

    def settings(self, url: str, key: str, secret: str, region: str) -> dict[str, str]:
        """The API's address and credentials, under the names that the caller uses for them."""
        return {url: self.url, key: "test", secret: "test", region: "us-east-1"}

    def start(self, **tags: str) -> str:
        """Start an instance with these tags, and return its id."""
        pairs = [{"Key": key, "Value": value} for key, value in {"Stack": "ec2-inference", **tags}.items()]
        image = self.client().describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        specification = [{"ResourceType": "instance", "Tags": pairs}]
        made = self.client().run_instances(
            ImageId=image, MinCount=1, MaxCount=1, InstanceType="g6.xlarge", TagSpecifications=specification
        )
        return str(made["Instances"][0]["InstanceId"])

    def run(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ansible-inventory --list` with further options."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "STACK_", "ANSIBLE_"))
        }
        inherited |= self.settings("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
        return subprocess.run(
            [COMMAND, "--list", *options],
            cwd=ROOT,
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def read(self, *options: str, **environment: str) -> dict[str, Any]:
        """The inventory."""
        done = self.run(*options, **environment)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout, object_hook=lambda told: told.get("__ansible_unsafe", told)))


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """The URL of an EC2 API."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def fleet(api: str) -> Fleet:
    """A fleet without an instance yet."""
    urllib.request.urlopen(urllib.request.Request(f"{api}/moto-api/reset", method="POST"), timeout=30).close()
    return Fleet(api)


def hosts(inventory: dict[str, Any], group: str) -> list[str]:
    return sorted(inventory.get(group, {}).get("hosts", []))


def problems(inventory: dict[str, Any]) -> list[str]:
    """What the plugin tells preflight."""
    variables = next(iter(inventory["_meta"]["hostvars"].values()))
    return sorted(variables["aws_problems"])


def test_environments_never_meet(fleet: Fleet) -> None:
    fleet.start(Name="web", Environment="production", Tier="nginx")
    fleet.start(Name="web", Environment="staging", Tier="nginx")
    asked = fleet.run()
    assert asked.returncode != 0
    assert "production (1), staging (1): name one, with -e stack_environment=NAME" in " ".join(asked.stderr.split())
    # What is said on the command line wins.
    for inventory in (
        fleet.read("-e", "stack_environment=production", STACK_ENVIRONMENT="staging"),
        fleet.read(STACK_ENVIRONMENT="production"),
    ):
        assert hosts(inventory, "nginx") == hosts(inventory, "env_production") == ["web"]
        web = inventory["_meta"]["hostvars"]["web"]
        assert web["aws_tags"]["Environment"] == web["stack_environment"] == "production"
        assert web["stack_address"] == web["ansible_host"] == web["aws_private_ip_address"]
        assert web["aws_instance_type"] == "g6.xlarge"


def test_the_only_environment_needs_no_name() -> None:
    instances = [instance("i-1"), instance("i-2", Environment="")]
    assert plugin.choose_environment(instances, None) == instances[:1]
    assert plugin.choose_environment(instances, "staging") == []


def test_an_environment_that_nobody_has(fleet: Fleet) -> None:
    fleet.start(Name="web", Environment="production", Tier="nginx")
    done = fleet.run("-e", "stack_environment=prodution")
    assert done.returncode == 0
    assert "no running instance of the stack has the tag Environment=prodution; there are production (1)" in " ".join(
        done.stderr.split()
    )
    assert "web" not in done.stdout


def instance(identity: str, **tags: str) -> dict[str, Any]:
    """An instance as the plugin reads it."""
    address = {"aws_private_ip_address": f"10.0.0.{len(identity)}"}
    return {
        "InstanceId": identity,
        "region": "us-east-1",
        "tags": {"Environment": "production"} | tags,
        "vars": address,
    }


@pytest.mark.parametrize(
    ("instances", "names"),
    [
        ([instance("i-1", Name="a"), instance("i-2", Name="b")], {"i-1": "a", "i-2": "b"}),
        # Namesakes are two hosts.
        ([instance("i-1", Name="a"), instance("i-2", Name="a")], {"i-1": "a-i-1", "i-2": "a-i-2"}),
        # A group has that name.
        (
            [instance("i-1", Name="vllm"), instance("i-2", Name="env_production")],
            {"i-1": "vllm-i-1", "i-2": "env_production-i-2"},
        ),
        ([instance("i-1"), instance("i-22")], {"i-1": "10.0.0.3", "i-22": "10.0.0.4"}),
        # Hosts of an Auto Scaling group keep their names when it grows.
        ([instance("i-1", Name="a", **{SCALING_GROUP: "pool"})], {"i-1": "a-i-1"}),
    ],
)
def test_names(instances: list[dict[str, Any]], names: dict[str, str]) -> None:
    assert plugin.unique_names(instances) == names
    assert len(set(names.values())) == len(instances)


def test_an_operator_is_told_which_hosts_are_called_otherwise() -> None:
    instances = [
        instance("i-1", Name="a"),
        instance("i-2", Name="a"),
        instance("i-3", Name="b", **{SCALING_GROUP: "pool"}),
    ]
    notices = plugin.notices_of(instances, plugin.unique_names(instances))
    assert [notice.split(",")[0] for notice in notices] == [
        "instance i-1 (a) is called a-i-1",
        "instance i-2 (a) is called a-i-2",
    ]


@pytest.mark.parametrize("key", ["Tier", "tier"])
@pytest.mark.parametrize("tier", ["nginx,proxy", "NGINX; Proxy", "proxy nginx", "nginx/proxy", " proxy , nginx "])
def test_case_and_separators_of_tiers(key: str, tier: str) -> None:
    assert plugin.tiers_of(instance("i-1", **{key: tier})) == (["nginx", "proxy"], [])


def test_what_is_in_no_tier_or_environment_is_said_with_its_id(fleet: Fleet) -> None:
    engine = fleet.start(Name="a", Environment="production", Tier="engine")
    none = fleet.start(Environment="production")
    lost = fleet.start(Name="lost", Tier="nginx")
    assert problems(fleet.read()) == sorted(
        [
            f"instance {engine} (a): its tag Tier has 'engine', which is no tier: use nginx, proxy or vllm",
            f"instance {none} is in no tier: give it the tag Tier (nginx, proxy, vllm or several), or remove its tag Stack",
            f"instance {lost} (lost) is in no environment: give it the tag Environment, or remove its tag Stack",
        ]
    )


def test_ways_to_a_host() -> None:
    web = instance("i-1")
    web["vars"] = {"aws_private_ip_address": "10.0.0.1", "aws_public_ip_address": "192.0.2.1"}
    assert plugin.ssh_variables(web, "private", None) == {"ansible_host": "10.0.0.1"}
    assert plugin.ssh_variables(web, "public", None) == {"ansible_host": "192.0.2.1"}
    through = {"ansible_host": "10.0.0.1", "ansible_ssh_common_args": "-J ops@jump"}
    assert plugin.ssh_variables(web, "bastion", "ops@jump") == through
    session = plugin.ssh_variables(web, "ssm", None)
    assert session["ansible_host"] == "i-1"
    command = "aws ssm start-session --region us-east-1 --target %h --document-name AWS-StartSSHSession --parameters portNumber=%p"
    assert shlex.split(session["ansible_ssh_common_args"]) == ["-o", f"ProxyCommand={command}"]


def test_a_bastion_has_to_be_named(fleet: Fleet) -> None:
    assert "connect is bastion, but no bastion is named" in fleet.run(STACK_CONNECT="bastion").stderr


def test_an_api_that_refuses_is_said_with_what_to_do() -> None:
    done = Fleet("http://127.0.0.1:9").run()
    assert done.returncode != 0
    assert "EC2 cannot be asked for the fleet in region us-east-1" in " ".join(done.stderr.split())


def test_the_static_example_has_all_tiers() -> None:
    done = subprocess.run(
        [COMMAND, "-i", "inventory/static.example.yml", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    inventory = json.loads(done.stdout)
    assert {group: len(hosts(inventory, group)) for group in ("nginx", "proxy", "vllm")} == {
        "nginx": 1,
        "proxy": 2,
        "vllm": 2,
    }
