"""What the role writes for each rank of an engine over several hosts, rendered by Ansible from the role's own variables."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import yaml
from stack_preflight import load
from test_what_restarts import ENGINES, ROLE, evaluated

HOSTVARS = {host: {"stack_address": f"10.0.0.{number}"} for number, host in enumerate(["a", "b", "c"], 1)}
CLUSTER: dict[str, Any] = {
    "name": "big",
    "model": "/srv/big",
    "hosts": ["b", "a"],
    "args": {"tensor-parallel-size": 2},
}


def of(host: str, expression: str, *clusters: dict[str, Any], engine: str = "big", **variables: Any) -> Any:
    """An expression of the task that renders the engines' files, for an engine of a host."""
    own = load("clusters").engines_of(host, ENGINES, clusters or [CLUSTER])
    known = {"vllm_engines": own, "stack_address": HOSTVARS[host]["stack_address"], "hostvars": HOSTVARS}
    facts = {
        "lo": {"device": "lo", "ipv4": {"address": "127.0.0.1"}},
        "ens5": {"device": "ens5", "ipv4": {"address": known["stack_address"]}},
        "ens6": {"device": "ens6"},
        "default_ipv4": {"interface": "ens6"},
    }
    return evaluated(expression, engine, known | {"ansible_facts": facts} | variables)


def test_each_rank_has_its_place_and_the_head_alone_serves() -> None:
    head, worker = (yaml.safe_load(of(host, "__vllm_yml")) for host in ("b", "a"))
    assert head | {"host": 0, "node-rank": 1, "headless": True} == worker | {"host": 0}
    assert (head["nnodes"], head["node-rank"], head["distributed-executor-backend"]) == (2, 0, "mp")
    assert (head["master-addr"], head["master-port"], head["port"]) == ("10.0.0.2", 29500, 8100)
    assert "headless" not in head


def test_all_hosts_probe_the_head() -> None:
    assert {of(host, "__vllm_probe.url") for host in ("a", "b")} == {"http://10.0.0.2:8100"}


def test_the_program_that_starts_them_together_knows_all_ranks() -> None:
    head, worker = (of(host, "__vllm_place") for host in ("b", "a"))
    assert head["rank"] == 0
    assert head | {"rank": 1} == worker
    assert head["addresses"] == ["10.0.0.2", "10.0.0.1"]
    assert (head["port"], head["grace_s"]) == (29501, 120)


def test_ranks_talk_on_the_interface_of_the_private_address() -> None:
    environment = of("a", "__vllm_env").splitlines()
    assert 'VLLM_HOST_IP="10.0.0.1"' in environment
    assert 'GLOO_SOCKET_IFNAME="ens5"' in environment
    assert 'NCCL_SOCKET_IFNAME="=ens5"' in environment
    own = of("a", "__vllm_env", CLUSTER | {"environment": {"NCCL_SOCKET_IFNAME": "eth"}})
    assert 'NCCL_SOCKET_IFNAME="eth"' in own.splitlines()


def generations(*clusters: dict[str, Any], **variables: Any) -> set[str]:
    return {of(host, "__vllm_generation", *clusters, **variables) for host in ("a", "b")}


def test_a_generation_is_the_same_on_all_hosts_and_another_after_each_change_of_how_the_engine_runs() -> None:
    (before,) = generations()
    for changed in (
        {"args": {"tensor-parallel-size": 4}},
        {"environment": {"A": "1"}},
        {"model": "/srv/other"},
        {"served_model_name": "other"},
        {"master_port": 30000},
        {"hosts": ["b", "a", "c"]},
    ):
        (after,) = generations(CLUSTER | changed)
        assert after != before, changed
    for variables in ({"vllm_version": "0.34.0"}, {"vllm_args": {"seed": 1}}, {"vllm_shutdown_timeout_s": 60}):
        (after,) = generations(**variables)
        assert after != before, variables
    assert generations(CLUSTER | {"weight": 2, "start_timeout_s": 60}) == {before}
    # Where a host keeps its models, and which GPUs it gives, is its own affair.
    elsewhere = {"__vllm_planned": {"flags": {}, "plans": {}, "gpus": {"big": [3]}}}
    assert of("a", "__vllm_generation", **elsewhere) == before


def test_a_rank_that_runs_elsewhere_or_with_others_is_restarted() -> None:
    before = of("a", "__vllm_fingerprint")
    moved = HOSTVARS | {"b": {"stack_address": "10.0.0.9"}}
    assert of("a", "__vllm_fingerprint", hostvars=moved) != before
    assert of("a", "__vllm_fingerprint", CLUSTER | {"hosts": ["a", "b"]}) != before
    assert of("a", "__vllm_fingerprint", CLUSTER | {"weight": 2}) == before


def test_another_engine_of_the_host_is_not_restarted_by_a_cluster() -> None:
    assert of("a", "__vllm_fingerprint", engine="one") == evaluated(
        "__vllm_fingerprint", "one", {"stack_address": "10.0.0.1"}
    )


def test_adapters_of_ranks_are_not_changed_while_they_run() -> None:
    adapters = CLUSTER | {"adapters": [{"name": "sql", "model": "/srv/sql"}]}
    for host in ("a", "b"):
        assert of(host, "__vllm_probe.adapters", adapters) is None
        assert of(host, "__vllm_engine_config['lora-modules']", adapters) == ["sql=/srv/sql"]


def test_the_settings_of_the_unit_run_the_same_command_in_the_program() -> None:
    unit, settings = (of("a", name) for name in ("__vllm_unit", "__vllm_cluster_unit"))
    (command,) = (line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
    assert settings.splitlines().count("ExecStart=") == 1
    assert f"cluster_member.py /opt/vllm/current/engines/%i.cluster.json {command}\n" in settings
    read = configparser.RawConfigParser(strict=False)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string(settings)
    service = read["Service"]
    assert service["LoadCredential"] == "cluster_token:/etc/vllm/cluster_token"
    assert (service["Type"], service["WatchdogSignal"]) == ("notify", "SIGKILL")


def test_the_files_are_those_that_the_program_reads() -> None:
    import cluster_member

    place = of("a", "__vllm_place")
    assert cluster_member.Place(**place).name(0) == "rank 0 (10.0.0.2)"
    assert 'TOKEN = "cluster_token"' in Path(ROLE / "files" / "helpers" / "cluster_member.py").read_text()


RAY = CLUSTER | {"backend": "ray", "args": {"tensor_parallel_size": 4, "pipeline-parallel-size": 2}}


def unit_of(host: str, *clusters: dict[str, Any], **variables: Any) -> configparser.SectionProxy:
    """The settings of a rank's unit. ExecStart= stands twice: the first one empties the list."""
    read = configparser.RawConfigParser(strict=False)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string(of(host, "__vllm_cluster_unit", *clusters, **variables))
    return read["Service"]


def test_on_ray_each_host_runs_a_node_that_offers_the_gpus_of_its_ranks() -> None:
    head, worker = (unit_of(host, RAY)["ExecStart"] for host in ("b", "a"))
    assert head.replace("--address=10.0.0.2", "--address=10.0.0.1") == worker
    assert "/cluster_member.py /opt/vllm/current/engines/%i.cluster.json /usr/bin/python3 " in head
    assert "/ray_node.py --ray=/opt/vllm/venvs/0.33.0-" in head
    assert "--head=10.0.0.2:29500 --address=10.0.0.2 --gpus=4 /opt/vllm/current/venv/bin/vllm serve --config " in head


def test_on_ray_the_engine_is_told_nothing_of_the_nodes() -> None:
    head, worker = (yaml.safe_load(of(host, "__vllm_yml", RAY)) for host in ("b", "a"))
    assert head | {"host": 0} == worker | {"host": 0}
    assert head["distributed-executor-backend"] == "ray"
    assert not {"nnodes", "node-rank", "master-addr", "master-port", "headless"} & head.keys()


def test_nodes_of_ray_know_each_other_by_a_token_that_no_command_or_environment_has() -> None:
    environment = dict(
        line.split("=", 1) for line in of("a", "__vllm_env", RAY, vllm_cluster_token="hush").splitlines()
    )
    assert environment["RAY_AUTH_MODE"] == '"token"'
    assert environment["RAY_AUTH_TOKEN_PATH"] == '"/run/credentials/vllm@big.service/cluster_token"'
    assert environment["RAY_ADDRESS"] == '"10.0.0.2:29500"'
    assert environment["VLLM_HOST_IP"] == '"10.0.0.1"'
    service = unit_of("a", RAY, vllm_cluster_token="hush")
    assert service["LoadCredential"].startswith("cluster_token:")
    assert "hush" not in f"{environment}{dict(service)}"


def test_only_an_engine_on_ray_sees_ray_and_restarts_with_it() -> None:
    path = of("a", "__vllm_environment_values.PYTHONPATH", RAY | {"environment": {"PYTHONPATH": "/srv/more"}}).split(
        ":"
    )
    assert path[0] == "/opt/vllm/current/python"
    assert path[1].startswith("/opt/vllm/venvs/0.33.0-")
    assert path[2] == "/srv/more"
    assert of("a", "__vllm_environment_values.PYTHONPATH") == "/opt/vllm/current/python"
    other = {"vllm_ray_requirements": str(ROLE / "files" / "requirements-uv.txt")}
    for host in ("a", "b"):
        assert of(host, "__vllm_fingerprint", RAY, **other) != of(host, "__vllm_fingerprint", RAY)
        assert of(host, "__vllm_fingerprint", **other) == of(host, "__vllm_fingerprint")
        assert of(host, "__vllm_fingerprint", RAY, engine="one") == of(host, "__vllm_fingerprint", engine="one")


def test_a_generation_on_ray_is_the_same_on_all_hosts_and_another_after_each_change() -> None:
    (before,) = generations(RAY)
    for changed in (
        {"hosts": ["b", "a", "c"]},
        {"hosts": ["b", "c"]},
        {"master_port": 30000},
        {"backend": "native"},
        {"args": {"tensor-parallel-size": 2}},
    ):
        changed_generations = {of("b", "__vllm_generation", RAY | changed)}
        assert before not in changed_generations, changed
    assert generations(RAY, vllm_ray_requirements=str(ROLE / "files" / "requirements-uv.txt")) != {before}


def test_hosts_of_a_cluster_on_ray_install_it_and_others_do_not() -> None:
    def wanted(*clusters: dict[str, Any]) -> bool:
        return bool(of("a", "__vllm_ray_wanted", inventory_hostname="a", vllm_clusters=list(clusters)))

    assert wanted(CLUSTER, RAY)
    assert not wanted(CLUSTER, CLUSTER | {"backend": "native"}, RAY | {"hosts": ["b", "c"]})
    assert not wanted()
