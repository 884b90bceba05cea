"""The resources of a fleet, by their names and settings, from an operator's variables. Pure: nothing here asks AWS."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

STACK = "ec2-inference"
TIERS = ("nginx", "proxy", "vllm")
SPECS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "fleet.yml").read_text())["argument_specs"]
# Workers of a proxy host, if proxy_workers is 0 (one per core): at most four.
MOST_WORKERS = 4
# Of one kind.
MOST_HOSTS = 200
# A subnet is a sixteenth of its VPC.
SUBNET_BITS = 4
SSM_POLICY = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"


@dataclass(frozen=True)
class Host:
    """An instance that has to be there."""

    name: str
    kind: str
    tiers: tuple[str, ...]
    instance_type: str
    image: str
    zone: str
    disk_gb: int
    spot: bool
    cluster: bool
    efa: bool


@dataclass(frozen=True)
class Ports:
    """What the tiers listen on, from the variables of the roles."""

    proxy: tuple[int, int] = (9000, 9003)
    store: int | None = None
    engines: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fleet:
    """A fleet's settings, each with its default."""

    environment: str
    region: str
    settings: Mapping[str, Any]
    kinds: Mapping[str, Mapping[str, Any]]
    domain: str = ""
    ports: Ports = field(default_factory=Ports)
    models: tuple[str, ...] = ()
    # The lifecycle hook that engines complete (vllm_lifecycle_hook); "" for none.
    hook: str = ""

    @property
    def base(self) -> str:
        """What the names of its resources begin with."""
        return f"{STACK}-{self.environment}"

    @property
    def own_network(self) -> bool:
        """Whether VPC and subnets are made."""
        return not self.settings["subnet_ids"]

    def tags(self, **more: str) -> dict[str, str]:
        """The tags by which inventory and deprovision find a resource."""
        return {"Stack": STACK, "Environment": self.environment, **more}


def with_defaults(spec: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the defaults of a spec."""
    options = SPECS[spec]["options"]
    return {name: given.get(name, option.get("default")) for name, option in options.items()}


def subnets(fleet: Fleet) -> list[dict[str, str]]:
    """The subnets to make, one per zone."""
    if not fleet.own_network:
        return []
    network = ipaddress.ip_network(fleet.settings["network_cidr"])
    parts = network.subnets(prefixlen_diff=SUBNET_BITS)
    return [
        {"zone": zone, "cidr": str(part), "name": f"{fleet.base}-{zone}"}
        for zone, part in zip(fleet.settings["zones"], parts, strict=False)
    ]


def hosts(fleet: Fleet) -> list[Host]:
    """The instances, spread over the zones kind by kind. Those of Auto Scaling groups have no names of their own, and are left out."""
    return [
        Host(
            name=f"{name}-{number}",
            kind=name,
            tiers=tuple(tier for tier in TIERS if tier in kind["tiers"]),
            instance_type=kind["type"],
            image=kind["image"],
            zone=zones_of(fleet, kind)[(number - 1) % len(zones_of(fleet, kind))],
            disk_gb=kind["disk_gb"],
            spot=kind["spot"],
            cluster=kind["cluster"] or kind["efa"],
            efa=kind["efa"],
        )
        for name, kind in fleet.kinds.items()
        if not kind["auto_scaling"]
        # `numbers` is set where hosts are there already, whose numbers may have gaps (scaling.numbers).
        for number in kind.get("numbers", range(1, kind["count"] + 1))
    ]


def zones_of(fleet: Fleet, kind: Mapping[str, Any]) -> list[str]:
    """The zones of a kind's hosts. Adapters reach no other zone."""
    zones: list[str] = fleet.settings["zones"]
    return zones[:1] if kind["efa"] else zones


def tiers(fleet: Fleet) -> list[str]:
    """The tiers that the fleet has hosts of."""
    return [tier for tier in TIERS if any(tier in kind["tiers"] for kind in fleet.kinds.values())]


def group_name(fleet: Fleet, tier: str) -> str:
    """The security group of a tier, or of the hosts of a cluster."""
    return f"{fleet.base}-{tier}"


def security_groups(fleet: Fleet) -> list[dict[str, Any]]:
    """The security groups with their rules, each after those that it admits. A tier admits only the one in front of it."""
    rules: dict[str, list[dict[str, Any]]] = {
        "nginx": [_rule(port, port, cidr=cidr) for port in (80, 443) for cidr in fleet.settings["web_from"]],
        "proxy": [_rule(*fleet.ports.proxy, group=group_name(fleet, "nginx"))],
        "vllm": [_rule(port, port, group=group_name(fleet, "proxy")) for port in sorted(set(fleet.ports.engines))],
    }
    if fleet.ports.store:
        rules["proxy"].append(_rule(fleet.ports.store, fleet.ports.store, group=group_name(fleet, "proxy")))
    ssh = [_rule(22, 22, cidr=cidr) for cidr in fleet.settings["ssh_from"]]
    # A group that another one admits has to be there, even if no host is in it.
    found = [{"name": group_name(fleet, tier), "rules": [*rules[tier], *ssh]} for tier in TIERS]
    if any(kind["cluster"] or kind["efa"] for kind in fleet.kinds.values()):
        name = group_name(fleet, "cluster")
        # Adapters need a rule for what goes out, too: that all addresses are allowed is not enough for them.
        found.append({"name": name, "rules": [{"proto": "all", "group": name, "out": out} for out in (False, True)]})
    return found


def _rule(first: int, last: int, cidr: str = "", group: str = "") -> dict[str, Any]:
    return {"proto": "tcp", "first": first, "last": last} | ({"cidr": cidr} if cidr else {"group": group})


def groups_of(fleet: Fleet, host: Host) -> list[str]:
    """The security groups of an instance."""
    return [group_name(fleet, tier) for tier in [*host.tiers, *(["cluster"] if host.cluster else [])]]


def placement_group_name(fleet: Fleet, kind: str) -> str:
    """The placement group of a kind of hosts with Elastic Fabric Adapters."""
    return f"{fleet.base}-{kind}"


def roles(fleet: Fleet) -> list[dict[str, Any]]:
    """The role of each kind of hosts, with no more rights than it needs."""
    found = []
    for name, kind in fleet.kinds.items():
        is_engine = "vllm" in kind["tiers"]
        parts = {
            "models in S3": bucket_statements(fleet.models) if is_engine else [],
            "its Auto Scaling group's hook": hook_statements(fleet, name) if is_engine else [],
            "the metric of waiting requests": metric_statements(fleet) if "proxy" in kind["tiers"] else [],
        }
        statements = [statement for part in parts.values() for statement in part]
        policy = {"Version": "2012-10-17", "Statement": statements} if statements else None
        rights = [words for words, part in parts.items() if part]
        found.append({"name": role_name(fleet, name), "policy": policy, "rights": rights})
    return found


def role_name(fleet: Fleet, kind: str) -> str:
    """The role and the instance profile of a kind of hosts. Roles are the account's, so the region is in the name."""
    return f"{fleet.base}-{fleet.region}-{kind}"


def bucket_statements(models: tuple[str, ...]) -> list[dict[str, Any]]:
    """What reading models from S3 needs."""
    found: list[dict[str, Any]] = []
    for model in sorted({model for model in models if model.startswith("s3://")}):
        bucket, _, prefix = model.removeprefix("s3://").rstrip("/").partition("/")
        below = f"{prefix}/*" if prefix else "*"
        found += [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/{below}"},
            {
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": f"arn:aws:s3:::{bucket}",
                "Condition": {"StringLike": {"s3:prefix": [below, prefix] if prefix else ["*"]}},
            },
        ]
    return found


def scaling_group_name(fleet: Fleet, kind: str) -> str:
    """The Auto Scaling group of a kind of hosts."""
    return f"{fleet.base}-{kind}"


def hook_statements(fleet: Fleet, kind: str) -> list[dict[str, Any]]:
    """What an engine host needs to complete and prolong the lifecycle hook of its own group: that group by its name and tags, and no other.

    Which group that is, it has to ask, and AWS lets nobody limit that question to some of the groups.
    """
    if not fleet.hook:
        return []
    group = f"autoScalingGroup:*:autoScalingGroupName/{scaling_group_name(fleet, kind)}"
    tags = {f"aws:ResourceTag/{key}": value for key, value in fleet.tags().items()}
    return [
        {"Effect": "Allow", "Action": "autoscaling:DescribeAutoScalingInstances", "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"],
            "Resource": f"arn:aws:autoscaling:{fleet.region}:*:{group}",
            "Condition": {"StringEquals": tags},
        },
    ]


def metric_statements(fleet: Fleet) -> list[dict[str, Any]]:
    """What a proxy host needs to send the metric that an Auto Scaling group follows: CloudWatch's agent writes it into a log group."""
    if not any(kind["auto_scaling"].get("target_waiting") for kind in fleet.kinds.values()):
        return []
    actions = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    where = f"arn:aws:logs:{fleet.region}:*:log-group:/{STACK}/{fleet.environment}/proxies"
    return [{"Effect": "Allow", "Action": actions, "Resource": [where, f"{where}:*"]}]


def canonical(document: Any) -> str:
    """A policy for comparison."""
    return json.dumps(document, sort_keys=True)
