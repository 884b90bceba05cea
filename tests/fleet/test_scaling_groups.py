"""An engine pool that is an Auto Scaling group, against moto: from nothing, with hooks, policy and schedule, and back."""

from __future__ import annotations

import base64
import re
from typing import Any

from conftest import IMAGE, MOTOS_IMAGE, Account

NAME = "ec2-inference-production-engine"


def group(account: Account) -> dict[str, Any]:
    (row,) = account.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    return dict(row)


def test_a_group_from_nothing_and_back(account: Account) -> None:
    ec2, autoscaling = account.client("ec2"), account.client("autoscaling")
    vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.1.0/24", AvailabilityZone="us-east-1a")["Subnet"]["SubnetId"]
    scaling = {
        "min": 0,
        "max": 4,
        "target_waiting": 8,
        "hours": {"start": "07:30", "end": "19:00", "time_zone": "Europe/Berlin"},
        "join": {"awx_url": "https://awx.example.com", "template": 12, "key_parameter": "/stack/awx-key"},
    }
    engine: dict[str, Any] = {"tiers": ["vllm"], "count": 2, "type": "g6.xlarge", "image": IMAGE, "disk_gb": 100}
    engine["auto_scaling"] = scaling
    fleet = {"zones": ["us-east-1a"], "subnet_ids": [subnet], "entry": "none", "hosts": {"engine": engine}}
    account.fleets = {"production": fleet}

    looked = account.play("provision.yml", "--check").good()
    assert looked.changed == 1
    for words in (
        f"+ launch template {NAME}: g6.xlarge, 100 GiB, image {MOTOS_IMAGE}",
        f"+ Auto Scaling group {NAME}",
        "0 to 4 hosts, 2 at first",
        "schedule hours-begin: 2 hosts at '30 7 * * 1-5' Europe/Berlin",
        "schedule hours-end: 0 hosts at '0 19 * * 1-5' Europe/Berlin",
        "2 x g6.xlarge with disk (engine, of 0 to 4)",
    ):
        assert words in looked.words, looked.output
    assert account.tagged("production") == []
    account.provision().good()

    row = group(account)
    assert (row["MinSize"], row["MaxSize"], row["DesiredCapacity"], row["VPCZoneIdentifier"]) == (0, 4, 2, subnet)
    hooks = autoscaling.describe_lifecycle_hooks(AutoScalingGroupName=NAME)["LifecycleHooks"]
    assert {hook["LifecycleHookName"]: (hook["LifecycleTransition"], hook["DefaultResult"]) for hook in hooks} == {
        "vllm-drain": ("autoscaling:EC2_INSTANCE_TERMINATING", "CONTINUE"),
        "vllm-launch": ("autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON"),
    }
    (policy,) = autoscaling.describe_policies(AutoScalingGroupName=NAME)["ScalingPolicies"]
    tracking = policy["TargetTrackingConfiguration"]
    assert tracking["TargetValue"] == 8
    assert tracking["CustomizedMetricSpecification"]["MetricName"] == "inference_proxy_waiting_requests"
    (version,) = ec2.describe_launch_template_versions(LaunchTemplateName=NAME, Versions=["$Default"])[
        "LaunchTemplateVersions"
    ]
    data = version["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    script = base64.b64decode(data["UserData"]).decode()
    assert "callback=https://awx.example.com/api/v2/job_templates/12/callback/" in script
    assert not re.search(r"@[a-z_]+@", script), "a placeholder is left"

    # Its instances are hosts of the engine tier, each with a name of its own, and nothing is left to do.
    inventory = account.inventory(STACK_ENVIRONMENT="production")
    names = inventory["vllm"]["hosts"]
    assert len(names) == 2
    assert all(name.startswith("engine-i-") for name in names)
    assert account.provision().good().changed == 0
    again = account.play("provision.yml", "--check").good()
    assert again.changed == 0
    assert "not wanted any more" not in again.words

    # The number of hosts is the group's affair, and its sizes by night are no difference.
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=NAME, MinSize=0, MaxSize=0, DesiredCapacity=0)
    assert account.provision().good().changed == 0
    autoscaling.update_auto_scaling_group(AutoScalingGroupName=NAME, MinSize=0, MaxSize=4, DesiredCapacity=1)

    # By hand, within its sizes.
    chosen = ("-e", "pool=engine", "-e", "scale_deploy=false")
    refused = account.play("scale.yml", *chosen, "-e", "count=5")
    assert refused.status != 0
    assert f"Auto Scaling group {NAME} has 0 to 4 hosts now, so not 5" in refused.words
    last = account.play("scale.yml", *chosen, "-e", "count=0")
    assert last.status != 0
    assert "pool engine would have no engine left: to scale in nevertheless, add -e drain_last=true" in last.words
    assert "+ it launches 2" in account.play("scale.yml", *chosen, "-e", "count=3", "--check").good().words
    assert group(account)["DesiredCapacity"] == 1
    account.play("scale.yml", *chosen, "-e", "count=3").good()
    account.play("scale.yml", *chosen, "-e", "count=1", "-e", "scale_in=false").good()
    assert group(account)["DesiredCapacity"] == 3

    # What is taken out of the variables goes. moto cannot launch from a template's second version that has user data.
    del scaling["hours"]
    engine["type"] = "g6.2xlarge"
    changed = account.play("provision.yml", "--check").good()
    assert "schedule hours-begin" in changed.words
    assert f"launch template {NAME}, changed: g6.2xlarge" in changed.words
    account.provision().good()
    assert autoscaling.describe_scheduled_actions()["ScheduledUpdateGroupActions"] == []
    assert group(account)["DesiredCapacity"] == 3
    assert account.provision().good().changed == 0

    account.play("deprovision.yml", "-e", "deprovision_confirmed=production").good()
    assert account.tagged("production") == []
    assert autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert account.play("deprovision.yml", "--check").good().changed == 0
