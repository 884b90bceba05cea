"""Engines: their names, models and options."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import change_engine, engine, found, problems

RESERVED = ["model", "served-model-name", "served_model_name", "host", "port", "config", "api-key", "api_key"]


SECRET = "s3cret-" * 6


def test_an_engine_whose_id_is_too_long_for_a_file(inventory: dict[str, Any]) -> None:
    change_engine(inventory, name="e" * (255 - len("engine1:")))
    assert problems(inventory) == []
    change_engine(inventory, name="e" * (256 - len("engine1:")))
    assert "together 256 characters long: at most 255 fit" in problems(inventory)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "lacks model"),
        ({"port": None}, "port is empty"),
        ({"name": "Upper"}, "lower-case letters"),
        ({"model": "Qwen/Qwen3-8B"}, "set revision to the 40 digits of a commit"),
        ({"model": "Qwen/Qwen3-8B", "revision": "main"}, "set revision to the 40 digits of a commit"),
    ],
)
def test_an_incomplete_engine_says_what_it_lacks(inventory: dict[str, Any], change: dict[str, Any], said: str) -> None:
    change_engine(inventory, **change)
    assert [problem for problem in problems(inventory) if said in problem and "engine1" in problem]


@pytest.mark.parametrize("name", RESERVED)
def test_no_option_takes_the_place_of_what_the_role_sets(name: str) -> None:
    for variables, where in (
        ({"vllm_args": {name: SECRET}}, "vllm_args"),
        (engine(args={name: SECRET}), "engine 'one': args"),
    ):
        (line,) = found(**variables)
        assert line.startswith(f"host engine1: {where} must not have {name}: take it out; the role sets what")
        assert SECRET not in line


def test_an_engine_of_several_hosts_has_no_second_one() -> None:
    (line,) = found(**engine(beside_port=8100, args={"nnodes": 2}))
    assert "engine 'one' spreads over 2 hosts (nnodes), and has beside_port: take it out" in line


def test_the_id_of_a_second_engine_is_a_file_too(inventory: dict[str, Any]) -> None:
    change_engine(inventory, name="e" * (255 - len("engine1:.beside")), beside_port=8100)
    assert problems(inventory) == []
    change_engine(inventory, name="e" * (256 - len("engine1:.beside")))
    assert "together 256 characters long" in problems(inventory)[0]
