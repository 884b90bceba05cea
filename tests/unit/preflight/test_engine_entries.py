"""Short entries of engines: what follows from the model, and where."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import ENGINE, SECRET, engine, found, problems
from stack_preflight import load

completed = load("engine_entries").completed
COMMIT = "b968826d9c46dd6066d109eabc6255188de91218"
HUB = {"model": "Qwen/Qwen3-8B", "revision": COMMIT}


def with_engines(*engines: dict[str, Any]) -> list[str]:
    """The problems of an inventory whose only engine host has these."""
    return found(vllm_engines=list(engines))


@pytest.mark.parametrize(
    ("model", "name", "served"),
    [
        ("Qwen/Qwen3-8B", "qwen3-8b", "Qwen/Qwen3-8B"),
        ("gpt2", "gpt2", "gpt2"),
        ("/srv/models/Llama_3.1-8B/", "llama-3-1-8b", "Llama_3.1-8B"),
        ("s3://models/team/tiny-qwen3/", "tiny-qwen3", "tiny-qwen3"),
        ("s3://models", "models", "models"),
        (f"/srv/hub/models--Qwen--Qwen3-8B/snapshots/{COMMIT}", "qwen3-8b", "Qwen/Qwen3-8B"),
        (f"/srv/hub/models--gpt2/snapshots/{COMMIT}/", "gpt2", "gpt2"),
        (f"s3://cache/hub/models--Qwen--Qwen3-8B/snapshots/{COMMIT}/", "qwen3-8b", "Qwen/Qwen3-8B"),
        ("/srv/models--Qwen--Qwen3-8B/snapshots", "snapshots", "snapshots"),
        (f"/srv/hub/models--Qwen--Qwen3-8B/snapshots/{COMMIT}/onnx", "onnx", "onnx"),
    ],
)
def test_the_names_follow_from_the_model(model: str, name: str, served: str) -> None:
    (one,) = completed([{"model": model}])
    assert one == {"model": model, "name": name, "served_model_name": served, "port": 8000, "served_models": [served]}


def test_a_complete_entry_stays_as_it_is() -> None:
    """An existing fleet has complete entries: its files, and so the engines' fingerprints, are as before."""
    whole = {**ENGINE, "port": 8123, "gpus": [0], "args": {"max-model-len": 16}, "environment": {"A": "1"}, "weight": 2}
    (found_entry,) = completed([whole])
    assert found_entry.pop("served_models") == ["m"]
    assert found_entry == whole
    assert list(found_entry) == list(whole), "in the same order"


def test_ports_count_by_position_and_leave_out_those_that_entries_name() -> None:
    engines = [
        {"model": "/a"},
        {"model": "/b", "port": 8000},
        {"model": "/c"},
        {"model": "/d", "port": "8003"},
        {"model": "/e"},
    ]
    assert [one["port"] for one in completed(engines)] == [8001, 8000, 8002, "8003", 8004]


def test_an_entry_at_the_end_moves_no_port() -> None:
    engines = [{"model": "/a"}, {"model": "/b"}]
    assert completed([*engines, {"model": "/c"}])[:2] == completed(engines)


def test_the_shortest_entries_are_accepted() -> None:
    assert with_engines(HUB) == []
    assert with_engines({"model": "/srv/models/one", "gpus": [0]}, {"model": "s3://models/two", "gpus": [1]}) == []


def test_two_entries_of_one_model_need_names() -> None:
    problem = with_engines(HUB | {"gpus": [0]}, HUB | {"gpus": [1]})[0]
    assert problem.startswith(
        "host engine1: engine 'qwen3-8b' stands twice in vllm_engines: give each engine a name of its own"
    )
    assert with_engines(HUB | {"gpus": [0]}, HUB | {"gpus": [1], "name": "second"}) == []


def test_what_cannot_be_derived_is_said() -> None:
    assert [line for line in with_engines({"model": "/srv/模型"}) if "set name" in line]
    assert [line for line in with_engines({}) if "lacks model" in line]
    assert [line for line in with_engines({"model": "//"}) if "set served_model_name" in line]


def test_keys_and_limits_know_the_served_names_of_short_entries(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["engine1"]["vllm_engines"] = [HUB]
    inventory["hostvars"]["api1"]["proxy_keys"][0]["models"] = ["Qwen/Qwn3-8B"]
    (problem,) = problems(inventory)
    assert "did you mean 'Qwen/Qwen3-8B'?" in problem


def test_priority_scheduling_is_an_option_of_vllm_serve() -> None:
    option = {"scheduling-policy": "priority"}
    assert completed([ENGINE | {"priority_scheduling": True}])[0]["args"] == option
    assert completed([ENGINE | {"priority_scheduling": True, "args": {"seed": 1}}])[0]["args"] == {"seed": 1} | option
    assert "args" not in completed([ENGINE | {"priority_scheduling": False}])[0]
    own = {"scheduling_policy": "fcfs"}
    assert completed([ENGINE | {"priority_scheduling": True, "args": own}])[0]["args"] == own
    (problem,) = found(**engine(priority_scheduling=True, args=own))
    assert "has priority_scheduling, but its args say scheduling-policy fcfs: take one out" in problem


def test_an_engine_with_priority_scheduling_takes_priorities() -> None:
    classes = {"default": {"share": 1, "engine_priority": 5}}
    assert "does not take priorities" in found(proxy_priorities=classes)[0]
    assert found(proxy_priorities=classes, **engine(priority_scheduling=True)) == []


@pytest.mark.parametrize("value", [None, "x", [], [None, "x"], {}])
def test_a_list_of_the_wrong_form_has_no_engine(value: Any) -> None:
    assert completed(value) == []


ADAPTERS = [{"name": "sql", "model": "/srv/adapters/sql"}, {"name": "law", "model": "org/law", "revision": COMMIT}]


def test_adapters_are_models_that_the_engine_serves() -> None:
    (one,) = completed([ENGINE | {"adapters": ADAPTERS}])
    assert one["served_models"] == ["m", "sql", "law"]
    assert found(**engine(adapters=ADAPTERS), proxy_keys=[{"name": "a", "key": SECRET, "models": ["law"]}]) == []
    assert load("engine_entries").adapters_of([one]) == [
        {"id": "one:sql", "engine": "one", "name": "sql", "model": "/srv/adapters/sql", "revision": ""},
        {"id": "one:law", "engine": "one", "name": "law", "model": "org/law", "revision": COMMIT},
    ]


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ([{"name": "law", "model": "org/law"}], "adapter 'law': model org/law comes from a hub, so pin it"),
        ([{"name": "m", "model": "/srv/a"}], "serves two models as 'm'"),
        ([{"name": "a", "model": "/srv/a"}, {"name": "a", "model": "/srv/b"}], "serves two models as 'a'"),
        ([{"name": "a", "model": "/tmp/a"}], "model /tmp/a lies in /tmp, which the engine's sandbox hides"),
        ([{"model": "/srv/a"}], "adapters[0] lacks name"),
    ],
)
def test_an_adapter_that_cannot_be(adapters: list[dict[str, str]], said: str) -> None:
    lines = found(**engine(adapters=adapters))
    assert said in " ".join(lines), lines


def test_adapters_and_lora_modules_are_not_both_said() -> None:
    (line,) = found(**engine(adapters=ADAPTERS, args={"lora_modules": ["x=/srv/x"]}))
    assert "has adapters, over which lora-modules of its args would win" in line
