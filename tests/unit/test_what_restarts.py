"""Which change of a variable restarts which engine: the rows of the table in the role's README.

The role's own expressions are evaluated. An engine restarts if its fingerprint changes.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.yaml import yaml_load
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from stack_preflight import load

ROLE = Path(__file__).resolve().parents[2] / "roles" / "vllm"
ENGINES: list[dict[str, Any]] = [
    {
        "name": "one",
        "model": "/srv/one",
        "served_model_name": "one",
        "port": 8000,
        "gpus": [0],
        "args": {"dtype": "auto"},
    },
    {"name": "two", "model": "/srv/two", "served_model_name": "two", "port": 8001, "gpus": [1]},
]
# Adapters' ranks by their directories.
RANKS = {"/srv/sql": 16, "/srv/sql-2": 16, "/srv/large": 64}
SQL, LAW, LARGE = (
    {"name": name, "model": f"/srv/{path}"} for name, path in [("sql", "sql"), ("law", "sql-2"), ("large", "large")]
)
BOTH, FIRST, NONE = {"one", "two"}, {"one"}, set[str]()


def trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: trusted(part) for name, part in value.items()}
    if isinstance(value, list):
        return [trusted(part) for part in value]
    return trust_as_template(value) if isinstance(value, str) else value


def evaluated(expression: str, engine: str, variables: dict[str, Any]) -> Any:
    """An expression of the task that renders the engines' files, for one engine."""
    known = yaml_load((ROLE / "defaults" / "main.yml").read_text())
    known |= yaml_load((ROLE / "vars" / "main.yml").read_text())
    tasks = yaml_load((ROLE / "tasks" / "configure.yml").read_text())
    (rendering,) = (task for task in tasks if "__vllm_fingerprint" in task.get("vars", {}))
    known |= rendering["vars"] | {"vllm_engines": ENGINES, "stack_address": "10.0.0.3", "name": engine}
    # What earlier tasks register: nothing planned, no parsers, no adapters.
    known |= {
        "__vllm_model_sizes": {"results": []},
        "__vllm_planned": {"flags": {}, "plans": {}, "gpus": {}},
    } | variables
    adapters = load("engine_entries").adapters_of(known["vllm_engines"])
    directories = {adapter["id"]: adapter["model"] for adapter in adapters}
    known |= {"__vllm_adapter_directories": directories, "__vllm_adapter_ranks": RANKS}
    engines = load("engine_entries").completed(known["vllm_engines"])
    known["__vllm_completed"] = {"engines": engines, "adapters": adapters}
    # A downloaded model's directory is named after its revision.
    known["__vllm_model_paths"] = {each["name"]: each["model"] + each.get("revision", "") for each in engines}
    known["__vllm_parsers"] = {"stdout": json.dumps({path: {} for path in known["__vllm_model_paths"].values()})}
    known = trusted(known) | {"role_path": str(ROLE), "ansible_search_path": [str(ROLE)]}
    return Templar(loader=DataLoader(), variables=known).template(trust_as_template(f"{{{{ {expression} }}}}"))


# By the variables: many rows begin with the same ones, and an evaluation takes a second.
FINGERPRINTS: dict[str, dict[str, str]] = {}


def fingerprints(**variables: Any) -> dict[str, str]:
    if (key := json.dumps(variables)) not in FINGERPRINTS:
        names = [engine["name"] for engine in variables.get("vllm_engines", ENGINES)]
        FINGERPRINTS[key] = {name: str(evaluated("__vllm_fingerprint", name, variables)) for name in names}
    return FINGERPRINTS[key]


def first(**fields: Any) -> dict[str, Any]:
    """The variables with other fields of the first engine."""
    engines = deepcopy(ENGINES)
    engines[0] |= fields
    return {"vllm_engines": engines}


ONE_ADAPTER = first(adapters=[SQL])


@pytest.mark.parametrize(
    ("earlier", "later", "restarted"),
    [
        (ONE_ADAPTER, first(adapters=[SQL, LAW]), NONE),
        (first(adapters=[SQL, LAW]), ONE_ADAPTER, NONE),
        (ONE_ADAPTER, first(adapters=[{"name": "sql", "model": "/srv/sql-2"}]), NONE),
        (ONE_ADAPTER, first(), FIRST),
        (first(), ONE_ADAPTER, FIRST),
        (ONE_ADAPTER, first(adapters=[SQL, LARGE]), FIRST),
        (
            first(adapters=[SQL], args={"max-lora-rank": 64}),
            first(adapters=[SQL, LARGE], args={"max-lora-rank": 64}),
            NONE,
        ),
        (ONE_ADAPTER, first(adapters=[SQL | {"name": f"sql{number}"} for number in range(4)]), NONE),
        (ONE_ADAPTER, first(adapters=[SQL | {"name": f"sql{number}"} for number in range(5)]), FIRST),
        (
            first(adapters=[SQL], args={"data-parallel-size": 2}),
            first(adapters=[LAW], args={"data-parallel-size": 2}),
            FIRST,
        ),
        (
            first(adapters=[SQL], args={"api_server_count": 2}),
            first(adapters=[LAW], args={"api_server_count": 2}),
            FIRST,
        ),
        (
            first(adapters=[SQL], args={"data-parallel-size": 1}),
            first(adapters=[LAW], args={"data-parallel-size": 1}),
            NONE,
        ),
    ],
)
def test_other_adapters_restart_an_engine_only_if_it_has_to_reserve_other_memory(
    earlier: dict[str, Any], later: dict[str, Any], restarted: set[str]
) -> None:
    before, after = fingerprints(**earlier), fingerprints(**later)
    assert {name for name in before if before[name] != after[name]} == restarted


def test_an_engine_s_next_start_has_its_adapters_and_a_running_one_is_given_them() -> None:
    variables = first(adapters=[SQL, LAW])
    assert evaluated("__vllm_engine_config['lora-modules']", "one", variables) == ["sql=/srv/sql", "law=/srv/sql-2"]
    assert evaluated("__vllm_probe.adapters", "one", variables) == {"sql": "/srv/sql", "law": "/srv/sql-2"}
    assert 'VLLM_ALLOW_RUNTIME_LORA_UPDATING="1"' in evaluated("__vllm_env", "one", variables)
    several = first(adapters=[SQL], args={"data-parallel-size": 2})
    for engine, given in [("one", several), ("two", variables)]:
        assert evaluated("__vllm_probe.adapters", engine, given) is None
        assert "LORA_UPDATING" not in evaluated("__vllm_env", engine, given)


SPANS = first(cluster={"rank": 0, "hosts": ["a", "b"], "master_port": 29500})
EFA = {"__vllm_efa_look": {"stdout_lines": ["0xefa1", "/opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so"]}}
EFA["__vllm_efa_look"]["stdout"] = "\n".join(EFA["__vllm_efa_look"]["stdout_lines"])  # type: ignore[assignment]


def test_an_engine_that_spans_hosts_uses_their_adapters() -> None:
    written = evaluated("__vllm_env", "one", SPANS | EFA).splitlines()
    assert 'NCCL_NET_PLUGIN="/opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so"' in written
    assert 'FI_PROVIDER="efa"' in written
    own = first(cluster={}, environment={"FI_PROVIDER": "tcp"})
    assert 'FI_PROVIDER="tcp"' in evaluated("__vllm_env", "one", own | EFA).splitlines()


@pytest.mark.parametrize(
    ("engine", "variables"),
    [
        ("two", SPANS | EFA),  # on this host alone
        ("one", SPANS),  # no adapter was looked for or found
        ("one", SPANS | {"__vllm_efa_look": {"stdout": "0xefa1", "stdout_lines": ["0xefa1"]}}),
        ("one", SPANS | {"__vllm_efa_look": {"stdout": "/opt/x.so", "stdout_lines": ["/opt/x.so"]}}),
    ],
)
def test_other_engines_know_nothing_of_adapters(engine: str, variables: dict[str, Any]) -> None:
    written = evaluated("__vllm_env", engine, variables)
    assert "FI_" not in written
    assert "NCCL_NET" not in written


def planned(**flags: Any) -> dict[str, Any]:
    """Another plan for the first engine."""
    return {"__vllm_planned": {"flags": {"one": flags}, "plans": {}, "gpus": {}}}


# Variables, and which engines restart if they become these.
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    (first(model="/srv/other"), FIRST),
    (first(revision="0" * 40), FIRST),
    (first(stream=True), FIRST),
    (first(served_model_name="other"), FIRST),
    (first(port=8002), FIRST),
    (first(gpus=[2]), FIRST),
    (first(args={"dtype": "auto", "max-num-seqs": 4}), FIRST),
    (first(environment={"A": "1"}), FIRST),
    (first(priority_scheduling=True), FIRST),
    (first(context_tokens=4096, concurrency=8) | planned(**{"max-model-len": 4096}), FIRST),
    (first(context_tokens=4096, concurrency=8), NONE),
    (first(adapters=[SQL]), FIRST),
    ({"vllm_version": "0.34.0"}, BOTH),
    ({"vllm_requirements": str(ROLE / "files" / "requirements-uv.txt")}, BOTH),
    ({"vllm_install_options": ["--no-cache"]}, BOTH),
    ({"vllm_args": {"max-num-seqs": 4}}, BOTH),
    ({"vllm_environment": {"A": "1"}}, BOTH),
    ({"vllm_shutdown_timeout_s": 60}, BOTH),
    ({"stack_address": "10.0.0.4"}, BOTH),
    # The engines' unit waits for the models' one, which fetches them again after a stop of the instance.
    ({"vllm_instance_store": "/mnt/instance-store"}, BOTH),
    ({}, NONE),
    ({"vllm_engines": ENGINES[::-1]}, NONE),
    ({"vllm_engines": [*ENGINES, ENGINES[0] | {"name": "three", "port": 8003, "gpus": [2]}]}, NONE),
    ({"vllm_engines": ENGINES[1:]}, NONE),
    (first(name="renamed"), NONE),
    (first(weight=2, pool="long", max_in_flight=8), NONE),
    (first(beside_port=8100), NONE),
    (first(probe="embeddings", start_timeout_s=60), NONE),
    ({"vllm_watchdog_timeout_s": 120}, NONE),
    ({"vllm_imds_url": "http://10.0.0.1:1338", "vllm_lifecycle_hook": "x", "vllm_drain_on_rebalance": True}, NONE),
    ({"vllm_notices_environment": {"HTTPS_PROXY": "http://x"}}, NONE),
    ({"vllm_start_timeout_s": 60, "vllm_start_timeout_s_per_gb": 1}, NONE),
    ({"vllm_drain_timeout_s": 60}, NONE),
    ({"vllm_keep_releases": 5, "vllm_prune_models": True, "vllm_fetch_parallel_hosts": 1}, NONE),
    ({"vllm_models_dir": "/data/models", "vllm_fetch_environment": {"HF_TOKEN": "x"}}, NONE),
    ({"vllm_install_environment": {"UV_INDEX_URL": "https://x"}, "vllm_install_disk_gb": 1}, NONE),
    ({"vllm_cluster_token": "x" * 64, "vllm_ray_requirements": str(ROLE / "files" / "requirements-uv.txt")}, NONE),
    ({"proxy_workers": 7, "nginx_certbot_domains": ["x"], "stack_domain": "x"}, NONE),
]


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return fingerprints()


@pytest.mark.parametrize(
    ("variables", "restarted"),
    CHANGES,
    ids=lambda value: ", ".join(sorted(value)) if isinstance(value, set) else None,
)
def test_a_change_restarts_what_has_to(before: dict[str, str], variables: dict[str, Any], restarted: set[str]) -> None:
    after = fingerprints(**variables)
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} == restarted


def test_options_in_another_order_restart_nothing() -> None:
    options = {"dtype": "auto", "max-num-seqs": 4}
    in_turn = (options, dict(reversed(options.items())))
    for field in ("args", "environment"):
        one, other = (fingerprints(**first(**{field: order})) for order in in_turn)
        assert one == other
    one, other = (fingerprints(vllm_args=order) for order in in_turn)
    assert one == other


OPTIONS = yaml_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
# The rows of engines over several hosts are in test_vllm_clusters.py.
OF_CLUSTERS = {"vllm_clusters", *OPTIONS["vllm_clusters"]["options"].keys() - OPTIONS["vllm_engines"]["options"].keys()}


def test_each_option_is_in_the_readme_s_table() -> None:
    table = (ROLE / "README.md").read_text().partition("## What a change restarts")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(\w+)`", table))
    assert (
        OPTIONS.keys() | OPTIONS["vllm_engines"]["options"].keys() | OPTIONS["vllm_clusters"]["options"].keys() <= told
    )


def test_each_option_has_a_row() -> None:
    changed = set().union(*(variables for variables, _ in CHANGES))
    entries = [engine for variables, _ in CHANGES for engine in variables.get("vllm_engines", [])]
    changed |= {
        key for engine in entries for key in engine if engine not in ENGINES and engine[key] != ENGINES[0].get(key)
    }
    assert OPTIONS.keys() | OPTIONS["vllm_engines"]["options"].keys() <= changed | OF_CLUSTERS


# As `du` says them; a model that is streamed has no directory.
SIZES = {
    "results": [{"item": "/srv/one", "stdout": "16400000000\t/srv/one"}, {"item": "/srv/two", "stdout": "", "rc": 1}]
}


@pytest.mark.parametrize(
    ("variables", "start_timeouts_s"),
    [
        ({}, [900 + 10 * 17, 900]),
        ({"vllm_start_timeout_s": 100, "vllm_start_timeout_s_per_gb": 2}, [134, 100]),
        (first(start_timeout_s=60), [60, 900]),
    ],
)
def test_a_start_has_time_by_the_size_of_the_model(variables: dict[str, Any], start_timeouts_s: list[int]) -> None:
    sized = variables | {"__vllm_model_sizes": SIZES}
    assert [evaluated("__vllm_probe.start_timeout_s | int", name, sized) for name in ("one", "two")] == start_timeouts_s
