"""What is wrong with a wanted fleet: first by its variables alone, then by what AWS has and offers."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from . import adapters, groups
from .present import Row, name_of
from .wanted import MOST_HOSTS, SUBNET_BITS, TIERS, Fleet, Host, hosts

# As long as the names of load balancers (32 characters) and roles (64) allow.
_ENVIRONMENT = re.compile(r"[a-z][a-z0-9-]{0,12}[a-z0-9]|[a-z]")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,11}")


def of_variables(fleet: Fleet) -> Iterator[str]:
    """What the variables say wrong, of the right form as they are."""
    where = f"stack_fleets.{fleet.environment}"
    if not _ENVIRONMENT.fullmatch(fleet.environment):
        yield f"environment {fleet.environment!r} must be at most 14 lower-case letters, digits and '-', and begin with a letter"
    yield from _of_zones(where, fleet)
    yield from _of_networks(where, fleet)
    for name, kind in fleet.kinds.items():
        yield from _of_kind(f"{where}.hosts.{name}", name, kind)
        if kind["auto_scaling"]:
            yield from groups.of_variables(f"{where}.hosts.{name}", fleet, name)
        if kind["efa"]:
            yield from _of_adapters(f"{where}.hosts.{name}", fleet, kind)
    if fleet.settings["dns_zone"] and not f".{fleet.domain}".endswith(f".{fleet.settings['dns_zone'].rstrip('.')}"):
        yield f"{where}.dns_zone is {fleet.settings['dns_zone']}, but stack_domain is {fleet.domain or 'empty'}: the domain has to be in the zone"
    if fleet.settings["entry"] != "none" and not any("nginx" in kind["tiers"] for kind in fleet.kinds.values()):
        yield f"{where}.entry is {fleet.settings['entry']}, but no host is of the tier nginx: give one that tier, or set entry to none"


def _of_zones(where: str, fleet: Fleet) -> Iterator[str]:
    zones, given = fleet.settings["zones"], fleet.settings["subnet_ids"]
    if not zones:
        yield f"{where}.zones is empty: name a zone, such as {fleet.region}a"
    for zone in zones:
        if not zone.startswith(fleet.region):
            yield f"{where}.zones has {zone}, which is not in region {fleet.region}: export AWS_REGION, or name zones such as {fleet.region}a"
    for zone, count in Counter(zones).items():
        if count > 1:
            yield f"{where}.zones has {zone} {count} times: name it once"
    if given and len(given) != len(zones):
        yield f"{where}.subnet_ids has {len(given)} subnets for {len(zones)} zones: name one subnet per zone, in the order of zones"


def _of_networks(where: str, fleet: Fleet) -> Iterator[str]:
    named = [(name, cidr) for name in ("web_from", "ssh_from") for cidr in fleet.settings[name]]
    for name, cidr in [*named, ("network_cidr", fleet.settings["network_cidr"])]:
        try:
            network = ipaddress.ip_network(cidr)
        except ValueError as error:
            yield f"{where}.{name}: {error}: write a network such as 10.20.0.0/16"
            continue
        if name == "network_cidr" and not (network.version == 4 and 16 <= network.prefixlen <= 28 - SUBNET_BITS):
            yield f"{where}.network_cidr is {cidr}: use an IPv4 network of /16 to /{28 - SUBNET_BITS}, of which each zone gets a sixteenth"
    if len(fleet.settings["zones"]) > 2**SUBNET_BITS:
        yield f"{where}.zones has more than {2**SUBNET_BITS} zones"


def _of_kind(where: str, name: str, kind: Mapping[str, Any]) -> Iterator[str]:
    if not _KIND.fullmatch(name) or name in (*TIERS, "cluster", "all"):
        yield f"{where}: its name must be at most 12 lower-case letters, digits and '-', begin with a letter, and be none of {', '.join(TIERS)}, cluster, all"
    unknown = [tier for tier in kind["tiers"] if tier not in TIERS]
    if unknown or not kind["tiers"]:
        yield f"{where}.tiers has {', '.join(map(repr, unknown)) or 'nothing'}: use {', '.join(TIERS)}, or several of them"
    if not 0 <= kind["count"] <= MOST_HOSTS:
        yield f"{where}.count is {kind['count']}: use 0 to {MOST_HOSTS}"
    if not 8 <= kind["disk_gb"] <= 16384:
        yield f"{where}.disk_gb is {kind['disk_gb']}: use 8 to 16384"
    if kind["types"] and kind["type"] != "planner":
        yield f"{where}.types is for type planner, but type is {kind['type']}: leave one of them out"
    if kind["type"] == "planner" and "vllm" not in kind["tiers"]:
        yield f"{where}.type is planner, but these hosts run no engine: name a type"
    if not re.fullmatch(r"ami-[0-9a-f]{8,17}|/\S+|baked", kind["image"]):
        yield f"{where}.image is {kind['image']!r}: write ami-…, the path of an SSM parameter (/aws/service/…), or baked"


def _of_adapters(where: str, fleet: Fleet, kind: Mapping[str, Any]) -> Iterator[str]:
    """What stands against Elastic Fabric Adapters. The planner takes only types that have them, and its choice is checked, too."""
    if kind["tiers"] != ["vllm"]:
        yield (
            f"{where}.efa is true, but tiers is {', '.join(kind['tiers'])}: only engines use Elastic Fabric Adapters, "
            "so give them hosts of their own (tiers: [vllm])"
        )
    if kind["type"] == "planner":
        return
    count = len(adapters.interfaces(kind["type"]))
    if not count:
        yield f"{where}.efa is true, but {kind['type']} has no Elastic Fabric Adapter: take one of {', '.join(adapters.TYPES)}, or leave efa out"
    if count > 1 and fleet.own_network:
        yield (
            f"{where}.efa is true, and {kind['type']} has {count} network interfaces then, so AWS gives it no public address: "
            "name private subnets with a NAT gateway in subnet_ids"
        )


def of_account(
    fleet: Fleet, present: Row, offers: Mapping[str, Row], images: Mapping[str, Row], missing: list[Host]
) -> Iterator[str]:
    """What AWS does not have, does not offer, or has already for somebody else."""
    where = f"stack_fleets.{fleet.environment}"
    for taken in present["taken"]:
        yield f"the name is taken: {taken} has not the tags Stack and Environment of this fleet: rename or remove it, or give it the tags if it is yours"
    yield from _of_subnets(where, fleet, present, missing)
    if fleet.settings["dns_zone"] and not present["zone"]:
        yield f"{where}.dns_zone: Route 53 has no public hosted zone {fleet.settings['dns_zone']}: make it, or leave dns_zone out"
    seen = set()
    for host in [*missing, *groups.examples(fleet)]:
        image, offer = images.get(host.image), offers.get(host.instance_type)
        for problem in _of_host(f"{where}.hosts.{host.kind}", fleet, host, image, offer):
            if problem not in seen:
                seen.add(problem)
                yield problem


def _of_host(where: str, fleet: Fleet, host: Host, image: Row | None, offer: Row | None) -> Iterator[str]:
    if offer is None:
        yield f"{where}.type: region {fleet.region} has no type {host.instance_type}: check the name, or name another type"
    elif host.zone not in offer["zones"]:
        yield f"{where}.type: {host.instance_type} is not offered in {host.zone}, only in {', '.join(sorted(offer['zones']))}: name other zones or another type"
    elif image and image["Architecture"] not in offer["architectures"]:
        yield (
            f"{where}: image {host.image} is for {image['Architecture']}, but {host.instance_type} runs {', '.join(offer['architectures'])}: "
            "name another image or type"
        )


def _of_subnets(where: str, fleet: Fleet, present: Row, missing: list[Host]) -> Iterator[str]:
    by_zone = Counter(host.zone for host in missing)
    there = {row["SubnetId"]: row for row in present["given_subnets"]}
    for zone, identity in zip(fleet.settings["zones"], fleet.settings["subnet_ids"], strict=False):
        row = there.get(identity)
        if row is None:
            yield f"{where}.subnet_ids has {identity}, which is not there in region {fleet.region}: check the id"
        elif row["AvailabilityZone"] != zone:
            yield f"{where}.subnet_ids has {identity} for {zone}, but it is in {row['AvailabilityZone']}: name one subnet per zone, in the order of zones"
    if len({row["VpcId"] for row in there.values()}) > 1:
        yield f"{where}.subnet_ids has subnets of several VPCs: name those of one"
    for row in there.values() if there else present["subnets"]:
        needed, free = by_zone[row["AvailabilityZone"]], row["AvailableIpAddressCount"]
        if needed > free:
            yield (
                f"subnet {row['SubnetId']} in {row['AvailabilityZone']} has {free} free addresses, but {needed} hosts are to be made there: "
                "name a larger subnet in subnet_ids, or more zones"
            )


def of_names(fleet: Fleet, present: Row) -> Iterator[str]:
    """Two instances with the name of one host."""
    for host in hosts(fleet):
        its = [row["InstanceId"] for row in present["instances"] if name_of(row) == host.name]
        if len(its) > 1:
            yield f"{len(its)} instances are called {host.name} ({', '.join(its)}): give all but one another Name"
