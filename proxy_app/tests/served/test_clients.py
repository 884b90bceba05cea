"""Real client libraries over real sockets: what they send, and how they read our errors."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import openai
import pytest

from engine import Call, Engine
from harness import KEY, Files, Proxy, running_proxy

pytestmark = pytest.mark.anyio

CHAT = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "big",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}
MESSAGE = {
    "id": "m-1",
    "type": "message",
    "role": "assistant",
    "model": "big",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 5},
}
RESPONSE = {
    "id": "r-1",
    "object": "response",
    "created_at": 1,
    "model": "big",
    "status": "completed",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [
        {
            "id": "o-1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }
    ],
}
ASK: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def by_openai(proxy: Proxy) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{proxy.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def by_anthropic(proxy: Proxy) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=proxy.url, max_retries=0) as client:
        yield client


def answer(body: Any, status: int = 200) -> Any:
    async def script(call: Call) -> None:
        await call.answer(status, body)

    return script


def events(*blocks: str, seen: asyncio.Event | None = None, break_off: bool = False) -> Any:
    """A stream; what follows the first block is sent once the client has that one."""

    async def script(call: Call) -> None:
        await call.start_stream()
        for number, block in enumerate(blocks):
            if number == 1 and seen is not None:
                await seen.wait()
            await call.chunk(f"{block}\n\n".encode())
        if break_off:
            assert seen is not None
            await seen.wait()
            call.break_off()
        await call.end_stream()

    return script


def chat_chunk(text: str | None, reason: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}
    whole = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big", "choices": [choice]}
    return "data: " + json.dumps(whole)


def named(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}"


async def test_openai_chat(by_openai: openai.AsyncOpenAI, engine: Engine) -> None:
    engine.script = answer(CHAT)
    completion = await by_openai.chat.completions.create(model="big", messages=ASK, max_tokens=5)
    assert completion.choices[0].message.content == "hello"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5


async def test_openai_chat_stream(by_openai: openai.AsyncOpenAI, engine: Engine) -> None:
    engine.script = events(chat_chunk("he"), chat_chunk("llo"), chat_chunk(None, "stop"), "data: [DONE]")
    stream = await by_openai.chat.completions.create(model="big", messages=ASK, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hello"


async def test_openai_notices_a_stream_that_breaks_off(by_openai: openai.AsyncOpenAI, engine: Engine) -> None:
    seen = asyncio.Event()
    engine.script = events(chat_chunk("he"), seen=seen, break_off=True)
    stream = await by_openai.chat.completions.create(model="big", messages=ASK, stream=True)
    await anext(stream)
    seen.set()
    with pytest.raises(openai.APIError, match="broke off") as caught:
        await anext(stream)
    assert caught.value.code == "engine_lost"


async def test_openai_responses(by_openai: openai.AsyncOpenAI, engine: Engine) -> None:
    engine.script = answer(RESPONSE)
    assert (await by_openai.responses.create(model="big", input="hi")).output_text == "hello"


async def test_openai_responses_stream(by_openai: openai.AsyncOpenAI, engine: Engine) -> None:
    created = {"type": "response.created", "sequence_number": 0, "response": RESPONSE}
    completed = {"type": "response.completed", "sequence_number": 1, "response": RESPONSE}
    engine.script = events(named(created), named(completed))
    stream = await by_openai.responses.create(model="big", input="hi", stream=True)
    assert [event.type async for event in stream] == ["response.created", "response.completed"]


async def test_openai_responses_stream_that_breaks_off(by_openai: openai.AsyncOpenAI, engine: Engine) -> None:
    seen = asyncio.Event()
    created = {"type": "response.created", "sequence_number": 0, "response": RESPONSE}
    engine.script = events(named(created), seen=seen, break_off=True)
    stream = await by_openai.responses.create(model="big", input="hi", stream=True)
    kinds = []
    async for event in stream:
        kinds.append(event.type)
        seen.set()
        if event.type == "error":
            assert event.code == "engine_lost"
    assert kinds == ["response.created", "error"]


async def test_openai_embeddings_and_transcriptions(by_openai: openai.AsyncOpenAI, engine: Engine) -> None:
    engine.script = answer({"object": "list", "model": "big", "data": [], "usage": {}})
    assert (await by_openai.embeddings.create(model="big", input="hi", encoding_format="float")).data == []
    engine.script = answer({"text": "hello"})
    transcription = await by_openai.audio.transcriptions.create(model="big", file=("a.wav", b"RIFF\x00\xff"))
    assert transcription.text == "hello"


async def test_openai_models(by_openai: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in await by_openai.models.list()] == ["big", "small"]
    assert (await by_openai.models.retrieve("big")).id == "big"
    with pytest.raises(openai.NotFoundError):
        await by_openai.models.retrieve("huge")


async def test_openai_errors(by_openai: openai.AsyncOpenAI, proxy: Proxy, engine: Engine) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await by_openai.chat.completions.create(model="huge", messages=ASK)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        await by_openai.with_options(api_key="wrong").models.list()
    engine.script = answer({"error": {"message": "too long", "type": "x", "param": "input_tokens"}}, 400)
    with pytest.raises(openai.BadRequestError, match="too long") as long:
        await by_openai.chat.completions.create(model="big", messages=ASK)
    assert long.value.param == "input_tokens"
    assert long.value.request_id


async def test_anthropic_message(by_anthropic: anthropic.AsyncAnthropic, engine: Engine) -> None:
    engine.script = answer(MESSAGE)
    message = await by_anthropic.messages.create(model="big", messages=ASK, max_tokens=5)
    assert message.content[0].to_dict()["text"] == "hello"
    engine.script = answer({"input_tokens": 3})
    assert (await by_anthropic.messages.count_tokens(model="big", messages=ASK)).input_tokens == 3


def message_events() -> list[str]:
    start = {"type": "message_start", "message": MESSAGE | {"content": [], "stop_reason": None}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}}
    stop = {"type": "content_block_stop", "index": 0}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    return [named(event) for event in (start, block, delta, stop, end, {"type": "message_stop"})]


async def test_anthropic_stream(by_anthropic: anthropic.AsyncAnthropic, engine: Engine) -> None:
    engine.script = events(*message_events())
    async with by_anthropic.messages.stream(model="big", messages=ASK, max_tokens=5) as stream:
        assert await stream.get_final_text() == "hello"


async def test_anthropic_notices_a_stream_that_breaks_off(
    by_anthropic: anthropic.AsyncAnthropic, engine: Engine
) -> None:
    seen = asyncio.Event()
    engine.script = events(*message_events()[:3], seen=seen, break_off=True)
    stream = await by_anthropic.messages.create(model="big", messages=ASK, max_tokens=5, stream=True)
    await anext(stream)
    seen.set()
    with pytest.raises(anthropic.APIError, match="broke off"):
        [event async for event in stream]


async def test_anthropic_errors(by_anthropic: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await by_anthropic.messages.create(model="huge", messages=ASK, max_tokens=5)
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(anthropic.AuthenticationError):
        await by_anthropic.with_options(api_key="wrong").messages.create(
            model="big", messages=ASK, max_tokens=5
        )


async def test_anthropic_with_a_bearer_token(proxy: Proxy, engine: Engine) -> None:
    engine.script = answer(MESSAGE)
    async with anthropic.AsyncAnthropic(auth_token=KEY, base_url=proxy.url) as client:
        assert (await client.messages.create(model="big", messages=ASK, max_tokens=5)).id == "m-1"


async def test_clients_retry_what_is_our_capacity(files: Files, engine: Engine) -> None:
    calls = 0

    async def full_once(call: Call) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await call.answer(503, {"error": {"message": "full"}}, "retry-after: 0")
        else:
            await call.answer(200, CHAT)

    engine.script = full_once
    files.configure(engine)
    async with (
        running_proxy(files) as proxy,
        openai.AsyncOpenAI(api_key=KEY, base_url=f"{proxy.url}/v1", max_retries=1) as client,
    ):
        assert (await client.chat.completions.create(model="big", messages=ASK)).id == "c-1"
    assert calls == 2


async def test_anthropic_models(
    files: Files, by_anthropic: anthropic.AsyncAnthropic, engine: Engine, proxy: Proxy
) -> None:
    engine.cards[0] |= {"created": 1_700_000_000, "max_model_len": 32768}
    aliases = [f"alias-{number:03}" for number in range(45)]
    old = [{"name": "older", "since": "2026-01-31"}]
    files.configure(engine, models=[{"name": "big", "aliases": aliases, "deprecated": old}])
    await proxy.until_answer("/v1/models/alias-044", 200)
    page = await by_anthropic.models.list(limit=2)
    assert (page.first_id, page.last_id, page.has_more) == ("alias-000", "alias-001", True)
    assert [model.id async for model in by_anthropic.models.list()] == [*aliases, "big", "small"]
    before = await by_anthropic.models.list(limit=3, before_id="big")
    assert [model.id for model in before.data] == aliases[-3:]
    assert before.has_more
    last = await by_anthropic.models.list(after_id="small")
    assert (last.data, last.first_id, last.last_id, last.has_more) == ([], None, None, False)
    big = await by_anthropic.models.retrieve("big")
    assert (big.type, big.id, big.display_name, big.lifecycle) == ("model", "big", "big", "active")
    assert big.created_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert big.max_input_tokens == 32768
    assert (await by_anthropic.models.retrieve("older")).lifecycle == "deprecated"
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        await by_anthropic.models.retrieve("nobody")
    with pytest.raises(anthropic.BadRequestError, match="between 1 and 1000"):
        await by_anthropic.models.list(limit=1001)


async def test_openai_models_keep_openais_shape(by_openai: openai.AsyncOpenAI) -> None:
    assert [(model.id, model.object) async for model in by_openai.models.list()] == [
        ("big", "model"),
        ("small", "model"),
    ]
    assert (await by_openai.models.retrieve("big")).owned_by == "vllm"
