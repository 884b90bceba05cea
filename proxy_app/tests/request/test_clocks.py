"""The formula of the four clocks, and that the README's worked example agrees with the code."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inference_proxy.config import Timeouts, TotalLimits
from inference_proxy.request.clocks import Clocks
from jobs import a_job

README = (Path(__file__).parents[2] / "README.md").read_text()


def clocks(timeouts: Timeouts | None = None, size: str = "medium", waiting: int = 0, **asked: Any) -> Clocks:
    return Clocks.of(a_job(**asked), timeouts or Timeouts(), size, waiting)


def test_the_readme_example_is_what_the_code_computes() -> None:
    section = README.split("### A worked example")[1].split("\n## ")[0]
    block = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert block is not None
    example = yaml.safe_load(block[1])
    prompt = "x" * (example["prompt_tokens"] * 4 - len('[{"role": "user", "content": ""}]'))
    found = clocks(
        size=example["size"],
        waiting=example["waiting"],
        messages=[{"role": "user", "content": prompt}],
        max_tokens=example["max_tokens"],
        stream=True,
    )
    for name in ("connect_s", "first_byte_s", "between_chunks_s", "total_s"):
        assert getattr(found, name) == pytest.approx(example[name]), name
    formula = (Clocks.of.__doc__ or "").split("first byte =")[1].split("\n\n")[0]
    for term in ("first_byte_s", "per_1k_prompt_tokens_s", "per_waiting_request_s", "per_token_s", "total_s"):
        assert term in formula
        assert term in section


@pytest.mark.complaint(8)
def test_what_asks_for_more_gets_more() -> None:
    """litellm#3986, vllm#2484: long jobs were cut."""
    short = clocks(stream=True, max_tokens=10)
    long = clocks(stream=True, max_tokens=8000)
    assert long.total_s - short.total_s == pytest.approx(7990 * 0.25)
    prompt = [{"role": "user", "content": "x" * 400_000}]
    assert clocks(stream=True, messages=prompt).first_byte_s >= short.first_byte_s + 200
    assert clocks(stream=True, waiting=100).first_byte_s == short.first_byte_s + 50


def test_a_large_model_has_more_time_than_a_small_one() -> None:
    small, large = (clocks(size=size, stream=True, max_tokens=100) for size in ("small", "large"))
    assert large.first_byte_s == 4 * small.first_byte_s
    assert large.between_chunks_s == 4 * small.between_chunks_s
    assert large.total_s == 4 * small.total_s
    assert large.connect_s == small.connect_s


def test_an_answer_in_one_piece_may_take_its_total_for_the_first_byte() -> None:
    whole, stream = clocks(max_tokens=1000), clocks(max_tokens=1000, stream=True)
    assert whole.first_byte_s == whole.total_s == stream.total_s
    assert stream.first_byte_s == 300


@pytest.mark.parametrize(
    ("path", "total_s"), [("/embeddings", 300), ("/tokenize", 45), ("/chat/completions", 3600)]
)
def test_each_class_has_its_limit(path: str, total_s: float) -> None:
    assert clocks(path=path, input="x", prompt="x").total_s == total_s
    assert clocks(Timeouts(total_s=TotalLimits(generation=1, pooling=1, utility=1)), path=path).total_s == 1


@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**4), st.booleans(), st.floats(0.1, 10**4)
)
def test_no_clock_outlasts_the_limit(
    prompt: int, tokens: int, waiting: int, stream: bool, most: float
) -> None:
    timeouts = Timeouts(total_s=TotalLimits(generation=most))
    found = clocks(
        timeouts, waiting=waiting, max_tokens=tokens, stream=stream, messages=["x" * (prompt // 100)]
    )
    assert 0 < found.first_byte_s <= found.total_s <= most
