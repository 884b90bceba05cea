"""What a fleet needs, what is made of it, and what that costs: by the variables and what is there, without an AWS API."""

from __future__ import annotations

from typing import Any

import pytest
from stack_fleet import load

wanted, plans, present, problems, prices = (
    load("fleet", name) for name in ("wanted", "plans", "present", "problems", "prices")
)
LISTS = [
    "vpcs",
    "subnets",
    "gateways",
    "route_tables",
    "groups",
    "templates",
    "instances",
    "volumes",
    "addresses",
    "keys",
]
LISTS += ["images", "given_subnets", "roles", "balancers", "target_groups", "taken"]
EMPTY: dict[str, Any] = {name: [] for name in LISTS} | {"zone": "Z1", "record": None}


def fleet(hosts: dict[str, Any], **settings: Any) -> Any:
    """A fleet in two zones of eu-central-1."""
    given = wanted.with_defaults(
        "fleet", {"zones": ["eu-central-1a", "eu-central-1b"], "hosts": hosts, "entry": "none", **settings}
    )
    kinds = {name: wanted.with_defaults("hosts", {"image": "ami-12345678", **kind}) for name, kind in hosts.items()}
    ports = wanted.Ports((9000, 9001), None, (8000, 8001))
    return wanted.Fleet("staging", "eu-central-1", given, kinds, "llm.example.com", ports)


def engines(count: int, **settings: Any) -> dict[str, Any]:
    return {"engine": {"tiers": ["vllm"], "count": count, "type": "g6.xlarge", **settings}}


def instance(name: str, **more: Any) -> dict[str, Any]:
    """A running instance as EC2 describes it."""
    row = {
        "InstanceId": f"i-{name}",
        "InstanceType": "g6.xlarge",
        "State": {"Name": "running"},
        "BlockDeviceMappings": [],
    }
    return row | {"Tags": [{"Key": "Name", "Value": name}]} | more


def test_hosts_are_spread_over_the_zones() -> None:
    its = fleet(engines(3))
    assert [(host.name, host.zone[-1]) for host in wanted.hosts(its)] == [
        ("engine-1", "a"),
        ("engine-2", "b"),
        ("engine-3", "a"),
    ]
    assert [row["cidr"] for row in wanted.subnets(its)] == ["10.20.0.0/20", "10.20.16.0/20"]
    assert wanted.subnets(fleet(engines(1), subnet_ids=["subnet-1", "subnet-2"])) == []


def test_a_tier_admits_only_the_one_in_front_of_it() -> None:
    rules = {group["name"].rpartition("-")[2]: group["rules"] for group in wanted.security_groups(fleet(engines(1)))}
    assert {rule.get("group") for rule in rules["vllm"]} == {"ec2-inference-staging-proxy"}
    assert [rule["first"] for rule in rules["vllm"]] == [8000, 8001]
    assert {rule.get("group") for rule in rules["proxy"]} == {"ec2-inference-staging-nginx"}
    assert "cluster" not in rules


def test_only_missing_hosts_are_made_and_no_host_is_removed() -> None:
    its = fleet(engines(2))
    there = EMPTY | {"instances": [instance("engine-2"), instance("engine-3")]}
    steps = plans.to_make(its, there, {}, "")
    assert [step["name"] for step in steps if step["kind"] == "instance"] == ["engine-1"]
    assert plans.surplus(its, there) == [
        "instance i-engine-3 (engine-3) is not wanted any more: drain it, and terminate it"
    ]


def test_a_stopped_host_is_started_and_one_of_another_type_is_reported() -> None:
    its = fleet(engines(1))
    there = EMPTY | {"instances": [instance("engine-1", State={"Name": "stopped"}, InstanceType="g5.xlarge")]}
    assert [step["id"] for step in plans.to_make(its, there, {}, "") if step["kind"] == "start"] == ["i-engine-1"]
    assert "is g5.xlarge, and g6.xlarge is wanted" in plans.surplus(its, there)[0]


def test_costs_say_which_price_is_not_known() -> None:
    hosts = engines(2, disk_gb=100) | {"web": {"tiers": ["nginx"], "count": 1, "type": "x9.unknown"}}
    parts = dict(plans.costs(fleet(hosts), load("planner", "reports").INSTANCES, EMPTY))
    assert parts["2 x g6.xlarge (engine)"] == pytest.approx(2 * 0.8048)
    assert parts["1 x x9.unknown (web)"] is None
    assert parts["230 GiB of gp3 volumes"] == pytest.approx(230 * 0.08 / 730)
    report = plans.report_of_making(fleet(hosts), [], [], list(parts.items()))
    assert "without what has no known price" in report


def test_what_uses_other_things_is_removed_before_them() -> None:
    names = [f"ec2-inference-staging-{tier}" for tier in ("nginx", "proxy", "vllm")]
    groups = [{"GroupName": name, "GroupId": f"sg-{name}"} for name in names]
    vpc = {"VpcId": "vpc-1"}
    volume = {"VolumeId": "vol-1", "Size": 5}
    disk = {"Ebs": {"VolumeId": "vol-root", "DeleteOnTermination": True}}
    there = EMPTY | {"groups": groups, "vpcs": [vpc], "volumes": [volume, {"VolumeId": "vol-root", "Size": 30}]}
    there |= {"instances": [instance("engine-1", BlockDeviceMappings=[disk])]}
    removed = [step["name"] for step in plans.to_remove(fleet(engines(1)), there)]
    assert removed == ["i-engine-1", "vol-1", *reversed(names), "vpc-1"]


def test_a_record_that_points_elsewhere_stays() -> None:
    its = fleet(engines(1))
    address = {"PublicIp": "192.0.2.1"}
    record = {"ResourceRecords": [{"Value": "192.0.2.1"}]}
    ours = EMPTY | {"addresses": [address], "record": record}
    assert [step["kind"] for step in plans.to_remove(its, ours)] == ["record", "address"]
    others = ours | {"record": {"ResourceRecords": [{"Value": "198.51.100.9"}]}}
    assert [step["kind"] for step in plans.to_remove(its, others)] == ["address"]


def test_rights_to_models_end_at_their_prefix() -> None:
    statements = wanted.bucket_statements(("s3://models/qwen/8b/", "Qwen/Qwen3-8B", "s3://models/qwen/8b/"))
    assert [statement["Resource"] for statement in statements] == [
        "arn:aws:s3:::models/qwen/8b/*",
        "arn:aws:s3:::models",
    ]


def test_two_instances_with_a_hosts_name_are_refused() -> None:
    there = EMPTY | {"instances": [instance("engine-1"), instance("engine-1", InstanceId="i-other")]}
    (problem,) = problems.of_names(fleet(engines(1)), there)
    assert problem == "2 instances are called engine-1 (i-engine-1, i-other): give all but one another Name"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("An error occurred (VcpuLimitExceeded) when calling RunInstances: limit of 0", "Ask for a higher quota"),
        ("An error occurred (InsufficientInstanceCapacity) when calling RunInstances: none left", "Try again later"),
        ("An error occurred (UnauthorizedOperation) when calling RunInstances: no", "Give the credentials the right"),
    ],
)
def test_a_refusal_says_what_to_do(text: str, told: str) -> None:
    assert told in present.refusal(text, "eu-central-1")
    assert present.refusal("parameters are mutually exclusive", "eu-central-1") == "parameters are mutually exclusive"
