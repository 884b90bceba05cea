"""What the role vllm gets from the planner for the engines of a host."""

from __future__ import annotations

from typing import Any

import pytest
from planner_data import MODELS
from stack_plan import load

flags, reports = load("flags"), load("reports")
L40S = "NVIDIA L40S, 46068\n"


def of_host(smi: str, model: str, **engine: Any) -> dict[str, Any]:
    entry = {"name": "one", "model": "/srv/models/one", **engine}
    host = reports.host_of(smi, None)
    return reports.plan_of_host([entry], host, {"one": MODELS[model]}, (0, 33))  # type: ignore[no-any-return]


def test_an_engine_that_fits_as_it_is_gets_no_further_option() -> None:
    assert of_host(L40S, "Qwen3-8B")["flags"] == {"one": {}}


def test_an_engine_that_needs_it_is_divided_and_shortened() -> None:
    told = of_host(L40S * 4, "Qwen3-32B", context_tokens=16384, concurrency=4)
    assert told["problems"] == []
    assert told["flags"]["one"] == {"pipeline-parallel-size": 2, "max-model-len": 16384}
    assert of_host(L40S, "Meta-Llama-3.1-8B")["flags"]["one"] == {}
    assert of_host("NVIDIA L4, 23034", "Meta-Llama-3.1-8B")["flags"]["one"]["max-model-len"] < 32000


def test_what_an_operator_says_is_not_said_again() -> None:
    told = of_host(L40S * 4, "Qwen3-32B", args={"tensor_parallel_size": 4, "max-model-len": "8K"})
    assert told["flags"]["one"] == {}


def test_an_engine_that_surely_does_not_fit_is_a_problem_with_its_arithmetic() -> None:
    (problem,) = of_host(L40S, "Qwen3-32B")["problems"]
    assert "engine one: /srv/models/one does not fit on 1 x NVIDIA L40S" in problem
    assert "weights: 61" in problem
    assert "It would fit with" in problem


def test_parallel_sizes_that_cannot_be_are_a_problem() -> None:
    (problem,) = of_host(L40S * 4, "Qwen3-32B", args={"tensor-parallel-size": 3})["problems"]
    assert problem == "engine one: tensor-parallel-size is 3, which does not divide the model's 64 attention heads"


def test_gpus_are_known_by_nvidia_smi_or_by_the_instance_type() -> None:
    host = reports.host_of(L40S * 2, "g6.xlarge")
    assert (host.gpus, host.card.total_gib, host.card.exact) == (2, 44.4, True)
    assert reports.host_of("", "g6.xlarge").name == "g6.xlarge"
    assert reports.host_of("No devices were found", "m7i.large") is None
    unknown = reports.host_of("NVIDIA Something New, 40000", None)
    assert not unknown.card.exact
    assert reports.host_of("NVIDIA H100 80GB HBM3, 81559\n" * 8, None).card.nvlink


def test_gpus_of_several_kinds_are_refused() -> None:
    with pytest.raises(flags.PlanError, match="several kinds"):
        reports.host_of(L40S + "NVIDIA L4, 23034", None)


def test_an_engine_whose_model_cannot_be_read_is_left_to_vllm() -> None:
    host = reports.host_of(L40S, None)
    entry = {"name": "one", "model": "/no/such/directory"}
    assert reports.plan_of_host([entry], host, {"one": None}, (0, 33)) == {
        "flags": {},
        "plans": {},
        "gpus": {"one": [0]},
        "problems": [],
    }


def of_engines(smi: str, *engines: dict[str, Any], complete: bool = True) -> dict[str, Any]:
    """The plan of several engines, each with the name of its model in the tests' data, or without one that can be read."""
    entries = [{"name": f"e{number}", "model": "/no/such", **engine} for number, engine in enumerate(engines)]
    configs = {entry["name"]: MODELS.get(str(entry["model"])) for entry in entries}
    return reports.plan_of_host(entries, reports.host_of(smi, None), configs, (0, 33), complete)


LARGE, SMALL = {"model": "Qwen3-32B", "context_tokens": 16384, "concurrency": 4}, {"model": "Qwen3-8B"}


def test_engines_get_the_smallest_sets_of_gpus_that_do_in_their_order() -> None:
    told = of_engines(L40S * 4, LARGE, SMALL, SMALL)
    assert told["problems"] == []
    assert told["gpus"] == {"e0": [0, 1], "e1": [2], "e2": [3]}
    assert told["flags"]["e0"]["pipeline-parallel-size"] == 2


def test_gpus_that_an_operator_names_are_left_to_that_engine() -> None:
    told = of_engines(L40S * 4, SMALL, {**SMALL, "gpus": [0, 2]}, SMALL)
    assert told["problems"] == []
    assert told["gpus"] == {"e0": [1], "e2": [3]}


def test_an_engine_for_which_no_gpu_is_left_is_refused_with_who_has_them() -> None:
    (problem,) = of_engines(L40S * 2, SMALL, {**SMALL, "gpus": [1]}, SMALL)["problems"]
    assert "engine e2 needs 1 of the host's 2 GPUs, and none of them is left (e1 has 1, e0 has 0)" in problem
    assert "gpu-memory-utilization" in problem


def test_engines_share_a_gpu_only_as_the_operator_says() -> None:
    half = {**SMALL, "args": {"gpu-memory-utilization": 0.5, "max-model-len": 4096, "max-num-seqs": 16}}
    told = of_engines(L40S, half, half)
    assert told["gpus"] == {"e0": [0], "e1": [0]}
    assert told["problems"] == []
    assert of_engines(L40S, half, half, half)["gpus"] == {"e0": [0], "e1": [0]}


def test_an_engine_whose_model_cannot_be_read_says_how_many_gpus_it_takes() -> None:
    (problem,) = of_engines(L40S * 4, {}, SMALL)["problems"]
    assert (
        problem
        == "engine e0: the config.json of /no/such cannot be read, so how many GPUs it takes is not known: set gpus"
    )
    assert of_engines(L40S * 4, {}, SMALL, complete=False)["problems"] == []
    assert of_engines(L40S * 4, {"args": {"tensor-parallel-size": 2}}, SMALL)["gpus"] == {"e0": [0, 1], "e1": [2]}


def test_a_card_that_is_too_old_is_a_problem() -> None:
    host = reports.host_of("", "p3dn.24xlarge")
    told = reports.plan_of_host([{"name": "one", "model": "m"}], host, {"one": MODELS["Qwen3-0.6B"]}, (0, 33))
    (problem,) = told["problems"]
    assert "compute capability 7" in problem
    assert told["flags"] == {"one": {}}
