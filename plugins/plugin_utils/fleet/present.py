"""What AWS has of a fleet, found by its tags, and what it offers. Asks only, and changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from .wanted import STACK, Fleet

with contextlib.suppress(ImportError):  # the action plugin reports the missing library
    from botocore.exceptions import BotoCoreError, ClientError

Row = dict[str, Any]
# A client of boto3 by the name of its service.
Clients = Callable[[str], Any]
NOT_THERE = {
    "NoSuchEntity",
    "InvalidKeyPair.NotFound",
    "LoadBalancerNotFound",
    "TargetGroupNotFound",
    "ParameterNotFound",
}


class FleetError(Exception):
    """Sentences that say what is wrong and what to do."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read(clients: Clients, fleet: Fleet) -> Row:
    """All resources of the fleet's environment. Those in `taken` have a name of the fleet's, and belong to somebody else."""
    ec2 = clients("ec2")
    ours = [
        {"Name": "tag:Stack", "Values": [STACK]},
        {"Name": "tag:Environment", "Values": [fleet.environment]},
    ]
    alive = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    reservations = _pages(ec2, "describe_instances", "Reservations", Filters=[*ours, *alive])
    found: Row = {
        "vpcs": _pages(ec2, "describe_vpcs", "Vpcs", Filters=ours),
        "subnets": _pages(ec2, "describe_subnets", "Subnets", Filters=ours),
        "gateways": _pages(ec2, "describe_internet_gateways", "InternetGateways", Filters=ours),
        "route_tables": _pages(ec2, "describe_route_tables", "RouteTables", Filters=ours),
        "groups": _pages(ec2, "describe_security_groups", "SecurityGroups", Filters=ours),
        "templates": _pages(ec2, "describe_launch_templates", "LaunchTemplates", Filters=ours),
        "instances": [instance for reservation in reservations for instance in reservation["Instances"]],
        "volumes": _pages(ec2, "describe_volumes", "Volumes", Filters=ours),
        "addresses": ec2.describe_addresses(Filters=ours)["Addresses"],
        "keys": ec2.describe_key_pairs(Filters=ours, IncludePublicKey=True)["KeyPairs"],
        "images": ec2.describe_images(Owners=["self"], Filters=ours)["Images"],
    }
    placement_groups = ec2.describe_placement_groups()["PlacementGroups"]
    found["placement_groups"] = [row for row in placement_groups if is_ours(row.get("Tags"), fleet)]
    found["given_subnets"] = _given_subnets(ec2, fleet)
    found["roles"] = _roles(clients("iam"), fleet)
    found["balancers"], found["target_groups"] = _balancers(clients("elbv2"), fleet)
    found["zone"], found["record"] = _record(clients("route53"), fleet)
    found["scaling_groups"] = _scaling_groups(clients("autoscaling"), fleet)
    found["template_versions"] = {
        row["LaunchTemplateName"]: ec2.describe_launch_template_versions(
            LaunchTemplateName=row["LaunchTemplateName"], Versions=["$Default"]
        )["LaunchTemplateVersions"][0].get("VersionDescription", "")
        for row in found["templates"]
    }
    found["taken"] = _taken(ec2, fleet, found, placement_groups)
    return found


def offers(ec2: Any, types: list[str]) -> dict[str, Row]:
    """Of each type its zones and processor architectures. Types that the region does not have are left out."""
    if not types:
        return {}
    by_type = [{"Name": "instance-type", "Values": types}]
    rows = _pages(
        ec2,
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=by_type,
    )
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["InstanceType"], {"zones": set(), "architectures": []})["zones"].add(row["Location"])
    for row in _pages(ec2, "describe_instance_types", "InstanceTypes", Filters=by_type):
        if row["InstanceType"] in found:
            found[row["InstanceType"]]["architectures"] = row["ProcessorInfo"]["SupportedArchitectures"]
    return found


def images(clients: Clients, wanted: set[str], own: list[Row]) -> tuple[dict[str, Row], list[str]]:
    """The image that each of the wanted names stands for, and what is wrong with the others."""
    found, problems = {}, []
    for name in sorted(wanted):
        try:
            found[name] = _image(clients, name, own)
        except FleetError as error:
            problems += error.problems
    return found, problems


def _image(clients: Clients, name: str, own: list[Row]) -> Row:
    identity = name
    if name == "baked":
        ready = [image for image in own if image["State"] == "available"]
        if not ready:
            raise FleetError(
                [
                    "image is baked, but this environment has no image yet: make one with playbooks/bake.yml, or name another image"
                ]
            )
        return dict(max(ready, key=lambda image: str(image["CreationDate"])))
    if name.startswith("/"):
        with _not_there_is_none():
            identity = clients("ssm").get_parameter(Name=name)["Parameter"]["Value"]
        if identity == name:
            raise FleetError([f"image {name}: AWS Systems Manager has no such parameter in this region"])
    with contextlib.suppress(ClientError):
        rows = clients("ec2").describe_images(ImageIds=[identity])["Images"]
        if rows:
            return dict(rows[0])
    raise FleetError(
        [f"image {identity} is not there in this region: name one that is, or the path of an SSM parameter"]
    )


def _given_subnets(ec2: Any, fleet: Fleet) -> list[Row]:
    found = []
    for identity in fleet.settings["subnet_ids"]:
        try:
            found += ec2.describe_subnets(SubnetIds=[identity])["Subnets"]
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidSubnetID.NotFound":
                raise
    return found


def _roles(iam: Any, fleet: Fleet) -> list[Row]:
    """Roles whose name begins as the fleet's do, with their tags and policies."""
    found = []
    for role in _pages(iam, "list_roles", "Roles"):
        name = role["RoleName"]
        if not name.startswith(f"{fleet.base}-{fleet.region}-"):
            continue
        row = {"name": name, "ours": is_ours(iam.list_role_tags(RoleName=name)["Tags"], fleet), "policy": None}
        row["attached"] = [
            p["PolicyArn"] for p in _pages(iam, "list_attached_role_policies", "AttachedPolicies", RoleName=name)
        ]
        with _not_there_is_none():
            row["policy"] = iam.get_role_policy(RoleName=name, PolicyName=name)["PolicyDocument"]
        found.append(row)
    return found


def _balancers(elb: Any, fleet: Fleet) -> tuple[list[Row], list[Row]]:
    """Load balancers and target groups whose name begins as the fleet's do."""
    balancers = _named(elb, fleet, "describe_load_balancers", "LoadBalancers", "LoadBalancer")
    groups = _named(elb, fleet, "describe_target_groups", "TargetGroups", "TargetGroup")
    for group in groups:
        health = elb.describe_target_health(TargetGroupArn=group["TargetGroupArn"])["TargetHealthDescriptions"]
        group["targets"] = sorted(row["Target"]["Id"] for row in health)
    return balancers, groups


def _named(elb: Any, fleet: Fleet, operation: str, key: str, kind: str) -> list[Row]:
    names = [fleet.base, *(f"{fleet.base}-{port}" for port in (80, 443))]
    rows = [row for row in _pages(elb, operation, key) if row[f"{kind}Name"] in names]
    for row in rows:
        tags = elb.describe_tags(ResourceArns=[row[f"{kind}Arn"]])["TagDescriptions"][0]["Tags"]
        row |= {"name": row[f"{kind}Name"], "arn": row[f"{kind}Arn"], "ours": is_ours(tags, fleet)}
    return rows


def _record(route53: Any, fleet: Fleet) -> tuple[str | None, Row | None]:
    """The hosted zone's id, and the address record of the domain in it."""
    name = fleet.settings["dns_zone"].rstrip(".")
    if not name:
        return None, None
    zones = _pages(route53, "list_hosted_zones", "HostedZones")
    zone = next((z["Id"] for z in zones if z["Name"] == f"{name}." and not z["Config"].get("PrivateZone")), None)
    if zone is None or not fleet.domain:
        return zone, None
    rows = _pages(route53, "list_resource_record_sets", "ResourceRecordSets", HostedZoneId=zone)
    return zone, next((row for row in rows if row["Name"] == f"{fleet.domain}." and row["Type"] == "A"), None)


def _scaling_groups(autoscaling: Any, fleet: Fleet) -> list[Row]:
    """Auto Scaling groups whose name begins as the fleet's do, in the words of `groups.wanted`."""
    found = []
    for row in _pages(autoscaling, "describe_auto_scaling_groups", "AutoScalingGroups"):
        name = row["AutoScalingGroupName"]
        if not name.startswith(f"{fleet.base}-"):
            continue
        its = {"AutoScalingGroupName": name}
        hooks = autoscaling.describe_lifecycle_hooks(**its)["LifecycleHooks"]
        policies = _pages(autoscaling, "describe_policies", "ScalingPolicies", **its)
        schedules = _pages(autoscaling, "describe_scheduled_actions", "ScheduledUpdateGroupActions", **its)
        found.append(
            {
                "name": name,
                "ours": is_ours(row.get("Tags"), fleet),
                "min": row["MinSize"],
                "max": row["MaxSize"],
                "desired": row["DesiredCapacity"],
                "subnets": [one for one in row.get("VPCZoneIdentifier", "").split(",") if one],
                "hooks": {
                    hook["LifecycleHookName"]: _only(hook, "LifecycleTransition", "HeartbeatTimeout", "DefaultResult")
                    for hook in hooks
                },
                "policies": {
                    policy["PolicyName"]: _policy(policy["TargetTrackingConfiguration"])
                    for policy in policies
                    if policy.get("TargetTrackingConfiguration")
                },
                "schedules": {
                    one["ScheduledActionName"]: _only(
                        one, "Recurrence", "TimeZone", "MinSize", "MaxSize", "DesiredCapacity"
                    )
                    for one in schedules
                },
            }
        )
    return found


def _only(row: Row, *keys: str) -> Row:
    return {key: row[key] for key in keys if key in row}


def _policy(told: Row) -> Row:
    metric = _only(told.get("CustomizedMetricSpecification", {}), "Namespace", "MetricName", "Dimensions", "Statistic")
    return {"TargetValue": told.get("TargetValue"), "CustomizedMetricSpecification": metric}


def _taken(ec2: Any, fleet: Fleet, found: Mapping[str, Any], placement_groups: list[Row]) -> list[str]:
    """What has a name that the fleet needs, but not its tags."""
    taken = [f"role {row['name']}" for row in found["roles"] if not row["ours"]]
    taken += [f"load balancer {row['name']}" for row in found["balancers"] if not row["ours"]]
    taken += [f"target group {row['name']}" for row in found["target_groups"] if not row["ours"]]
    keys = ec2.describe_key_pairs()["KeyPairs"]
    taken += [
        f"key pair {row['KeyName']}"
        for row in keys
        if row["KeyName"] == fleet.base and not is_ours(row.get("Tags"), fleet)
    ]
    names = {f"{fleet.base}-{kind}" for kind in fleet.kinds}
    taken += [
        f"placement group {row['GroupName']}"
        for row in placement_groups
        if row["GroupName"] in names and not is_ours(row.get("Tags"), fleet)
    ]
    rows = _pages(ec2, "describe_launch_templates", "LaunchTemplates")
    taken += [
        f"launch template {row['LaunchTemplateName']}"
        for row in rows
        if row["LaunchTemplateName"] in names and not is_ours(row.get("Tags"), fleet)
    ]
    taken += [
        f"Auto Scaling group {row['name']}"
        for row in found["scaling_groups"]
        if row["name"] in names and not row["ours"]
    ]
    vpcs = {row["VpcId"] for row in [*found["vpcs"], *found["given_subnets"]]}
    groups = _pages(ec2, "describe_security_groups", "SecurityGroups")
    wanted = {f"{fleet.base}-{name}" for name in ("nginx", "proxy", "vllm", "cluster")}
    taken += [
        f"security group {row['GroupName']} ({row['GroupId']})"
        for row in groups
        if row["VpcId"] in vpcs and row["GroupName"] in wanted and not is_ours(row.get("Tags"), fleet)
    ]
    return taken


def is_ours(tags: list[dict[str, str]] | None, fleet: Fleet) -> bool:
    """Whether the tags are those of the fleet."""
    return tags_of({"Tags": tags}).items() >= fleet.tags().items()


def tags_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in row.get("Tags") or []}


def name_of(row: Mapping[str, Any]) -> str:
    """The tag Name; "" without it."""
    return tags_of(row).get("Name", "")


@contextlib.contextmanager
def _not_there_is_none() -> Any:
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] not in NOT_THERE:
            raise


@contextlib.contextmanager
def errors_in_words(region: str) -> Any:
    """Turn what AWS or the way to it refuses into a sentence."""
    try:
        yield
    except ClientError as error:
        raise FleetError([refusal(str(error), region)]) from error
    except BotoCoreError as error:
        raise FleetError(
            [
                f"AWS cannot be asked in region {region}: {error}. Set credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, or an instance profile), "
                "and check AWS_REGION and the way to the internet"
            ]
        ) from error


# What AWS's error codes mean for a fleet, and what to do.
ADVICE = {
    "VcpuLimitExceeded": "ask for a higher quota (Service Quotas, Amazon EC2, 'Running On-Demand … instances'), or want fewer or smaller hosts",
    "MaxSpotInstanceCountExceeded": "ask for a higher quota (Service Quotas, Amazon EC2, '… Spot Instance Requests'), or want fewer or smaller hosts",
    "InstanceLimitExceeded": "ask for a higher quota (Service Quotas, Amazon EC2), or want fewer hosts",
    "InsufficientInstanceCapacity": "try again later, or name another zone or type",
    "InsufficientFreeAddressesInSubnet": "name a larger subnet in subnet_ids, or another zone",
    "Unsupported": "name another type or zone",
    "AddressLimitExceeded": "ask for a higher quota (Service Quotas, 'EC2-VPC Elastic IPs'), or set entry to nlb or none",
    "VpcLimitExceeded": "ask for a higher quota (Service Quotas, 'VPCs per Region'), or name subnets in subnet_ids",
    "UnauthorizedOperation": "give the credentials the right that the message names",
    "AccessDenied": "give the credentials the right that the message names",
    "AuthFailure": "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, or the instance profile)",
    "InvalidClientTokenId": "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, or the instance profile)",
    "ExpiredToken": "log in again: the credentials have expired",
    "RequestExpired": "log in again, and check the controller's clock",
    "DependencyViolation": "something still uses it, such as a load balancer's interface for some minutes after its end: run the playbook again then",
    "OptInRequired": "switch the region on in the account, or use another",
}


def refusal(text: str, region: str) -> str:
    """An error of AWS's with what to do; any other error as it is."""
    advice = next((words for code, words in ADVICE.items() if f"({code})" in text), "")
    told = f"AWS refused in region {region}: {text.strip()}" if "An error occurred (" in text else text.strip()
    return told + (f". {advice[0].upper()}{advice[1:]}" if advice else "")


def _pages(client: Any, operation: str, key: str, **arguments: Any) -> list[Row]:
    return [row for page in client.get_paginator(operation).paginate(**arguments) for row in page[key]]
