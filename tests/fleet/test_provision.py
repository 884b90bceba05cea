"""playbooks/provision.yml and deprovision.yml against an EC2 API: from nothing to a fleet in its tiers, and back to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import DOMAIN, IMAGE, Account
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import InstanceBackend

BASE = "ec2-inference-production"


def rules(account: Account) -> dict[str, set[str]]:
    """Who may reach which ports, by the security group's last word."""
    groups = account.client("ec2").describe_security_groups()["SecurityGroups"]
    names = {group["GroupId"]: group["GroupName"].removeprefix(f"{BASE}-") for group in groups}
    found: dict[str, set[str]] = {}
    for group in groups:
        for rule in group["IpPermissions"] if group["GroupName"].startswith(BASE) else []:
            sources = [pair["GroupId"] for pair in rule["UserIdGroupPairs"]]
            sources += [row["CidrIp"] for row in rule["IpRanges"]] + [row["CidrIpv6"] for row in rule["Ipv6Ranges"]]
            words = {f"{rule.get('FromPort', 'all')} from {names.get(source, source)}" for source in sources}
            found.setdefault(names[group["GroupId"]], set()).update(words)
    return found


def groups_of_instances(account: Account) -> dict[str, set[str]]:
    """The security groups of each of the fleet's instances in the fleet's own VPC, by the group's last word."""
    ec2 = account.client("ec2")
    vpcs = {vpc["VpcId"] for vpc in ec2.describe_vpcs(Filters=[{"Name": "tag:Name", "Values": [BASE]}])["Vpcs"]}
    filters = [
        {"Name": "tag:Environment", "Values": ["production"]},
        {"Name": "tag:Stack", "Values": ["ec2-inference"]},
    ]
    found = {}
    for reservation in ec2.describe_instances(Filters=filters)["Reservations"]:
        for instance in reservation["Instances"]:
            name = next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == "Name")
            groups = instance["SecurityGroups"] if instance.get("VpcId") in vpcs else []
            found[name] = {group["GroupName"].removeprefix(f"{BASE}-") for group in groups}
    return found


def record(account: Account) -> dict[str, Any] | None:
    route53 = account.client("route53")
    (zone,) = route53.list_hosted_zones()["HostedZones"]
    rows = route53.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
    return next((row for row in rows if row["Name"] == f"{DOMAIN}." and row["Type"] == "A"), None)


def run_instance(account: Account, **tags: str) -> str:
    """Somebody else's instance."""
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    image = account.client("ssm").get_parameter(Name=IMAGE)["Parameter"]["Value"]
    made = account.client("ec2").run_instances(
        ImageId=image,
        MinCount=1,
        MaxCount=1,
        InstanceType="t3.small",
        TagSpecifications=[{"ResourceType": "instance", "Tags": pairs}],
    )
    return str(made["Instances"][0]["InstanceId"])


def test_a_fleet_from_nothing_and_back(account: Account) -> None:
    ec2 = account.client("ec2")
    others = [run_instance(account, Stack="ec2-inference", Environment="staging", Tier="nginx", Name="web-1")]
    others.append(run_instance(account, Name="somebody-elses", Environment="production"))
    account.fleets["staging"] = account.fleets["production"]
    chosen = ("-e", "stack_environment=production")

    # What --check says is what a run then does; without an answer nothing is done.
    looked = account.play("provision.yml", "--check", "--diff", *chosen).good()
    assert looked.changed == 1
    assert "+instance engine-2 (vllm): g6.xlarge (spot) in us-east-1b, 100 GiB" in looked.output
    assert "2 x g6.xlarge (engine, spot: at most)" in looked.words
    unasked = account.play("provision.yml", *chosen)
    assert unasked.status != 0
    assert "nobody agreed. To agree without being asked: -e provision_confirmed=true" in unasked.words
    assert account.tagged("production") == []
    account.provision(*chosen).good()

    # The inventory finds each host in its tier, and only this environment's.
    inventory = account.inventory(STACK_ENVIRONMENT="production")
    in_tiers = {tier: sorted(inventory[tier]["hosts"]) for tier in ("nginx", "proxy", "vllm")}
    assert in_tiers == {"nginx": ["web-1"], "proxy": ["api-1"], "vllm": ["engine-1", "engine-2"]}
    address = inventory["_meta"]["hostvars"]["web-1"]["aws_public_ip_address"]
    assert (record(account) or {})["ResourceRecords"] == [{"Value": address}]

    # Each tier admits only the one in front of it.
    ssh = "22 from 203.0.113.0/24"
    assert rules(account) == {
        "nginx": {f"{port} from {cidr}" for port in (80, 443) for cidr in ("0.0.0.0/0", "::/0")} | {ssh},
        "proxy": {"9000 from nginx", ssh},
        "vllm": {"8000 from proxy", ssh},
        "cluster": {"all from cluster"},
    }
    # Spot instances, too, are where they are wanted, and not in the account's default network.
    assert groups_of_instances(account) == {
        "web-1": {"nginx"},
        "api-1": {"proxy"},
        "engine-1": {"vllm", "cluster"},
        "engine-2": {"vllm", "cluster"},
    }
    engine = inventory["_meta"]["hostvars"]["engine-1"]
    (reservation,) = ec2.describe_instances(InstanceIds=[engine["aws_instance_id"]])["Reservations"]
    instance = reservation["Instances"][0]
    options = instance["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1)
    disk = ec2.describe_volumes(VolumeIds=[instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]])["Volumes"][0]
    assert (disk["VolumeType"], disk["Size"], disk["Encrypted"]) == ("gp3", 100, True)
    policy = account.client("iam").get_role_policy(
        RoleName=f"{BASE}-us-east-1-engine", PolicyName=f"{BASE}-us-east-1-engine"
    )["PolicyDocument"]
    # An engine host may read its models, and complete and prolong the hook of its own Auto Scaling group.
    *of_models, look, hook = policy["Statement"]
    assert {statement["Action"] for statement in of_models} == {"s3:GetObject", "s3:ListBucket"}
    assert look == {"Effect": "Allow", "Action": "autoscaling:DescribeAutoScalingInstances", "Resource": "*"}
    assert hook == {
        "Effect": "Allow",
        "Action": ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"],
        "Resource": f"arn:aws:autoscaling:us-east-1:*:autoScalingGroup:*:autoScalingGroupName/{BASE}-engine",
        "Condition": {
            "StringEquals": {
                "aws:ResourceTag/Stack": "ec2-inference",
                "aws:ResourceTag/Environment": "production",
            }
        },
    }
    assert account.client("iam").list_role_policies(RoleName=f"{BASE}-us-east-1-api")["PolicyNames"] == []

    # Nothing is left to do.
    assert account.play("provision.yml", "--check", *chosen).good().changed == 0
    assert account.provision(*chosen).good().changed == 0

    # A rule that somebody added is shown, and an engine that is not wanted any more is reported, but stays.
    proxies = next(
        g for g in ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"].endswith("production-proxy")
    )
    ec2.authorize_security_group_ingress(
        GroupId=proxies["GroupId"], IpProtocol="tcp", FromPort=9000, ToPort=9000, CidrIp="0.0.0.0/0"
    )
    account.fleets["production"]["hosts"]["engine"]["count"] = 1
    drifted = account.play("provision.yml", "--check", *chosen).good()
    assert drifted.changed == 1
    assert "- tcp 9000 from 0.0.0.0/0" in drifted.words
    assert "(engine-2) is not wanted any more" in drifted.words
    account.provision(*chosen).good()
    assert rules(account)["proxy"] == {"9000 from nginx", ssh}
    assert len(account.inventory(STACK_ENVIRONMENT="production")["vllm"]["hosts"]) == 2

    # Back to nothing, and nothing of anybody else's.
    looked = account.play("deprovision.yml", "--check", *chosen).good()
    assert looked.changed == 1
    assert "Network" not in looked.words
    other_name = account.play("deprovision.yml", "-e", "deprovision_confirmed=staging", *chosen)
    assert other_name.status != 0
    account.play("deprovision.yml", "-e", "deprovision_confirmed=production", *chosen).good()
    assert account.tagged("production") == [], "something still carries the fleet's tags"
    assert ec2.describe_addresses()["Addresses"] == ec2.describe_key_pairs()["KeyPairs"] == []
    assert ec2.describe_launch_templates()["LaunchTemplates"] == []
    assert [role for role in account.client("iam").list_roles()["Roles"] if role["RoleName"].startswith(BASE)] == []
    assert record(account) is None
    alive = [{"Name": "instance-state-name", "Values": ["running"]}]
    left = [i["InstanceId"] for r in ec2.describe_instances(Filters=alive)["Reservations"] for i in r["Instances"]]
    assert sorted(left) == sorted(others)
    assert account.play("deprovision.yml", "--check", *chosen).good().changed == 0


def given_network(account: Account, cidr: str) -> str:
    """A subnet of somebody else's in us-east-1a."""
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    return str(ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone="us-east-1a")["Subnet"]["SubnetId"])


def small(account: Account, subnet: str) -> dict[str, Any]:
    """One host with all tiers in somebody else's subnet, behind a load balancer."""
    host = {"tiers": ["nginx", "proxy", "vllm"], "count": 1, "type": "g6.xlarge", "image": IMAGE}
    fleet = {"zones": ["us-east-1a"], "subnet_ids": [subnet], "entry": "nlb", "dns_zone": "example.com"}
    account.fleets = {"production": fleet | {"hosts": {"all-in-one": host}}}
    return host


def test_hosts_with_adapters_from_nothing_and_back(account: Account) -> None:
    """Up to moto's edge: it knows no placement groups (conftest.py has some), and takes no interfaces from a template."""
    ec2, subnet = account.client("ec2"), given_network(account, "10.77.4.0/24")
    host = {"tiers": ["vllm"], "count": 2, "type": "p4d.24xlarge", "image": IMAGE, "efa": True}
    fleet = {"zones": ["us-east-1a"], "subnet_ids": [subnet], "entry": "none", "hosts": {"giant": host}}
    account.fleets = {"production": fleet}

    looked = account.play("provision.yml", "--check").good()
    for words in (
        f"+ placement group {BASE}-giant, whose hosts are close to each other",
        f"+ launch template {BASE}-giant, for 4 Elastic Fabric Adapters",
        "+ instance giant-2 (vllm): p4d.24xlarge (4 Elastic Fabric Adapters) in us-east-1a",
        "+ all ports from ec2-inference-production-cluster",
        "+ all ports to ec2-inference-production-cluster",
    ):
        assert words in looked.words, looked.output
    assert ec2.describe_placement_groups()["PlacementGroups"] == []
    account.provision().good()

    (placement_group,) = ec2.describe_placement_groups()["PlacementGroups"]
    assert (placement_group["GroupName"], placement_group["Strategy"]) == (f"{BASE}-giant", "cluster")
    (version,) = ec2.describe_launch_template_versions(LaunchTemplateName=f"{BASE}-giant")["LaunchTemplateVersions"]
    template = version["LaunchTemplateData"]
    groups = {g["GroupName"]: g["GroupId"] for g in ec2.describe_security_groups()["SecurityGroups"]}
    ids = {groups[f"{BASE}-vllm"], groups[f"{BASE}-cluster"]}
    assert template["Placement"]["GroupName"] == f"{BASE}-giant"
    assert "InstanceMarketOptions" not in template
    interfaces = template["NetworkInterfaces"]
    assert [(i["NetworkCardIndex"], i["DeviceIndex"], i["InterfaceType"]) for i in interfaces] == [
        (0, 0, "efa"),
        *((card, 1, "efa-only") for card in (1, 2, 3)),
    ]
    assert all((i["SubnetId"], set(i["Groups"])) == (subnet, ids) for i in interfaces)
    (cluster,) = ec2.describe_security_groups(GroupIds=[groups[f"{BASE}-cluster"]])["SecurityGroups"]
    goes_out = [rule for rule in cluster["IpPermissionsEgress"] if rule["IpProtocol"] == "-1"]
    assert {pair["GroupId"] for rule in goes_out for pair in rule["UserIdGroupPairs"]} == {cluster["GroupId"]}
    assert any(row["CidrIp"] == "0.0.0.0/0" for rule in goes_out for row in rule["IpRanges"])
    assert account.provision().good().changed == 0

    # A host that is made later has a new version of the template: its security groups may be others by then.
    host["count"], host["spot"] = 3, True
    account.provision().good()
    versions = ec2.describe_launch_template_versions(LaunchTemplateName=f"{BASE}-giant", Versions=["$Default"])
    (version,) = versions["LaunchTemplateVersions"]
    assert version["VersionNumber"] == 2
    assert version["LaunchTemplateData"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert version["LaunchTemplateData"]["NetworkInterfaces"] == interfaces
    assert account.provision().good().changed == 0

    account.play("deprovision.yml", "-e", "deprovision_confirmed=production").good()
    assert account.tagged("production") == ec2.describe_placement_groups()["PlacementGroups"] == []


def test_what_a_quota_stopped_is_finished_by_the_next_run(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    subnet = given_network(account, "10.77.1.0/24")
    small(account, subnet)

    def refuse(*_: object, **__: object) -> None:
        raise EC2ClientError("VcpuLimitExceeded", "You have requested more vCPU capacity than your current limit of 0.")

    with monkeypatch.context() as quota:
        quota.setattr(InstanceBackend, "run_instances", refuse)
        stopped = account.provision()
    assert stopped.status != 0
    assert "AWS refused in region us-east-1" in stopped.words
    assert "more vCPU capacity than your current limit of 0" in stopped.words
    assert "Ask for a higher quota (Service Quotas, Amazon EC2" in stopped.words
    assert "the next run goes on from there" in stopped.words

    account.provision().good()
    assert account.provision().good().changed == 0
    balancer = account.client("elbv2").describe_load_balancers()["LoadBalancers"][0]
    assert (record(account) or {})["AliasTarget"]["DNSName"].lower().startswith(balancer["DNSName"].lower())

    account.play("deprovision.yml", "-e", "deprovision_confirmed=production").good()
    assert account.tagged("production") == []
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert account.client("elbv2").describe_target_groups()["TargetGroups"] == []
    assert record(account) is None
    assert account.client("ec2").describe_subnets(SubnetIds=[subnet])["Subnets"], "the given network is not the fleet's"


def test_all_that_is_wrong_with_the_variables_is_said_at_once(account: Account) -> None:
    fleet = account.fleets["production"]
    fleet["zones"] = ["eu-central-1a", "us-east-1a"]
    fleet["hosts"]["engine"]["tiers"] = ["engine"]
    fleet["hosts"]["api"]["count"] = -1
    fleet["ssh_from"] = ["203.0.113.1/24"]
    fleet["dns_zone"] = "example.org"
    done = account.provision()
    assert done.status != 0
    for problem in (
        "stack_fleets.production.zones has eu-central-1a, which is not in region us-east-1",
        "stack_fleets.production.hosts.engine.tiers has 'engine': use nginx, proxy, vllm, or several of them",
        "stack_fleets.production.hosts.api.count is -1: use 0 to 200",
        "stack_fleets.production.ssh_from: 203.0.113.1/24 has host bits set",
        "dns_zone is example.org, but stack_domain is llm.example.com",
    ):
        assert problem in done.words, done.output
    assert "5 problems; nothing was changed" in done.words


def test_what_the_account_does_not_have_is_said_at_once(account: Account, tmp_path: Path) -> None:
    host = small(account, given_network(account, "10.77.2.0/28"))
    ec2 = account.client("ec2")
    here = [{"Name": "location", "Values": ["us-east-1a"]}]
    offered = {
        row["InstanceType"]
        for page in ec2.get_paginator("describe_instance_type_offerings").paginate(
            LocationType="availability-zone", Filters=here
        )
        for row in page["InstanceTypeOfferings"]
    }
    every = {
        row["InstanceType"]
        for page in ec2.get_paginator("describe_instance_type_offerings").paginate(LocationType="region")
        for row in page["InstanceTypeOfferings"]
    }
    elsewhere = sorted(every - offered)[0]
    hosts = account.fleets["production"]["hosts"]
    hosts["many"] = {**host, "count": 12, "type": "t3.small"}
    hosts["unknown"] = {**host, "type": "g99.xlarge"}
    hosts["elsewhere"] = {**host, "type": elsewhere}
    hosts["arm"] = {**host, "type": "t4g.small"}
    hosts["lost"] = {**host, "image": "/no/such/parameter"}
    account.client("iam").create_role(RoleName=f"{BASE}-us-east-1-many", AssumeRolePolicyDocument="{}")
    done = account.provision()
    assert done.status != 0
    for problem in (
        f"the name is taken: role {BASE}-us-east-1-many",
        "free addresses, but 17 hosts are to be made there",
        "hosts.unknown.type: region us-east-1 has no type g99.xlarge",
        f"hosts.elsewhere.type: {elsewhere} is not offered in us-east-1a",
        "is for x86_64, but t4g.small runs arm64",
        "image /no/such/parameter: AWS Systems Manager has no such parameter",
    ):
        assert problem in done.words, done.output
    assert account.tagged("production") == []


def model(directory: Path, layers: int) -> Path:
    """A model's directory, as the planner reads it."""
    directory.mkdir()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_the_planner_chooses_the_type_or_says_that_none_fits(account: Account, tmp_path: Path) -> None:
    host = small(account, given_network(account, "10.77.3.0/24"))
    host |= {"type": "planner", "types": ["g6.xlarge", "g6e.12xlarge", "g6e.48xlarge", "g6.48xlarge"]}
    # 70 billion parameters: 132 GiB.
    account.engines[0]["model"] = str(model(tmp_path / "large", 80))
    chosen = account.play("provision.yml", "--check").good()
    assert "instance all-in-one-1 (nginx,proxy,vllm): g6e.12xlarge in us-east-1a" in chosen.words
    host["types"] = ["g6.xlarge"]
    refused = account.provision()
    assert refused.status != 0
    assert "hosts.all-in-one.types: none of g6.xlarge runs" in refused.words


@pytest.mark.parametrize(
    ("environment", "options", "told"),
    [
        ({"AWS_REGION": ""}, (), "no region is named: export AWS_REGION"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": "/nowhere"},
            (),
            "Set AWS_REGION and credentials",
        ),
        ({}, ("-e", "stack_environment=prodution"), "environment prodution is unknown: stack_fleets has production"),
    ],
)
def test_who_and_where_has_to_be_known(
    account: Account, environment: dict[str, str], options: tuple[str, ...], told: str
) -> None:
    done = account.play("provision.yml", "-e", "provision_confirmed=true", *options, **environment)
    assert done.status != 0
    assert told in done.words, done.output
    assert account.tagged("production") == []
