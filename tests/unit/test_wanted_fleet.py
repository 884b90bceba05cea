"""What a fleet needs, what is made of it, and what that costs: by the variables and what is there, without an AWS API."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from stack_fleet import load

wanted, plans, present, problems, prices, adapters, scaling = (
    load("fleet", name) for name in ("wanted", "plans", "present", "problems", "prices", "adapters", "scaling")
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
LISTS += [
    "scaling_groups",
    "placement_groups",
    "images",
    "given_subnets",
    "roles",
    "balancers",
    "target_groups",
    "taken",
]
EMPTY: dict[str, Any] = {name: [] for name in LISTS} | {"zone": "Z1", "record": None, "template_versions": {}}


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


def test_the_rights_to_the_hook_are_those_that_the_watcher_uses() -> None:
    its = dataclasses.replace(fleet(engines(1)), hook="vllm-drain")
    said = [statement["Action"] for statement in wanted.hook_statements(its, "engine")]
    actions = {name.removeprefix("autoscaling:") for one in said for name in ([one] if isinstance(one, str) else one)}
    program = Path(__file__).parents[2] / "roles" / "vllm" / "files" / "helpers" / "lifecycle_action.py"
    calls = re.findall(r"client\.([a-z_]+)\(", program.read_text())
    assert {call.title().replace("_", "") for call in calls} == actions
    assert [role["policy"] for role in wanted.roles(fleet(engines(1)))] == [None], "no hook, no right"


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


@pytest.mark.parametrize(
    ("instance_type", "first", "others"),
    [
        ("g6e.8xlarge", (0, 0, "efa"), []),
        ("g6e.24xlarge", (0, 0, "efa"), [(1, 1, "efa-only")]),
        ("p5.48xlarge", (0, 0, "efa"), [(card, 1, "efa-only") for card in range(1, 32)]),
        # Its first network card has no adapter.
        ("p6-b300.48xlarge", (0, 0, "interface"), [(card, 0, "efa-only") for card in range(1, 17)]),
    ],
)
def test_each_network_card_has_one_adapter(instance_type: str, first: Any, others: list[Any]) -> None:
    found = [tuple(row.values()) for row in adapters.interfaces(instance_type)]
    assert found == [first, *others]


@pytest.mark.parametrize("instance_type", ["g6e.xlarge", "t3.small", "p6e-gb200.36xlarge", "_read_me", "planner", ""])
def test_other_types_have_no_adapter(instance_type: str) -> None:
    assert adapters.interfaces(instance_type) == []
    assert instance_type not in adapters.TYPES


def with_adapters(**settings: Any) -> dict[str, Any]:
    return engines(2, efa=True, **({"type": "g6e.8xlarge"} | settings))


def test_hosts_with_adapters_are_in_one_zone_and_reach_each_other_both_ways() -> None:
    its = fleet(with_adapters() | {"web": {"tiers": ["nginx"], "count": 2, "type": "t3.small"}})
    assert [(host.name, host.zone[-1]) for host in wanted.hosts(its)] == [
        ("engine-1", "a"),
        ("engine-2", "a"),
        ("web-1", "a"),
        ("web-2", "b"),
    ]
    name = "ec2-inference-staging-cluster"
    cluster = next(group for group in wanted.security_groups(its) if group["name"] == name)
    assert (
        plans.module_rules(cluster) == plans.module_rules(cluster, out=True) == [{"proto": "all", "group_name": name}]
    )
    assert wanted.groups_of(its, wanted.hosts(its)[0]) == ["ec2-inference-staging-vllm", name]
    assert wanted.groups_of(its, wanted.hosts(its)[2]) == ["ec2-inference-staging-nginx"]


def test_a_template_for_adapters_is_made_for_hosts_that_are_missing_only() -> None:
    its = fleet(with_adapters(spot=True))
    (template,) = [step for step in plans.to_make(its, EMPTY, {}, "") if step["kind"] == "template"]
    assert template["text"].endswith(", for spot instances with 1 Elastic Fabric Adapter")
    efa = [{"InterfaceType": "efa"}]
    there = EMPTY | {
        "instances": [instance(f"engine-{n}", InstanceType="g6e.8xlarge", NetworkInterfaces=efa) for n in (1, 2)]
    }
    assert [step for step in plans.to_make(its, there, {}, "") if step["kind"] == "template"] == []
    assert plans.surplus(its, there) == []


def test_a_host_that_was_made_without_adapters_is_reported() -> None:
    plain = instance("engine-1", InstanceType="g6e.8xlarge", NetworkInterfaces=[{"InterfaceType": "interface"}])
    (notice,) = plans.surplus(fleet(with_adapters()), EMPTY | {"instances": [plain]})
    assert notice.startswith("instance i-engine-1 (engine-1) has no Elastic Fabric Adapter")


@pytest.mark.parametrize(
    ("settings", "network", "told"),
    [
        ({"type": "g6e.xlarge"}, {}, "g6e.xlarge has no Elastic Fabric Adapter: take one of g4dn.8xlarge, "),
        ({"type": "p5.48xlarge"}, {}, "p5.48xlarge has 32 network interfaces then, so AWS gives it no public address"),
        ({"tiers": ["proxy", "vllm"]}, {}, "tiers is proxy, vllm: only engines use Elastic Fabric Adapters"),
        ({"type": "p5.48xlarge"}, {"subnet_ids": ["subnet-1", "subnet-2"]}, None),
        ({"type": "planner"}, {}, None),
        ({}, {}, None),
    ],
)
def test_adapters_where_there_can_be_none_are_refused(settings: Any, network: Any, told: str | None) -> None:
    found = list(problems.of_variables(fleet(with_adapters(**settings), **network)))
    assert len(found) == (told is not None), found
    assert told is None or told in found[0]


def test_who_serves_nobody_goes_first_and_then_the_newest() -> None:
    rows = [
        instance("engine-1", LaunchTime="2026-11-03"),
        instance("engine-2", LaunchTime="2026-11-01"),
        instance("engine-3", LaunchTime="2026-11-02"),
        instance("engine-4", LaunchTime="2026-11-01", State={"Name": "stopped"}),
    ]
    serving = ["i-engine-1", "i-engine-3", "i-engine-4"]
    gone = [[row["InstanceId"] for row in scaling.leaving(rows, count, serving)] for count in (4, 3, 2, 1, 0)]
    order = ["i-engine-4", "i-engine-2", "i-engine-1", "i-engine-3"]
    assert [set(one) for one in gone] == [set(order[:number]) for number in range(5)]


def test_hosts_that_stay_keep_their_names() -> None:
    rows = [instance("engine-2"), instance("engine-5")]
    assert scaling.numbers("engine", 2, rows) == [2, 5]
    assert scaling.numbers("engine", 4, rows) == [1, 2, 3, 5]
    assert scaling.numbers("engine", 1, rows) == [2]
    its = fleet(engines(4))
    its.kinds["engine"]["numbers"] = [1, 2, 3, 5]
    assert [(host.name, host.zone[-1]) for host in wanted.hosts(its)][-1] == ("engine-5", "a")


def test_what_a_change_costs() -> None:
    its = fleet(engines(2))
    there = EMPTY | {"instances": [instance("engine-1"), instance("engine-2")]}
    table = {"g6.xlarge": {"usd_per_hour": 0.8}}
    around = prices.usd_per_hour_of_disk(30) + prices.PUBLIC_IPV4
    (row, _) = there["instances"]
    assert scaling.usd_per_hour(its, "engine", [], [row], there, table) == pytest.approx(-0.8 - around)
    stopped = row | {"State": {"Name": "stopped"}}
    assert scaling.usd_per_hour(its, "engine", [], [stopped], there, table) == pytest.approx(-around)
    step = {"kind": "start", "name": "engine-1"}
    assert scaling.usd_per_hour(its, "engine", [step], [], there, table) == pytest.approx(0.8)
    assert scaling.usd_per_hour(its, "engine", [], [row], there, {}) is None


@pytest.mark.parametrize(
    ("pool", "count", "told"),
    [
        ("engnie", 2, "pool engnie is unknown: stack_fleets.staging.hosts has engine"),
        ("api", 2, "pool api is of the tiers proxy, and only hosts that are engines and nothing else are scaled"),
        ("", 2, "no pool is named: add -e pool=NAME"),
        ("engine", "", "the number is not named: add -e count=N"),
        ("engine", "-1", "count is -1: use a whole number of 0 to 200"),
        ("engine", "2.5", "count is 2.5: use a whole number"),
        ("engine", 201, "count is 201: use a whole number"),
        ("engine", "0", None),
    ],
)
def test_a_pool_and_a_number_that_cannot_be_meant_are_refused(pool: str, count: object, told: str | None) -> None:
    its = fleet(engines(2) | {"api": {"tiers": ["proxy"], "count": 1, "type": "t3.small"}})
    found = list(scaling.of_request(its, pool, count))
    assert found == [] if told is None else told in found[0]
