"""Engines over several hosts: who may be in one, what has to agree, and what its ranks are to the other checks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from preflight_inventory import ENGINE, GOOD, SECRET, problems, seen
from stack_preflight import load

CLUSTER = {
    "name": "big",
    "model": "/srv/big",
    "hosts": ["gpu1", "gpu2"],
    "args": {"tensor-parallel-size": 8, "pipeline-parallel-size": 2},
}
MEMBERS = ("gpu1", "gpu2", "gpu3")


def fleet(*clusters: Any, **variables: Any) -> dict[str, Any]:
    """The good inventory with three GPU hosts and these clusters."""
    inventory = copy.deepcopy(GOOD)
    inventory["groups"]["vllm"] = ["engine1", *MEMBERS]
    common = {"vllm_clusters": list(clusters), "vllm_cluster_token": SECRET, **variables}
    for number, host in enumerate(MEMBERS):
        inventory["hostvars"][host] = {"stack_address": f"10.0.1.{number}", **copy.deepcopy(common)}
    for host in ("gpu3",) if clusters and "gpu3" not in str(clusters) else ():
        inventory["hostvars"][host]["vllm_engines"] = [ENGINE]
    inventory["hostvars"]["engine1"] |= copy.deepcopy(common)
    return inventory


def cluster(**fields: Any) -> dict[str, Any]:
    return fleet({key: value for key, value in (CLUSTER | fields).items() if value is not ...})


def test_a_cluster_is_accepted_and_its_hosts_need_no_engine_of_their_own() -> None:
    assert problems(cluster()) == []


def test_each_host_has_its_rank_and_only_the_head_is_an_engine_to_proxies() -> None:
    inventory = seen(fleet(CLUSTER, CLUSTER | {"name": "two", "hosts": ["gpu1", "gpu2"]}))
    (one, two), (rank, _) = inventory.engines("gpu1"), inventory.engines("gpu2")
    assert one["cluster"] == {"backend": "native", "rank": 0, "hosts": ["gpu1", "gpu2"], "master_port": 29500}
    assert rank["cluster"]["rank"] == 1
    assert (one["port"], two["port"], rank["port"]) == (8100, 8101, 8100)
    assert two["cluster"]["master_port"] == 29502
    assert one["args"] == {**CLUSTER["args"], "nnodes": 2, "distributed-executor-backend": "mp"}  # type: ignore[dict-item]
    assert [engine.get("cluster") for engine in inventory.engines("gpu3")] == [None]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hosts": ...}, "vllm_clusters[0] (big) lacks hosts"),
        ({"hosts": []}, "vllm_clusters[0] (big).hosts is empty, but needs 1 or more"),
        ({"hosts": "gpu1,gpu2"}, "vllm_clusters[0] (big).hosts is"),
        ({"hosts": ["gpu1"]}, "cluster 'big' has one host, gpu1: list two or more"),
        ({"hosts": ["gpu1", "gpu1"]}, "cluster 'big' has one host, gpu1: list two or more"),
        ({"hosts": ["gpu1", "gpu1", "gpu2", "gpu3"]}, "cluster 'big' lists host gpu1 2 times: name each host once"),
        ({"hosts": ["gpu1", "gpu22"]}, "lists host gpu22, which the inventory does not have"),
        ({"hosts": ["gpu1", "gpu22"]}, "did you mean gpu2?"),
        ({"hosts": ["gpu1", "x"]}, "the group vllm has engine1, gpu1, gpu2, gpu3"),
        ({"hosts": ["gpu1", "api1"]}, "cluster 'big' lists host api1, which is not in the group vllm: add it"),
        ({"name": "one", "hosts": ["gpu1", "engine1"]}, "has the name of an engine in vllm_engines of engine1"),
        ({"name": "Big"}, "use lower-case letters"),
        ({"model": ...}, "lacks model"),
        ({"model": "big"}, "set revision to the 40 digits of a commit"),
        ({"args": {}}, "is 1, which cannot be divided among 2 hosts: set them in its args"),
        ({"args": {"tensor_parallel_size": "3"}}, "is 3, which cannot be divided among 2 hosts"),
        ({"args": {"tensor-parallel-size": "two"}}, "must be a whole number, at least 1"),
        ({"args": {"tensor-parallel-size": 2, "nnodes": 2}}, "must not have nnodes, which the role sets for each host"),
        ({"args": {"tensor-parallel-size": 2, "node_rank": 0}}, "must not have node-rank"),
        ({"args": {"tensor-parallel-size": 2, "headless": True}}, "must not have headless"),
        ({"args": {"tensor-parallel-size": 2, "data-parallel-size": 2}}, "have data-parallel-size, and a cluster is"),
        ({"args": {"tensor-parallel-size": 2, "port": 1}}, "must not have port"),
        ({"gpus": [0, 1]}, "spreads over 8 GPUs (tensor-parallel-size 8 and pipeline-parallel-size 2), but has 2"),
        ({"master_port": 80}, "vllm_clusters[0] (big).master_port is 80, but must be at least 1024"),
        ({"master_port": 65535}, "at most 65534"),
        ({"port": 70000}, "vllm_clusters[0] (big).port is 70000"),
        ({"master_port": 8100}, "host gpu1: port 8100 is used by engine big and the ranks of cluster big"),
        ({"master_port": 8099}, "host gpu2: port 8100 is used by engine big and the ranks of cluster big"),
        ({"backend": "mpi"}, "backend is 'mpi', but must be one of native, ray"),
        ({"backend": ["ray"]}, "backend is a list, but must be a text"),
        (
            {"backend": "ray", "environment": {"RAY_AUTH_MODE": "disabled"}},
            "must not have RAY_AUTH_MODE, which the role sets",
        ),
        (
            {"backend": "ray", "environment": {"RAY_AUTH_TOKEN": "x"}},
            "must not have RAY_AUTH_TOKEN, which the role sets",
        ),
        ({"backend": "ray", "args": {"tensor-parallel-size": 3}}, "is 3, which cannot be divided among 2 hosts"),
        ({"backend": "ray", "gpus": [0, 1]}, "spreads over 8 GPUs"),
        ({"host": "gpu1"}, "the unknown option 'host': did you mean hosts?"),
    ],
)
def test_a_wrong_cluster_is_a_problem_with_its_fix(fields: dict[str, Any], said: str) -> None:
    found = problems(cluster(**fields))
    assert [line for line in found if said in line], found
    assert not [line for line in found if "could not be made" in line], found


def test_a_cluster_may_be_on_ray() -> None:
    inventory = cluster(backend="ray", environment={"RAY_BACKEND_LOG_LEVEL": "debug"})
    assert problems(inventory) == []
    (rank,) = seen(inventory).engines("gpu2")
    assert rank["cluster"]["backend"] == "ray"
    # The planner divides the engine's GPUs among the hosts.
    assert (rank["args"]["nnodes"], rank["args"]["distributed-executor-backend"]) == (2, "ray")
    assert problems(cluster(environment={"RAY_AUTH_MODE": "disabled"})) == []


def test_options_of_ranks_are_refused_in_the_options_of_all_engines_too() -> None:
    found = problems(fleet(CLUSTER, vllm_args={"distributed-executor-backend": "mp"}))
    assert [line for line in found if "must not have distributed-executor-backend" in line]


def test_all_problems_of_all_clusters_are_told_at_once() -> None:
    second = CLUSTER | {"hosts": ["gpu2", "nobody"], "args": {}}
    found = "\n".join(problems(fleet(CLUSTER, second, vllm_cluster_token="short")))
    for said in (
        "cluster 'big' stands twice in vllm_clusters",
        "lists host nobody",
        "cannot be divided among 2 hosts",
        "share gpu2, but not all hosts",
        "host gpu1: vllm_cluster_token has 5 characters and can be guessed",
    ):
        assert said in found
    assert "short" not in found


def test_two_clusters_share_all_hosts_or_none() -> None:
    reversed_hosts = CLUSTER | {"name": "two", "hosts": ["gpu2", "gpu1"]}
    assert problems(fleet(CLUSTER, reversed_hosts)) == []
    assert (
        "share gpu1, but not all hosts"
        in problems(fleet(CLUSTER, CLUSTER | {"name": "two", "hosts": ["gpu1", "gpu3"]}))[-1]
    )


@pytest.mark.parametrize("token", [None, "", ...])
def test_a_cluster_needs_a_token(token: Any) -> None:
    inventory = fleet(CLUSTER)
    for host in MEMBERS:
        inventory["hostvars"][host]["vllm_cluster_token"] = token
        if token is ...:
            del inventory["hostvars"][host]["vllm_cluster_token"]
    found = [line for line in problems(inventory) if "vllm_cluster_token" in line]
    assert len(found) >= (1 if token is None else 2), found


def test_without_a_cluster_no_token_is_needed(inventory: dict[str, Any]) -> None:
    assert problems(inventory) == []
    inventory["hostvars"]["engine1"]["vllm_clusters"] = []
    assert problems(inventory) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vllm_version", "0.34.0"),
        ("vllm_args", {"max-model-len": 8}),
        ("vllm_environment", {"A": "1"}),
        ("vllm_cluster_token", SECRET[::-1]),
        ("vllm_shutdown_timeout_s", 4321),
    ],
)
def test_the_hosts_of_a_cluster_run_alike(name: str, value: Any) -> None:
    inventory = fleet(CLUSTER)
    inventory["hostvars"]["gpu2"][name] = value
    (line,) = problems(inventory)
    assert f"cluster 'big': {name} of gpu2 is not that of gpu1" in line
    assert str(value) not in line
    inventory = fleet(CLUSTER)
    inventory["hostvars"]["gpu3"][name] = value
    assert problems(inventory) == []


def test_hosts_know_the_same_clusters() -> None:
    inventory = fleet(CLUSTER)
    inventory["hostvars"]["gpu2"]["vllm_clusters"] = []
    found = problems(inventory)
    assert [line for line in found if "vllm_clusters of gpu2 is not that of" in line], found


@pytest.mark.parametrize("clusters", [{}, "big", [None], ["big"], [[]], None, [{"hosts": [None, 1]}], [{"hosts": {}}]])
def test_odd_input_is_told_and_stops_no_check(clusters: Any) -> None:
    inventory = fleet()
    for host in inventory["groups"]["vllm"]:
        inventory["hostvars"][host]["vllm_clusters"] = clusters
        inventory["hostvars"][host]["vllm_engines"] = [ENGINE]
    found = problems(inventory)
    assert [line for line in found if "vllm_clusters" in line], found
    assert not [line for line in found if "could not be made" in line], found


@pytest.mark.parametrize(
    ("limit", "here", "said"),
    [
        (None, ["engine1", *MEMBERS], ""),
        ("gpu1", ["gpu1"], "--limit gpu1 leaves out gpu2 of cluster big"),
        ("gpu2,engine1", ["gpu2", "engine1"], "--limit gpu2,engine1 leaves out gpu1 of cluster big"),
        ("engine1", ["engine1"], ""),
        ("gpu1,gpu2", ["gpu1", "gpu2"], ""),
    ],
)
def test_a_limit_that_splits_a_cluster_is_refused(limit: str | None, here: list[str], said: str) -> None:
    refusal = load("run_options").split_refusal
    found = refusal(seen(cluster()), {"ansible_limit": limit, "ansible_play_hosts_all": here})
    assert said in found
    assert bool(found) is bool(said)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, False),
        ({"stack_batch": 1, "stack_canary": 1}, False),
        ({"stack_batch": "1", "stack_canary": "0"}, False),
        ({"stack_batch": 2}, True),
        ({"stack_batch": "25%"}, True),
        ({"stack_canary": "2"}, True),
    ],
)
def test_several_hosts_at_once_are_refused_where_ranks_roll_together(options: dict[str, Any], refused: bool) -> None:
    refusal = load("run_options").split_refusal
    assert bool(refusal(seen(cluster()), options)) is refused
    assert refusal(seen(fleet()), options) == ""
