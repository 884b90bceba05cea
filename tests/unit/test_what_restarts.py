"""Which change of a variable restarts which engine: the rows of the table in the role's README.

The role's own expressions are evaluated. An engine restarts if its fingerprint changes.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

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
BOTH, FIRST, NONE = {"one", "two"}, {"one"}, set[str]()


def trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: trusted(part) for name, part in value.items()}
    if isinstance(value, list):
        return [trusted(part) for part in value]
    return trust_as_template(value) if isinstance(value, str) else value


def evaluated(expression: str, engine: str, variables: dict[str, Any]) -> Any:
    """An expression of the task that renders the engines' files, for one engine."""
    known = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    known |= yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    tasks = yaml.safe_load((ROLE / "tasks" / "configure.yml").read_text())
    (rendering,) = (task for task in tasks if "__vllm_fingerprint" in task.get("vars", {}))
    known |= rendering["vars"] | {"vllm_engines": ENGINES, "stack_address": "10.0.0.3", "name": engine}
    # What earlier tasks register: nothing planned, no parsers, no adapters.
    known |= {"__vllm_model_sizes": {"results": []}, "__vllm_planned": {"flags": {}}} | variables
    known |= {"__vllm_adapter_directories": {}, "__vllm_adapter_ranks": {}}
    known["__vllm_completed"] = {"engines": known["vllm_engines"], "adapters": []}
    known["__vllm_model_paths"] = {each["name"]: each["model"] for each in known["vllm_engines"]}
    known["__vllm_parsers"] = {"stdout": json.dumps({path: {} for path in known["__vllm_model_paths"].values()})}
    known = trusted(known) | {"role_path": str(ROLE), "ansible_search_path": [str(ROLE)]}
    return Templar(loader=DataLoader(), variables=known).template(trust_as_template(f"{{{{ {expression} }}}}"))


def fingerprints(**variables: Any) -> dict[str, str]:
    names = [engine["name"] for engine in variables.get("vllm_engines", ENGINES)]
    return {name: str(evaluated("__vllm_fingerprint", name, variables)) for name in names}


def first(**fields: Any) -> dict[str, Any]:
    """The variables with other fields of the first engine."""
    engines = deepcopy(ENGINES)
    engines[0] |= fields
    return {"vllm_engines": engines}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return fingerprints()


@pytest.mark.parametrize(
    ("variables", "restarted"),
    [
        (first(model="/srv/other"), FIRST),
        (first(served_model_name="other"), FIRST),
        (first(port=8002), FIRST),
        (first(gpus=[2]), FIRST),
        (first(args={"dtype": "auto", "max-num-seqs": 4}), FIRST),
        (first(environment={"A": "1"}), FIRST),
        ({"vllm_version": "0.34.0"}, BOTH),
        ({"vllm_requirements": str(ROLE / "files" / "requirements-uv.txt")}, BOTH),
        ({"vllm_install_options": ["--no-cache"]}, BOTH),
        ({"vllm_args": {"max-num-seqs": 4}}, BOTH),
        ({"vllm_environment": {"A": "1"}}, BOTH),
        ({"vllm_shutdown_timeout_s": 60}, BOTH),
        ({"stack_address": "10.0.0.4"}, BOTH),
        ({}, NONE),
        ({"vllm_engines": ENGINES[::-1]}, NONE),
        ({"vllm_engines": [*ENGINES, ENGINES[0] | {"name": "three", "port": 8003, "gpus": [2]}]}, NONE),
        ({"vllm_engines": ENGINES[1:]}, NONE),
        (first(weight=2, pool="long", max_in_flight=8), NONE),
        (first(probe="embeddings", start_timeout_s=60), NONE),
        ({"vllm_watchdog_timeout_s": 120}, NONE),
        ({"vllm_start_timeout_s": 60, "vllm_start_timeout_s_per_gb": 1}, NONE),
        ({"vllm_drain_timeout_s": 60}, NONE),
        ({"vllm_keep_releases": 5}, NONE),
        ({"vllm_models_dir": "/data/models", "vllm_fetch_environment": {"HF_TOKEN": "x"}}, NONE),
        ({"vllm_install_environment": {"UV_INDEX_URL": "https://x"}, "vllm_install_disk_gb": 1}, NONE),
        ({"proxy_workers": 7, "nginx_certbot_domains": ["x"], "stack_domain": "x"}, NONE),
    ],
    ids=lambda value: ", ".join(sorted(value)) if isinstance(value, set) else None,
)
def test_a_change_restarts_what_has_to(before: dict[str, str], variables: dict[str, Any], restarted: set[str]) -> None:
    after = fingerprints(**variables)
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} == restarted


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
