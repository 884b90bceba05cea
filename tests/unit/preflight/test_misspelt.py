"""Names that are misspelt, and names of their own."""

from __future__ import annotations

import pytest
from stack_preflight import load

is_misspelt, is_mistyped = load("misspelt").is_misspelt, load("misspelt").is_mistyped


@pytest.mark.parametrize(
    ("name", "meant"),
    [("vlm", "vllm"), ("vlllm", "vllm"), ("ngnix", "nginx"), ("proxi", "proxy"), ("Proxy", "proxy"), ("a-b", "a_b")],
)
def test_one_slip_of_the_hand_is_a_misspelling(name: str, meant: str) -> None:
    assert is_misspelt(name, meant)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("proxy", "proxy"),
        ("haproxy", "proxy"),
        ("proxysql", "proxy"),
        ("llm", "vllm"),
        ("proxy2", "proxy"),
        ("nginx_lb", "nginx"),
        ("", "nginx"),
    ],
)
def test_another_word_is_none(name: str, meant: str) -> None:
    assert not is_misspelt(name, meant)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("qwen3-8B", "qwen3-8b"),
        ("meta-lama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("engien1", "engine1"),
        ("engiine1", "engine1"),
        ("web01", "web1"),
        ("env-prod", "env_prod"),
    ],
)
def test_a_letter_too_few_or_two_transposed_is_mistyped(name: str, meant: str) -> None:
    assert is_mistyped(name, meant)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpu-a", "gpu-b"),
        ("engine-a", "engine-b"),
        ("engine-east", "engine-west"),
        ("env_preprod", "env_prod"),
        ("qwen3-8b", "qwen3-4b"),
        ("gpt-4", "gpt-4o"),
        ("gpu-blues", "gpu-blue"),
        ("web2", "web1"),
    ],
)
def test_a_neighbour_is_not_mistyped(name: str, meant: str) -> None:
    assert not is_mistyped(name, meant)
