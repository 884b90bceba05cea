"""Names that are misspelt, and names of their own."""

from __future__ import annotations

import pytest
from stack_preflight import load

is_misspelt = load("misspelt").is_misspelt


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
