"""A lab's names, directories and topology."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import yaml

from ec2lab.machine import HOME
from ec2lab.report import LabError

PROJECT = Path(__file__).resolve().parents[2]
TIERS = ("nginx", "proxy", "vllm")
# Ports on the lab's own address (the bridge).
EC2_PORT = 5000
IMDS_PORT = 1338
ACME_PORT, ACME_MANAGEMENT_PORT = 14000, 15000
DNS_PORT, DNS_MANAGEMENT_PORT = 8053, 8055


@dataclass(frozen=True)
class Host:
    """One host of a topology."""

    name: str
    image: str
    tiers: tuple[str, ...]
    index: int


@dataclass(frozen=True)
class Topology:
    """The contents of a `lab.yml`: hosts, public names with the hosts they resolve to, and variables for the inventory.

    With `images`, by the tier, the hosts are instances that playbooks launch (`lab follow`), and names resolve to all hosts of a tier.
    """

    hosts: tuple[Host, ...]
    names: dict[str, list[str]] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Topology:
        """Read `path`. Raises LabError with every error in it."""
        data = yaml.safe_load(path.read_text()) or {}
        problems = [
            f"unknown key {key!r}: use hosts, images, names, vars"
            for key in sorted(set(data) - {"hosts", "images", "names", "vars"})
        ]
        images = data.get("images") or {}
        problems += [f"images: no tier {tier!r}: use {', '.join(TIERS)}" for tier in images if tier not in TIERS]
        hosts = []
        for index, (name, spec) in enumerate((data.get("hosts") or {}).items()):
            tiers = tuple((spec or {}).get("tiers", ()))
            problems += [
                f"host {name}: no tier {tier!r}: use {', '.join(TIERS)}" for tier in tiers if tier not in TIERS
            ]
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,20}", name):
                problems.append(f"host {name!r}: use a short lower-case name such as web1")
            hosts.append(Host(name=name, image=(spec or {}).get("image", "bookworm"), tiers=tiers, index=index))
        if bool(hosts) == bool(images):
            problems.append(
                "name at least one host under `hosts:`, or the images of instances that playbooks launch under `images:`; one of the two"
            )
        known = {host.name for host in hosts} | set(images)
        names = data.get("names") or {}
        problems += [f"name {n}: no host {h!r}" for n, targets in names.items() for h in targets if h not in known]
        if problems:
            raise LabError(f"{path}:\n" + "\n".join(f"  - {p}" for p in problems))
        return cls(tuple(hosts), names, data.get("vars") or {}, images)

    def of(self, hosts: tuple[Host, ...]) -> Topology:
        """This topology with these hosts, to whose tiers the names resolve."""
        names = {
            name: [host.name for host in hosts if set(tiers) & set(host.tiers)] for name, tiers in self.names.items()
        }
        return replace(self, hosts=hosts, names={name: found for name, found in names.items() if found})


@dataclass(frozen=True)
class Lab:
    """One lab: a name, unique on this machine, and where its state lives."""

    name: str

    @classmethod
    def of(cls, short: str, project: Path = PROJECT) -> Lab:
        """The lab `short` of the checkout `project`; no two checkouts share one. `_`, which host names must not have, becomes `-`."""
        return cls(f"{short.replace('_', '-')}-{hashlib.sha256(str(project).encode()).hexdigest()[:6]}")

    @property
    def tag(self) -> str:
        """Six hex digits for names that must be short, such as network interfaces (15 characters at most)."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:6]

    @property
    def directory(self) -> Path:
        """The directory of hosts, logs and process records."""
        return HOME / "labs" / self.name

    @property
    def bridge(self) -> str:
        """The bridge's interface name."""
        return f"lab{self.tag}"

    @property
    def domain(self) -> str:
        """The domain of the lab's public names; `.test` is reserved for testing (RFC 6761)."""
        return f"{self.name}.test"

    @property
    def ec2_url(self) -> str:
        """The EC2 API's URL, with a name, because the lab's address is not known yet."""
        return f"http://ec2.{self.domain}:{EC2_PORT}"

    @property
    def imds_url(self) -> str:
        """The URL of the hosts' instance metadata. Hosts resolve the name, too."""
        return f"http://ec2.{self.domain}:{IMDS_PORT}"

    @property
    def acme_directory(self) -> str:
        """The ACME directory of the lab's certificate authority."""
        return f"https://acme.{self.domain}:{ACME_PORT}/dir"

    @property
    def client(self) -> Path:
        """The lab's files in the checkout: ssh key, inventory, certificates, client.env."""
        return PROJECT / ".lab" / self.name

    def environment(self) -> dict[str, str]:
        """The environment with which boto3 and the dynamic inventory use this lab's EC2 API."""
        return {
            "AWS_ENDPOINT_URL": self.ec2_url,
            "AWS_ACCESS_KEY_ID": "lab",
            # No part of a word: modules replace it in what they return, even in "available".
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-lab",
            "AWS_REGION": "us-east-1",
            "LAB_NAME": self.name,
            "LAB_CLIENT": str(self.client),
            # Ansible names the sockets of kept connections after hosts, and every lab may have an engine1.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory / "ssh"),
        }

    def load(self) -> dict[str, Any]:
        """The recorded state; empty if the lab does not exist."""
        try:
            state: dict[str, Any] = json.loads((self.directory / "lab.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Record the state atomically."""
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / "lab.json.new"
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(self.directory / "lab.json")

    def network(self) -> IPv4Network:
        """The lab's subnet; raises LabError where none was chosen yet."""
        state = self.load()
        if "subnet" not in state:
            raise LabError(f"lab {self.name} has no network: it is not up")
        return IPv4Network(state["subnet"])

    def address(self, host: Host | None = None) -> str:
        """A host's address on the lab's subnet; without a host, the machine's."""
        return str(self.network()[1 if host is None else 10 + host.index])


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the machine-wide lock `name`."""
    path = HOME / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def all_labs() -> list[Lab]:
    """Every lab that has state on this machine."""
    directory = HOME / "labs"
    return [Lab(path.name) for path in sorted(directory.iterdir())] if directory.is_dir() else []
