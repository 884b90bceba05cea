"""What has to be made of a fleet, or removed, and what it costs: the wanted resources beside those that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import adapters, groups, prices
from .present import Row, name_of, tags_of
from .wanted import (
    SSM_POLICY,
    Fleet,
    Host,
    canonical,
    group_name,
    groups_of,
    hosts,
    placement_group_name,
    role_name,
    roles,
    scaling_group_name,
    security_groups,
    subnets,
)

# One thing to make or remove: its `kind` (a list of the tasks that make it), `name`, `text` for people, and settings for the task.
Step = dict[str, Any]


def to_make(fleet: Fleet, present: Row, images: Mapping[str, Row], public_key: str) -> list[Step]:
    """What is missing or differs, in the order in which it is made."""
    steps = [
        *_network(fleet, present),
        *_key(fleet, present, public_key),
        *_groups(fleet, present),
        *_roles(fleet, present),
        *_placement_groups(fleet, present),
        *_templates(fleet, present),
        *_group_templates(fleet, present, images, public_key),
        *_scaling_groups(fleet, present),
        *_instances(fleet, present, images),
        *_entry(fleet, present),
    ]
    return [*steps, *_record(fleet, present, bool(steps))]


def group_of(row: Row) -> str:
    """The Auto Scaling group of an instance; "" if it is in none."""
    return tags_of(row).get("aws:autoscaling:groupName", "")


def missing_hosts(fleet: Fleet, present: Row) -> list[Host]:
    """The hosts that have no instance yet."""
    there = {name_of(row) for row in present["instances"]}
    return [host for host in hosts(fleet) if host.name not in there]


def surplus(fleet: Fleet, present: Row) -> list[str]:
    """Instances that nobody wants any more, or of another type than is wanted: reported, and left alone."""
    by_name = {host.name: host for host in hosts(fleet)}
    found = []
    for row in present["instances"]:
        name, identity = name_of(row), row["InstanceId"]
        host = by_name.get(name)
        if group_of(row):
            continue
        if host is None:
            found.append(
                f"instance {identity} ({name or 'no name'}) is not wanted any more: drain it, and terminate it"
            )
        elif host.instance_type not in (row["InstanceType"], "planner"):
            found.append(
                f"instance {identity} ({name}) is {row['InstanceType']}, and {host.instance_type} is wanted: drain and terminate it, and run this again"
            )
        elif host.efa and not any("efa" in i.get("InterfaceType", "") for i in row.get("NetworkInterfaces", [])):
            found.append(
                f"instance {identity} ({name}) has no Elastic Fabric Adapter, and gets none while it exists: drain and terminate it, and run this again"
            )
    return found


def _step(kind: str, name: str, text: str, usd_per_hour: float | None = 0.0, **settings: Any) -> Step:
    return {"kind": kind, "name": name, "text": text, "usd_per_hour": usd_per_hour, **settings}


def _network(fleet: Fleet, present: Row) -> Iterator[Step]:
    if not fleet.own_network:
        return
    if not present["vpcs"]:
        yield _step("network", fleet.base, f"VPC {fleet.base} ({fleet.settings['network_cidr']})")
    there = {row["CidrBlock"] for row in present["subnets"]}
    for row in subnets(fleet):
        if row["cidr"] not in there:
            yield _step("network", row["name"], f"subnet {row['name']} ({row['cidr']})")
    if not any(row["Attachments"] for row in present["gateways"]):
        yield _step("network", fleet.base, f"internet gateway {fleet.base}")
    wanted = {row["SubnetId"] for row in present["subnets"]}
    routed = [
        table
        for table in present["route_tables"]
        if any(route.get("GatewayId", "").startswith("igw-") for route in table["Routes"])
        and {link.get("SubnetId") for link in table["Associations"]} >= wanted
    ]
    if not routed or len(present["subnets"]) < len(subnets(fleet)):
        yield _step("network", fleet.base, f"route table {fleet.base}, from the subnets to the internet")


def _key(fleet: Fleet, present: Row, public_key: str) -> Iterator[Step]:
    there = [" ".join(row.get("PublicKey", "").split()[:2]) for row in present["keys"] if row["KeyName"] == fleet.base]
    if public_key and there != [" ".join(public_key.split()[:2])]:
        yield _step(
            "key", fleet.base, f"key pair {fleet.base}" + (": another key, which new hosts get" if there else "")
        )


def _groups(fleet: Fleet, present: Row) -> Iterator[Step]:
    names = {row["GroupId"]: row["GroupName"] for row in present["groups"]}
    there = {row["GroupName"]: row for row in present["groups"]}
    for group in security_groups(fleet):
        wanted = {_rule_in_words(rule) for rule in group["rules"]}
        row = there.get(group["name"])
        now = _rules_of(row, names) if row else set()
        # Rules for what goes out are added, and never removed.
        surplus_rules = {rule for rule in now - wanted if " from " in rule}
        words = [f"+ {rule}" for rule in sorted(wanted - now)] + [f"- {rule}" for rule in sorted(surplus_rules)]
        if row is None or words:
            text = f"security group {group['name']}" + ("" if words else ", which admits nobody")
            yield _step("group", group["name"], text, details=words)


def _rule_in_words(rule: Mapping[str, Any]) -> str:
    ports = "all ports" if rule["proto"] == "all" else _ports_in_words(rule["first"], rule["last"])
    return f"{ports} {'to' if rule.get('out') else 'from'} {rule.get('cidr') or rule['group']}"


def _ports_in_words(first: int, last: int) -> str:
    return f"tcp {first}" if first == last else f"tcp {first}-{last}"


def _rules_of(row: Row, names: Mapping[str, str]) -> set[str]:
    """The rules that a security group has."""
    found = set()
    for rule, way in [*((r, "from") for r in row["IpPermissions"]), *((r, "to") for r in row["IpPermissionsEgress"])]:
        ports = "all ports" if rule["IpProtocol"] == "-1" else _ports_in_words(rule["FromPort"], rule["ToPort"])
        if rule["IpProtocol"] not in ("tcp", "-1"):
            ports = f"{rule['IpProtocol']} {rule.get('FromPort')}-{rule.get('ToPort')}"
        sources = [r["CidrIp"] for r in rule.get("IpRanges", [])] + [r["CidrIpv6"] for r in rule.get("Ipv6Ranges", [])]
        sources += [names.get(pair["GroupId"], pair["GroupId"]) for pair in rule.get("UserIdGroupPairs", [])]
        found |= {f"{ports} {way} {source}" for source in sources}
    return found


def module_rules(group: Mapping[str, Any], out: bool = False) -> list[dict[str, Any]]:
    """A group's rules for what comes in, or goes out, as amazon.aws.ec2_security_group takes them."""
    found = []
    for rule in (rule for rule in group["rules"] if rule.get("out", False) == out):
        source = (
            {"group_name": rule["group"]}
            if "group" in rule
            else {"cidr_ipv6" if ":" in rule["cidr"] else "cidr_ip": rule["cidr"]}
        )
        ports = {} if rule["proto"] == "all" else {"from_port": rule["first"], "to_port": rule["last"]}
        found.append({"proto": rule["proto"], **ports, **source})
    return found


def _roles(fleet: Fleet, present: Row) -> Iterator[Step]:
    there = {row["name"]: row for row in present["roles"]}
    for role in roles(fleet):
        row = there.get(role["name"])
        same = row and row["attached"] == [SSM_POLICY] and canonical(row["policy"]) == canonical(role["policy"])
        if not same:
            rights = ["Systems Manager", *role["rights"]]
            yield _step(
                "role",
                role["name"],
                f"role and instance profile {role['name']} ({', '.join(rights)})",
                policy=role["policy"],
            )


def _placement_groups(fleet: Fleet, present: Row) -> Iterator[Step]:
    there = {row["GroupName"] for row in present["placement_groups"]}
    for kind in fleet.kinds:
        name = placement_group_name(fleet, kind)
        if fleet.kinds[kind]["efa"] and fleet.kinds[kind]["count"] and name not in there:
            yield _step("placement_group", name, f"placement group {name}, whose hosts are close to each other")


def _templates(fleet: Fleet, present: Row) -> Iterator[Step]:
    there = {row["LaunchTemplateName"] for row in present["templates"]}
    missing = {host.kind: host for host in missing_hosts(fleet, present)}
    for name, kind in fleet.kinds.items():
        template = f"{fleet.base}-{name}"
        if kind["auto_scaling"]:
            continue
        settings = {"spot": kind["spot"], "interfaces": [], "groups": [], "zone": "", "placement_group": ""}
        what = ["spot instances"] if kind["spot"] else []
        if kind["efa"] and name in missing:
            # It names subnet and security groups, so each new host gets what they are now.
            host = missing[name]
            settings["interfaces"] = adapters.interfaces(host.instance_type)
            settings |= {"groups": groups_of(fleet, host), "zone": host.zone}
            settings["placement_group"] = placement_group_name(fleet, name)
            what.append(_adapters_in_words(host.instance_type))
        elif kind["efa"] or not kind["spot"] or template in there:
            continue
        yield _step("template", template, f"launch template {template}, for {' with '.join(what)}", **settings)


def _group_templates(fleet: Fleet, present: Row, images: Mapping[str, Row], public_key: str) -> Iterator[Step]:
    for name in groups.kinds_of(fleet):
        template, kind = f"{fleet.base}-{name}", fleet.kinds[name]
        data = groups.launch_data(fleet, name, images.get(kind["image"], {}), bool(public_key))
        its = groups.security_groups_of(fleet, name)
        digest = groups.digest(data, its, kind["spot"])
        if present["template_versions"].get(template) == digest:
            continue
        is_there = template in present["template_versions"]
        what = f"{kind['type']}{' (spot)' if kind['spot'] else ''}, {kind['disk_gb']} GiB, image {data['ImageId']}"
        text = f"launch template {template}{', changed' if is_there else ''}: {what}"
        settings = {"interfaces": [], "zone": "", "placement_group": "", "spot": kind["spot"], "groups": its}
        yield _step("template", template, text, data=data, digest=digest, **settings)


def _scaling_groups(fleet: Fleet, present: Row) -> Iterator[Step]:
    there = {row["name"]: row for row in present["scaling_groups"] if row["ours"]}
    rows = present["given_subnets"] or present["subnets"]
    ids = [row["SubnetId"] for row in rows if row["AvailabilityZone"] in fleet.settings["zones"]]
    for kind in groups.kinds_of(fleet):
        name = scaling_group_name(fleet, kind)
        words = groups.differences(fleet, kind, there.get(name), ids)
        if words:
            settings = {"wanted": groups.wanted(fleet, kind), "host": kind, "tier": "vllm"}
            yield _step("scaling_group", name, f"Auto Scaling group {name}", None, details=words, **settings)


def _adapters_in_words(instance_type: str) -> str:
    count = sum(row["InterfaceType"] != "interface" for row in adapters.interfaces(instance_type))
    return f"{count} Elastic Fabric Adapter{'s' if count > 1 else ''}"


def _instances(fleet: Fleet, present: Row, images: Mapping[str, Row]) -> Iterator[Step]:
    for row in present["instances"]:
        if row["State"]["Name"] in ("stopped", "stopping") and name_of(row) in {host.name for host in hosts(fleet)}:
            yield _step(
                "start",
                name_of(row),
                f"start instance {name_of(row)} ({row['InstanceId']})",
                None,
                id=row["InstanceId"],
            )
    for host in missing_hosts(fleet, present):
        image = images.get(host.image, {})
        extras = [*(["spot"] if host.spot else []), *([_adapters_in_words(host.instance_type)] if host.efa else [])]
        in_words = f" ({', '.join(extras)})" if extras else ""
        what = (
            f"{host.instance_type}{in_words} in {host.zone}, "
            f"{host.disk_gb} GiB, image {image.get('Name') or host.image}"
        )
        yield _step(
            "instance",
            host.name,
            f"instance {host.name} ({','.join(host.tiers)}): {what}",
            None,
            instance_type=host.instance_type,
            image=image.get("ImageId"),
            root_device=image.get("RootDeviceName", "/dev/xvda"),
            zone=host.zone,
            disk_gb=host.disk_gb,
            tiers=",".join(host.tiers),
            groups=groups_of(fleet, host),
            profile=role_name(fleet, host.kind),
            template=f"{fleet.base}-{host.kind}" if host.spot or host.efa else None,
            efa=host.efa,
        )


def _web_hosts(fleet: Fleet) -> list[str]:
    return [host.name for host in hosts(fleet) if "nginx" in host.tiers]


def _entry(fleet: Fleet, present: Row) -> Iterator[Step]:
    instances = {name_of(row): row["InstanceId"] for row in present["instances"]}
    web = _web_hosts(fleet)
    if fleet.settings["entry"] == "elastic_ip":
        by_name = {name_of(row): row for row in present["addresses"]}
        for name in web:
            row = by_name.get(name)
            if row is None or row.get("InstanceId") != instances.get(name) or name not in instances:
                ip = row["PublicIp"] if row else None
                cost = 0.0 if row else prices.PUBLIC_IPV4
                yield _step("address", name, f"Elastic IP {ip or ''}for {name}".replace("  ", " "), cost, public_ip=ip)
    if fleet.settings["entry"] == "nlb" and web:
        by_group = {row["name"]: row["targets"] for row in present["target_groups"] if row["ours"]}
        for port in (80, 443):
            name = f"{fleet.base}-{port}"
            wanted = sorted(instances.get(host, host) for host in web)
            if by_group.get(name) != wanted:
                yield _step("target_group", name, f"target group {name}: {', '.join(web)}", port=port)
        if not any(row["ours"] for row in present["balancers"]):
            yield _step("balancer", fleet.base, f"Network Load Balancer {fleet.base}", prices.LOAD_BALANCER)


def _record(fleet: Fleet, present: Row, more: bool) -> Iterator[Step]:
    """The record follows the entry, whose addresses are known only when it has been made."""
    if not fleet.settings["dns_zone"] or fleet.settings["entry"] == "none":
        return
    if record_values(fleet, present) != current_values(present["record"]) or (
        more and not record_values(fleet, present)
    ):
        yield _step("record", fleet.domain, f"record {fleet.domain} in zone {fleet.settings['dns_zone']}")


def record_values(fleet: Fleet, present: Row) -> list[str]:
    """What the domain's record has to say: addresses, or the load balancer's name."""
    if fleet.settings["entry"] == "nlb":
        return [row["DNSName"].lower().rstrip(".") for row in present["balancers"] if row["ours"]]
    web = _web_hosts(fleet)
    return sorted(row["PublicIp"] for row in present["addresses"] if name_of(row) in web)


def current_values(record: Row | None) -> list[str]:
    """What the record says."""
    if record is None:
        return []
    if "AliasTarget" in record:
        return [record["AliasTarget"]["DNSName"].lower().rstrip(".").removeprefix("dualstack.")]
    return sorted(value["Value"] for value in record["ResourceRecords"])


def costs(fleet: Fleet, with_gpus: Mapping[str, Any], present: Row) -> list[tuple[str, float | None]]:
    """What the whole fleet costs per hour, part by part; None where a price is not known."""
    kinds: dict[tuple[str, str, bool], int] = {}
    for host in hosts(fleet):
        there = next(
            (row["InstanceType"] for row in present["instances"] if name_of(row) == host.name), host.instance_type
        )
        kinds[host.kind, there, host.spot] = kinds.get((host.kind, there, host.spot), 0) + 1
    found: list[tuple[str, float | None]] = []
    for (kind, instance_type, spot), count in kinds.items():
        price = prices.usd_per_hour_of_type(instance_type, with_gpus)
        words = f"{count} x {instance_type} ({kind}{', spot: at most' if spot else ''})"
        found.append((words, None if price is None else price * count))
    for name in groups.kinds_of(fleet):
        pool, size = fleet.kinds[name], fleet.kinds[name]["auto_scaling"]
        price = prices.usd_per_hour_of_type(pool["type"], with_gpus)
        around = prices.usd_per_hour_of_disk(pool["disk_gb"]) + (prices.PUBLIC_IPV4 if fleet.own_network else 0.0)
        its = f"{name}, of {size['min']} to {size['max']}{', spot: at most' if pool['spot'] else ''}"
        words = f"{pool['count']} x {pool['type']} with disk{' and address' if fleet.own_network else ''} ({its})"
        found.append((words, None if price is None else pool["count"] * (price + around)))
    disks = sum(host.disk_gb for host in hosts(fleet))
    if disks:
        found.append((f"{disks} GiB of gp3 volumes", prices.usd_per_hour_of_disk(disks)))
    addresses = len(hosts(fleet)) if fleet.own_network else 0
    if fleet.settings["entry"] == "elastic_ip" and not fleet.own_network:
        addresses = len(_web_hosts(fleet))
    if addresses:
        found.append((f"{addresses} public IPv4 addresses", addresses * prices.PUBLIC_IPV4))
    if fleet.settings["entry"] == "nlb":
        found.append(("Network Load Balancer, without traffic", prices.LOAD_BALANCER))
    return found


# In the order in which they can be removed: what uses before what is used.
REMOVED = (
    "record",
    "balancer",
    "target_group",
    "scaling_group",
    "instance",
    "address",
    "volume",
    "template",
    "placement_group",
    "group",
    "role",
    "key",
    "network",
)


def to_remove(fleet: Fleet, present: Row) -> list[Step]:
    """Everything that carries the fleet's tags, in the order in which it can be removed."""
    found: dict[str, list[Step]] = {kind: [] for kind in REMOVED}

    def add(kind: str, words: str, name: str, **settings: Any) -> None:
        found[kind].append(_step(kind, name, f"{words} {name}", **settings))

    ips = {row["PublicIp"] for row in present["addresses"]}
    names = {row["DNSName"].lower() for row in present["balancers"] if row["ours"]}
    now = set(current_values(present["record"]))
    if now and now <= ips | names:
        add("record", "record", fleet.domain)
    for kind, key, words in (
        ("balancer", "balancers", "Network Load Balancer"),
        ("target_group", "target_groups", "target group"),
    ):
        for row in present[key]:
            if row["ours"]:
                add(kind, words, row["name"], arn=row["arn"])
    for row in present["scaling_groups"]:
        if row["ours"]:
            add("scaling_group", "Auto Scaling group", row["name"])
    for row in present["instances"]:
        add("instance", f"instance {name_of(row)}: {row['InstanceType']},", row["InstanceId"])
    for row in present["addresses"]:
        add("address", "Elastic IP", row["PublicIp"])
    roots = {
        m["Ebs"]["VolumeId"]
        for row in present["instances"]
        for m in row["BlockDeviceMappings"]
        if m["Ebs"].get("DeleteOnTermination")
    }
    for row in present["volumes"]:
        if row["VolumeId"] not in roots:
            add("volume", f"volume with {row['Size']} GiB", row["VolumeId"])
    for row in present["templates"]:
        add("template", "launch template", row["LaunchTemplateName"])
    for row in present["placement_groups"]:
        add("placement_group", "placement group", row["GroupName"])
    order = [group_name(fleet, tier) for tier in ("cluster", "vllm", "proxy", "nginx")]
    for row in sorted(present["groups"], key=lambda g: order.index(g["GroupName"]) if g["GroupName"] in order else -1):
        add("group", "security group", row["GroupName"], id=row["GroupId"])
    for row in present["roles"]:
        if row["ours"]:
            add("role", "role and instance profile", row["name"], has_policy=row["policy"] is not None)
    for row in present["keys"]:
        add("key", "key pair", row["KeyName"])
    for row in present["route_tables"]:
        add("network", "route table", row["RouteTableId"], what="route_table", vpc=row["VpcId"])
    for row in present["subnets"]:
        add("network", "subnet", row["SubnetId"], what="subnet", vpc=row["VpcId"], cidr=row["CidrBlock"])
    for row in present["gateways"]:
        for link in row["Attachments"]:
            add("network", "internet gateway", row["InternetGatewayId"], what="gateway", vpc=link["VpcId"])
    for row in present["vpcs"]:
        add("network", "VPC", row["VpcId"], what="vpc", vpc=row["VpcId"])
    return [step for kind in REMOVED for step in found[kind]]


def kept(present: Row) -> list[str]:
    """What deprovisioning leaves, since it may be wanted later, and its cost goes on."""
    return [
        f"image {row['ImageId']} ({name_of(row) or row.get('Name', '')}) is kept, and its snapshots cost: deregister it and delete them, "
        "or keep it for the next fleet"
        for row in present["images"]
    ]


def report_of_making(fleet: Fleet, steps: list[Step], notices: list[str], parts: list[tuple[str, float | None]]) -> str:
    """What will be made, and what the fleet costs then."""
    lines = [f"Fleet {fleet.environment} in {fleet.region}:"]
    for step in steps:
        lines += [f"  + {step['text']}", *(f"      {word}" for word in step.get("details", []))]
    lines += [] if steps else ["  everything is there"]
    lines += [f"  ! {notice}" for notice in notices]
    total = sum(price for _, price in parts if price is not None)
    lines += [
        "",
        "Costs by the prices of us-east-1, July 2026, without traffic (US dollars per hour, per month of 730 hours):",
    ]
    lines += [f"  {hour_and_month(price)}  {words}" for words, price in parts]
    unknown = any(price is None for _, price in parts)
    lines.append(f"  {hour_and_month(total)}  in all{', without what has no known price' if unknown else ''}")
    return "\n".join(lines)


def report_of_removing(fleet: Fleet, steps: list[Step], notices: list[str]) -> str:
    """What will be removed."""
    lines = [f"Fleet {fleet.environment} in {fleet.region}:"]
    lines += [f"  - {step['text']}" for step in steps] or ["  nothing carries its tags"]
    return "\n".join([*lines, *(f"  ! {notice}" for notice in notices)])


def hour_and_month(price: float | None) -> str:
    """A price per hour and per month."""
    return f"{'?':>9} {'?':>10}" if price is None else f"{price:9.4f} {price * prices.HOURS_OF_A_MONTH:10.2f}"
