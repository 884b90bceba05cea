"""Parsing of server-sent events relies on their structure, in every form that the standard allows."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Call, Engine
from harness import KEY, Files, Log, Proxy, running_proxy, sha256
from inference_proxy.accounting.exchange import Exchange, usage
from inference_proxy.api.dialects import Dialect
from inference_proxy.http.sse import documents, end_of_events, split_events

pytestmark = pytest.mark.anyio

LINE_ENDS = ["\n", "\r\n", "\r"]
CONTENT = '{"choices":[{"delta":{"content":"one"}}]}'
USAGE = '{"choices":[],"usage":{"prompt_tokens":3,"total_tokens":8,"completion_tokens":5}}'


def stream(line_end: str, *events: str) -> bytes:
    return "".join(f"{event}{line_end}{line_end}" for event in events).encode()


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_events_end_with_an_empty_line(line_end: str) -> None:
    whole = stream(line_end, f"data: {CONTENT}", ": ping", f"event: x{line_end}data: {USAGE}")
    assert b"".join(split_events(whole)) == whole
    assert len(split_events(whole)) == 3
    assert [json.dumps(found, separators=(",", ":")) for found in documents(whole)] == [CONTENT, USAGE]
    for cut in range(len(whole)):
        end = end_of_events(whole[:cut])
        assert end <= cut
        assert b"".join(split_events(whole)).startswith(whole[:end])


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize("cuts", [[], [30], [1, 2, 3], [60, 61, 62, 63]])
async def test_a_stream_of_any_line_ends_loses_nothing(
    files: Files, engine: Engine, log: Log, line_end: str, cuts: list[int]
) -> None:
    """The client did not ask for usage: the engine's usage event is hidden, and its content is not."""
    whole = stream(line_end, f"data: {CONTENT}", f"data: {USAGE}", "data: [DONE]")

    async def script(call: Call) -> None:
        await call.start_stream()
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            await call.chunk(whole[start:end])
        await call.end_stream()

    engine.script = script
    files.configure(engine)
    async with running_proxy(files) as proxy:
        async with proxy.post(body={"stream": True}) as response:
            body = await response.read()
        assert body == stream(line_end, f"data: {CONTENT}", "data: [DONE]")
        line = await log.last_request()
    assert (line["outcome"], line["prompt_tokens"], line["completion_tokens"]) == ("ok", 3, 5)


CANCELLED = {"service_tier": "auto", "status": "cancelled"}
RESPONSE = {"object": "response", "service_tier": "auto", "status": "completed", "usage": {"input_tokens": 3}}
TOOLS = [{"type": "function", "name": "f", "parameters": {"examples": [CANCELLED]}}]
DELTA = {"type": "message_delta", "delta": {"stop_reason": None}}
INPUT = {"type": "tool_use", "id": "t", "name": "f", "input": {"event": DELTA}}
MESSAGE = {"type": "message", "content": [INPUT], "stop_reason": "tool_use", "usage": {"input_tokens": 3}}


def event(document: Any) -> bytes:
    return b"data: " + compact(document) + b"\n\n"


def compact(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


ABORTED = [
    (Dialect.CHAT, {"choices": [{"index": 0, "finish_reason": "abort"}]}),
    (Dialect.RESPONSES, {"type": "response.completed", "response": RESPONSE | CANCELLED}),
    (Dialect.RESPONSES, RESPONSE | CANCELLED),
    (Dialect.MESSAGES, DELTA),
]
NOT_ABORTED = [
    (Dialect.CHAT, {"choices": [{"index": 0, "x": {"finish_reason": "abort"}, "finish_reason": "stop"}]}),
    (Dialect.RESPONSES, RESPONSE | {"tools": TOOLS}),
    (Dialect.RESPONSES, {"type": "response.created", "response": RESPONSE | {"tools": TOOLS}}),
    (Dialect.RESPONSES, {"type": "response.output_item.done", "item": {"status": "cancelled"}}),
    (Dialect.MESSAGES, MESSAGE),
    (Dialect.MESSAGES, {"type": "content_block_start", "content_block": INPUT}),
]


@pytest.mark.parametrize(("dialect", "document"), ABORTED)
def test_an_engine_that_dropped_a_request_says_so(dialect: Dialect, document: Any) -> None:
    assert dialect.is_aborted(event(document))
    assert dialect.is_aborted(compact(document))
    assert dialect.is_aborted(b"event: x\r\n" + event(document).replace(b"\n\n", b"\r\n\r\n"))


@pytest.mark.parametrize(("dialect", "document"), NOT_ABORTED)
def test_text_of_a_client_or_a_model_says_nothing(dialect: Dialect, document: Any) -> None:
    assert not dialect.is_aborted(event(document))
    assert not dialect.is_aborted(compact(document))


LONG = [{"index": number, "document": {"text": "x" * 90}} for number in range(3000)]
COUNTED = [
    ("/v1/rerank", {"usage": {"prompt_tokens": 28000, "total_tokens": 28000}, "results": LONG}, 28000),
    ("/v1/rerank", {"usage": {"total_tokens": 28000}, "results": LONG}, 28000),
    ("/v1/embeddings", {"data": LONG, "usage": {"prompt_tokens": 7, "total_tokens": 7}}, 7),
    (
        "/v1/chat/completions",
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}, "prompt_logprobs": LONG},
        13,
    ),
    (
        "/v1/responses",
        {"tools": [{"usage": {"input_tokens": 1}}, LONG], "usage": {"input_tokens": 5, "output_tokens": 6}},
        11,
    ),
    (
        "/v1/messages",
        {"content": [{"usage": {"input_tokens": 1}}, LONG], "usage": {"input_tokens": 5, "output_tokens": 6}},
        11,
    ),
]


@pytest.mark.parametrize(("path", "answer", "tokens"), COUNTED)
async def test_usage_is_found_wherever_it_stands(
    files: Files, engine: Engine, path: str, answer: dict[str, Any], tokens: int
) -> None:
    files.write(files.keys, [{"name": "alice", "sha256": sha256(KEY), "limits": {"tokens_per_day": 10**6}}])
    files.configure(engine)
    async with running_proxy(files) as proxy:

        async def left() -> int:
            async with proxy.post(path, {"max_tokens": 1, "max_output_tokens": 1}) as response:
                await response.read()
                return int(response.headers["x-ratelimit-remaining-tokens"])

        engine.script = answering({"usage": {"total_tokens": 0}})
        before = await left()
        await proxy.idle()
        engine.script = answering(answer)
        await left()
        await proxy.idle()
        assert before - await left() == tokens


def answering(answer: dict[str, Any]) -> Any:
    async def script(call: Call) -> None:
        await call.answer(200, answer)

    return script


@given(st.lists(st.integers(1, 300_000), max_size=5), st.integers(0, len(COUNTED) - 1))
def test_usage_is_found_however_the_answer_is_cut(cuts: list[int], case: int) -> None:
    path, answer, tokens = COUNTED[case]
    dialects = {"/v1/responses": Dialect.RESPONSES, "/v1/messages": Dialect.MESSAGES}
    exchange = Exchange("id", "POST", path, dialect=dialects.get(path, Dialect.CHAT))
    body = compact(answer)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    for start, end in itertools.pairwise(edges):
        exchange.note_part(body[start:end])
    prompt, completion = exchange.usage()
    assert (prompt or 0) + (completion or 0) == tokens
    assert sum(map(len, exchange.tail)) <= 4 * 8192


def test_what_only_looks_like_usage_is_none() -> None:
    assert usage(b'{"usage":null}') == (None, None)
    assert usage(b'{"usage":{"prompt_tokens":4},"x":{"usage":null}}') == (4, None)
    assert usage(b'{"text":"\\"usage\\":{\\"prompt_tokens\\":4}"}') == (None, None)


async def test_a_tools_example_breaks_no_answer(pair: Proxy, engine: Engine, other: Engine) -> None:
    engine.script = other.script = answering(RESPONSE | {"tools": TOOLS})
    for _ in range(8):
        async with pair.post("/v1/responses", {"input": "hi", "tools": TOOLS}) as response:
            assert response.status == 200
    assert [each["state"] for each in (await pair.ready())["engines"]] == ["serving", "serving"]
