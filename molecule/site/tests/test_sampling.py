"""Every sampling option that a client can use, through all three tiers. The engine survives each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from helpers.stack import MODEL, openai_client, ssh

testinfra_hosts = ["ssh://engine1"]

MESSAGES: Any = [{"role": "user", "content": "Say something."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"fits": {"type": "boolean"}},
    "required": ["fits"],
    "additionalProperties": False,
}
RUN = "systemctl show vllm@tiny --property InvocationID --property NRestarts"


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    """A client. After the test the engine still generates and was not restarted."""
    before = ssh("engine1", RUN)
    with openai_client() as client:
        yield client
        answer = client.completions.create(model=MODEL, prompt="Hello", max_tokens=3, extra_body={"ignore_eos": True})
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        assert ssh("engine1", RUN) == before


def test_log_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Hello", max_tokens=4, logprobs=3, extra_body={"ignore_eos": True}
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert len(told.token_logprobs or []) == 4
    assert all(value is not None and value <= 0 for value in told.token_logprobs or [])
    assert all(len(each or {}) >= 3 for each in told.top_logprobs or [])


def test_top_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2, extra_body={"ignore_eos": True}
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert [len(token.top_logprobs) for token in told.content or []] == [2, 2, 2, 2]


def test_log_probabilities_of_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, logprobs=True, stream=True, extra_body={"ignore_eos": True}
    )
    told = [choice.logprobs for chunk in stream for choice in chunk.choices if choice.logprobs is not None]
    assert sum(len(each.content or []) for each in told) == 4


def test_log_probabilities_of_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Hello there", max_tokens=2, extra_body={"prompt_logprobs": 1, "ignore_eos": True}
    )
    told = answer.choices[0].model_dump()["prompt_logprobs"]
    assert answer.usage is not None
    assert len(told) == answer.usage.prompt_tokens
    assert all(told[1:])


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, n=3, temperature=1.5, seed=1, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_penalties_and_filters(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=6,
        presence_penalty=1.0,
        frequency_penalty=1.0,
        temperature=0.8,
        top_p=0.9,
        logit_bias={"5": -100},
        extra_body={"repetition_penalty": 1.2, "top_k": 20, "min_p": 0.01, "ignore_eos": True},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "fit", "schema": SCHEMA}}},
        {"extra_body": {"structured_outputs": {"json": SCHEMA}}},
    ],
    ids=["response_format", "structured_outputs"],
)
def test_structured_output(client: openai.OpenAI, options: dict[str, Any]) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=200, temperature=0, **options)
    content = answer.choices[0].message.content or ""
    # With random weights, the model may fill its answer with white space, which JSON allows.
    if answer.choices[0].finish_reason == "length":
        assert content.lstrip().startswith("{")
    else:
        assert isinstance(json.loads(content)["fits"], bool)


def test_a_choice_of_words(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=50,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert answer.choices[0].message.content in ("yes", "no")


TOOLS: Any = [{"type": "function", "function": {"name": "fit", "parameters": SCHEMA}}]


def test_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=4,
        tools=TOOLS,
        tool_choice="none",
        extra_body={"ignore_eos": True},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    # The definition of the tool is in the prompt.
    without = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)
    assert without.usage is not None
    assert answer.usage.prompt_tokens >= without.usage.prompt_tokens


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "fit"}}])
def test_a_tool_that_an_engine_without_a_parser_has_to_call(client: openai.OpenAI, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="tool"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=200, tools=TOOLS, tool_choice=choice)
