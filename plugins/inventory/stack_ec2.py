"""Make an inventory of EC2 instances: one environment of one stack, each instance with a unique name, in the tiers of its tag."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import Counter
from typing import Any

from ansible.errors import AnsibleParserError
from ansible_collections.amazon.aws.plugins.module_utils.tagging import (
    boto3_tag_list_to_ansible_dict,
)
from ansible_collections.amazon.aws.plugins.plugin_utils.inventory import (
    AWSInventoryBase,
)

with contextlib.suppress(ImportError):  # AWSInventoryBase reports the missing library
    from botocore.exceptions import BotoCoreError, ClientError

DOCUMENTATION = r"""
name: stack_ec2
short_description: One environment of the stack, found by the tags of its EC2 instances
description:
  - Reads the running instances with the tag C(Stack), and puts them into the groups C(nginx), C(proxy) and C(vllm) by their tag C(Tier),
    which names one tier or several (C(nginx,proxy,vllm); any case, separated by commas, semicolons, slashes or blanks).
  - Only instances of one environment (tag C(Environment)) are hosts. With several environments and none named it fails.
  - A host is named by its tag C(Name), followed by the instance's id where another host or a group has that name,
    and always in an Auto Scaling group, whose instances all have one Name. Without a Name it is named by its private address.
  - Each host has C(stack_address), C(ansible_host), C(aws_tags) and the variables of O(hostvars).
  - What an operator has to mend (an instance in no tier, or without an environment) is in C(aws_problems), which preflight reports.
options:
  plugin:
    description: Name of this plugin, C(stack_ec2) in a checkout, C(ec2_inference.stack.stack_ec2) where the collection is installed.
    type: str
    required: true
  stack:
    description: Value of the tag C(Stack).
    type: str
    default: ec2-inference
  environment:
    description:
      - Value of the tag C(Environment). The extra variable C(stack_environment) wins.
      - Needed only if instances of several environments run.
    type: str
    env: [{name: STACK_ENVIRONMENT}]
  regions:
    description: The regions to look in. Without any, the region of the environment (C(AWS_REGION), C(AWS_DEFAULT_REGION)), else us-east-1.
    type: list
    elements: str
    default: []
  connect:
    description:
      - How SSH reaches hosts. C(private) and C(public) take that address, C(bastion) the private one through O(bastion),
        C(ssm) a session of AWS Systems Manager, which needs the AWS CLI and its session-manager-plugin on the controller.
    type: str
    choices: [private, public, bastion, ssm]
    default: private
    env: [{name: STACK_CONNECT}]
  bastion:
    description: The host to jump through, as C(ssh -J) takes it.
    type: str
    env: [{name: STACK_BASTION}]
extends_documentation_fragment:
  - inventory_cache
  - amazon.aws.common.plugins
  - amazon.aws.assume_role.plugins
"""

EXAMPLES = r"""
plugin: stack_ec2
regions: [eu-central-1]
environment: production
"""

TIERS = ("nginx", "proxy", "vllm")
# Names of tags are compared in lower case, so a tag `tier` works like `Tier`.
TIER, ENVIRONMENT, NAME = "tier", "environment", "name"
# Amazon sets it on the instances of an Auto Scaling group.
SCALING_GROUP = "aws:autoscaling:groupname"
SEPARATORS = re.compile(r"[\s,;/|+]+")
# Variables of a host, and their places in the answer of DescribeInstances.
HOSTVARS = {
    "aws_instance_id": ("InstanceId",),
    "aws_instance_type": ("InstanceType",),
    "aws_instance_lifecycle": ("InstanceLifecycle",),
    "aws_image_id": ("ImageId",),
    "aws_availability_zone": ("Placement", "AvailabilityZone"),
    "aws_private_ip_address": ("PrivateIpAddress",),
    "aws_public_ip_address": ("PublicIpAddress",),
    "aws_vpc_id": ("VpcId",),
    "aws_subnet_id": ("SubnetId",),
}


class InventoryModule(AWSInventoryBase):  # type: ignore[misc]  # the collection ships no types
    """Reads the instances once, chooses those of one environment, and names and groups them."""

    NAME = "stack_ec2"
    INVENTORY_FILE_SUFFIXES = ("ec2.yml", "ec2.yaml")

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the hosts. Raises AnsibleParserError, with what to do, if it is not clear which ones are meant."""
        super().parse(inventory, loader, path, cache=cache)
        if self.get_option("connect") == "bastion" and not self.get_option("bastion"):
            raise AnsibleParserError(
                "connect is bastion, but no bastion is named: set `bastion` in the inventory's file, or STACK_BASTION, to USER@HOST"
            )
        if (self._vars or {}).get("plan_model"):
            return  # playbooks/plan.yml plans a model by instance types: it needs no fleet, and so no credentials
        cached, instances = self.get_cached_result(path, cache)
        if not cached:
            instances = self._running()
        self.update_cached_result(path, cache, instances)
        environment = self._environment()
        chosen = choose_environment(instances, environment)
        if not chosen and instances:
            self.display.warning(
                f"no running instance of the stack has the tag Environment={environment}; there are {environments_in_words(instances)}"
            )
        for group in TIERS:
            inventory.add_group(group)
        names = unique_names(chosen)
        for instance in chosen:
            self._add_host(names[instance["InstanceId"]], instance)
        if chosen:
            inventory.set_variable("all", "stack_environment", tag(chosen[0], ENVIRONMENT))
        problems = problems_of(instances, chosen)
        if self.get_option("connect") == "public":
            unreachable = [instance for instance in chosen if not instance["vars"]["aws_public_ip_address"]]
            problems += [
                f"{described(instance)} has no public address, and connect is public" for instance in unreachable
            ]
        inventory.set_variable("all", "aws_problems", problems)
        inventory.set_variable("all", "aws_notices", notices_of(chosen, names))

    def get_cache_key(self, path: str) -> str:
        """The cache's key, with the account, the regions and the stack, so that no cached list is used for others."""
        parts = [*self._regions(), self.get_option("stack"), self.get_option("endpoint_url") or ""]
        parts += [os.environ.get(name, "") for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL")]
        return f"{super().get_cache_key(path)}_{'_'.join(parts)}"

    def _environment(self) -> str | None:
        """The environment that is asked for, if any."""
        value = (self._vars or {}).get("stack_environment") or self.get_option("environment")
        return str(value).strip() if value else None

    def _regions(self) -> list[str]:
        given = [region for region in self.get_option("regions") if region]
        return given or [os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"]

    def _running(self) -> list[dict[str, Any]]:
        """The stack's running instances in all environments, with their tags as a dictionary and their region."""
        filters = [
            {"Name": "instance-state-name", "Values": ["running"]},
            {"Name": "tag:Stack", "Values": [self.get_option("stack")]},
        ]
        found = []
        for region in self._regions():
            try:
                pages = self.client("ec2", region=region).get_paginator("describe_instances").paginate(Filters=filters)
                reservations = [reservation for page in pages for reservation in page["Reservations"]]
            except (BotoCoreError, ClientError) as error:
                raise AnsibleParserError(
                    f"EC2 cannot be asked for the fleet in region {region}: {error}. Set AWS_REGION and credentials "
                    "(AWS_PROFILE, AWS_ACCESS_KEY_ID, or an instance profile) that allow ec2:DescribeInstances"
                ) from error
            for instance in (instance for reservation in reservations for instance in reservation["Instances"]):
                tags = boto3_tag_list_to_ansible_dict(instance.get("Tags", []))
                variables = {name: at(instance, place) for name, place in HOSTVARS.items()}
                found.append({"InstanceId": instance["InstanceId"], "region": region, "tags": tags, "vars": variables})
        return sorted(found, key=lambda instance: str(instance["InstanceId"]))

    def _add_host(self, name: str, instance: dict[str, Any]) -> None:
        """Add one instance as a host of its tiers and of its environment's group."""
        self.inventory.add_host(name)
        for group in [*tiers_of(instance)[0], environment_group(instance)]:
            self.inventory.add_host(name, self.inventory.add_group(group))
        variables = {variable: value for variable, value in instance["vars"].items() if value is not None}
        address = variables.get("aws_private_ip_address")
        variables.update(aws_tags=instance["tags"], aws_region=instance["region"], stack_address=address)
        ssh = ssh_variables(instance, self.get_option("connect"), self.get_option("bastion"))
        for variable, value in (variables | ssh).items():
            self.inventory.set_variable(name, variable, value)


def ssh_variables(instance: dict[str, Any], connect: str, bastion: str | None) -> dict[str, Any]:
    """The variables by which SSH reaches a host."""
    variables, region = instance["vars"], instance["region"]
    private = {"ansible_host": variables["aws_private_ip_address"]}
    if connect == "public":
        return {"ansible_host": variables["aws_public_ip_address"]}
    if connect == "ssm":
        session = f"aws ssm start-session --region {region} --target %h --document-name AWS-StartSSHSession --parameters portNumber=%p"
        arguments = f"-o ProxyCommand={shlex.quote(session)}"
        return {"ansible_host": instance["InstanceId"], "ansible_ssh_common_args": arguments}
    if connect == "bastion":
        return private | {"ansible_ssh_common_args": f"-J {shlex.quote(bastion or '')}"}
    return private


def at(value: Any, place: tuple[str, ...]) -> Any:
    """The value at a place in nested dictionaries; None if there is none."""
    for key in place:
        value = (value or {}).get(key)
    return value


def tag(instance: dict[str, Any], name: str) -> str:
    """A tag's value by its name in lower case; "" without it."""
    return next((str(value).strip() for key, value in sorted(instance["tags"].items()) if key.lower() == name), "")


def tiers_of(instance: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The tiers that its tag names, and the words in it that are no tier."""
    words = [word for word in SEPARATORS.split(tag(instance, TIER).lower()) if word]
    return [tier for tier in TIERS if tier in words], [word for word in words if word not in TIERS]


def environment_group(instance: dict[str, Any]) -> str:
    """The group of the instance's environment, such as env_production."""
    return "env_" + re.sub(r"\W", "_", tag(instance, ENVIRONMENT) or "none")


def environments_in_words(instances: list[dict[str, Any]]) -> str:
    counts = Counter(tag(instance, ENVIRONMENT) for instance in instances)
    return ", ".join(f"{name or 'none'} ({count})" for name, count in sorted(counts.items()))


def choose_environment(instances: list[dict[str, Any]], wanted: str | None) -> list[dict[str, Any]]:
    """The instances of the wanted environment, or of the only one."""
    there = {tag(instance, ENVIRONMENT) for instance in instances}
    named = there - {""}
    if wanted is None:
        if len(named) > 1:
            raise AnsibleParserError(
                f"the stack has instances of several environments, {environments_in_words(instances)}: name one, "
                "with -e stack_environment=NAME, with STACK_ENVIRONMENT=NAME, or as `environment` in the inventory's file"
            )
        wanted = next(iter(named), "")
    return [instance for instance in instances if tag(instance, ENVIRONMENT) == wanted]


def unique_names(instances: list[dict[str, Any]]) -> dict[str, str]:
    """A host name for each instance's id, which no other host and no group has."""
    plain = {instance["InstanceId"]: tag(instance, NAME) for instance in instances}
    taken = Counter(plain.values())
    groups = {"all", "ungrouped", "localhost", *TIERS, *(environment_group(instance) for instance in instances)}
    names = {}
    for instance in instances:
        identity = instance["InstanceId"]
        name = plain[identity]
        if not name:
            names[identity] = instance["vars"].get("aws_private_ip_address") or identity
        elif taken[name] > 1 or name in groups or tag(instance, SCALING_GROUP):
            names[identity] = f"{name}-{identity}"
        else:
            names[identity] = name
    return names


def described(instance: dict[str, Any]) -> str:
    """The instance in words, such as: instance i-0abc (engine-1)."""
    name = tag(instance, NAME)
    return f"instance {instance['InstanceId']}" + (f" ({name})" if name else "")


def problems_of(instances: list[dict[str, Any]], chosen: list[dict[str, Any]]) -> list[str]:
    """Why running instances of the stack are in no tier or in no environment, one sentence each."""
    found = []
    for instance in chosen:
        tiers, unknown = tiers_of(instance)
        where = described(instance)
        if unknown:
            found.append(
                f"{where}: its tag Tier has {', '.join(map(repr, unknown))}, which is no tier: use nginx, proxy or vllm"
            )
        elif not tiers:
            found.append(
                f"{where} is in no tier: give it the tag Tier (nginx, proxy, vllm or several), or remove its tag Stack"
            )
    outside = [instance for instance in instances if instance not in chosen and not tag(instance, ENVIRONMENT)]
    found += [
        f"{described(instance)} is in no environment: give it the tag Environment, or remove its tag Stack"
        for instance in outside
    ]
    return found


def notices_of(chosen: list[dict[str, Any]], names: dict[str, str]) -> list[str]:
    """Hosts whose name differs from their tag Name."""
    renamed = [
        instance
        for instance in chosen
        if tag(instance, NAME) not in ("", names[instance["InstanceId"]]) and not tag(instance, SCALING_GROUP)
    ]
    return [
        f"{described(instance)} is called {names[instance['InstanceId']]}, because another host or a group is called "
        f"{tag(instance, NAME)}: give it a Name of its own"
        for instance in renamed
    ]
