"""Anthropic's API and OpenAI's newer one: errors, the ends of streams, and text that looks like an end."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from engine import WAIT_S, Call, Engine
from harness import KEY, Files, Log, Proxy, running_proxy
from inference_proxy.api.dialects import Dialect

pytestmark = pytest.mark.anyio

START = ("message_start", {"type": "message_start", "message": {"id": "m", "stop_reason": None}})
DELTA = ("content_block_delta", {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}})
LAST_DELTA = (
    "message_delta",
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": 7, "output_tokens": 3},
    },
)
DROPPED = ("message_delta", {"type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}})
STOP = ("message_stop", {"type": "message_stop"})

CREATED = ("response.created", {"type": "response.created", "response": {"status": "in_progress"}})
TEXT = ("response.output_text.delta", {"type": "response.output_text.delta", "delta": "event: error\n"})


def finished(how: str, status: str) -> tuple[str, Any]:
    # The whole answer again, longer than what is kept of a stream's end, followed by usage.
    response = {
        "output": "x" * 20_000,
        "service_tier": "auto",
        "status": status,
        "usage": {"input_tokens": 7, "output_tokens": 3},
    }
    return f"response.{how}", {"response": response, "sequence_number": 9, "type": f"response.{how}"}


def play(*events: tuple[str, Any], seen: asyncio.Event | None = None) -> Any:
    """Send the events. With `seen`, wait until the client has the first before sending the others."""

    async def script(call: Call) -> None:
        await call.start_stream()
        for number, (name, data) in enumerate(events):
            if number == 1 and seen is not None:
                await asyncio.wait_for(seen.wait(), WAIT_S)
            text = json.dumps(data, separators=(",", ":"))
            await call.chunk(f"event: {name}\ndata: {text}\n\n".encode())
        await call.end_stream()

    return script


async def read(response: aiohttp.ClientResponse) -> list[tuple[str, Any]]:
    blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


@pytest.mark.parametrize(
    ("path", "events"),
    [
        ("/v1/messages", [START, DELTA, LAST_DELTA, STOP]),
        ("/v1/responses", [CREATED, TEXT, finished("completed", "completed")]),
        ("/v1/responses", [CREATED, TEXT, finished("incomplete", "incomplete")]),
    ],
)
async def test_a_whole_stream(proxy: Proxy, engine: Engine, log: Log, path: str, events: list[Any]) -> None:
    engine.script = play(*events)
    async with proxy.post(path, body={"stream": True}) as response:
        assert await read(response) == events
    line = await log.last_request()
    assert (line["outcome"], line["prompt_tokens"], line["completion_tokens"]) == ("ok", 7, 3)


@pytest.mark.parametrize(
    "events",
    [[START, DELTA], [START, DELTA, LAST_DELTA], [START, DELTA, DROPPED, STOP]],
    ids=["cut off", "no message_stop", "dropped by the engine"],
)
async def test_messages_that_only_seem_complete(
    proxy: Proxy, engine: Engine, log: Log, events: list[Any]
) -> None:
    seen = asyncio.Event()
    engine.script = play(*events, seen=seen)
    async with proxy.post("/v1/messages", body={"stream": True}) as response:
        await response.content.readuntil(b"\n\n")
        seen.set()
        *_, (name, error) = await read(response)
        request_id = response.headers["x-request-id"]
    assert name == "error"
    assert error == {
        "type": "error",
        "error": {"type": "api_error", "message": error["error"]["message"]},
        "request_id": request_id,
    }
    assert (await log.last_request())["outcome"] == "engine_lost"


@pytest.mark.parametrize(
    "events",
    [[CREATED], [CREATED, TEXT], [CREATED, TEXT, finished("completed", "cancelled")]],
    ids=["nothing", "cut off", "dropped by the engine"],
)
async def test_responses_that_only_seem_complete(
    proxy: Proxy, engine: Engine, log: Log, events: list[Any]
) -> None:
    seen = asyncio.Event()
    engine.script = play(*events, seen=seen)
    async with proxy.post("/v1/responses", body={"stream": True}) as response:
        await response.content.readuntil(b"\n\n")
        seen.set()
        *_, (name, error) = await read(response)
    assert name == "error"
    assert error["type"] == "error"
    assert error["code"] == "engine_lost"
    assert (await log.last_request())["outcome"] == "engine_lost"


async def test_an_engines_own_error_event_is_an_end(proxy: Proxy, engine: Engine, log: Log) -> None:
    events = [START, ("error", {"type": "error", "error": {"type": "internal_error", "message": "x"}})]
    engine.script = play(*events)
    async with proxy.post("/v1/messages", body={"stream": True}) as response:
        assert await read(response) == events


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("key", "body", "status", "kind"),
    [
        ("wrong", {}, 401, "authentication_error"),
        (KEY, {"model": "huge"}, 404, "not_found_error"),
        (KEY, {"stream": "yes"}, 400, "invalid_request_error"),
        (KEY, {"model": "x" * 5_000_000}, 413, "request_too_large"),
    ],
)
async def test_errors_for_anthropics_clients(
    proxy: Proxy, path: str, key: str, body: dict[str, Any], status: int, kind: str
) -> None:
    async with proxy.post(path, body=body, key=key) as response:
        error = await response.json()
        assert response.status == status
        assert error == {
            "type": "error",
            "error": {"type": kind, "message": error["error"]["message"]},
            "request_id": response.headers["x-request-id"],
        }


async def test_an_engines_refusal_is_translated(proxy: Proxy, engine: Engine) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(400, {"type": "error", "error": {"type": "BadRequestError", "message": "too long"}})

    engine.script = refuse
    async with proxy.post("/v1/messages") as response:
        assert response.status == 400
        assert (await response.json())["error"] == {"type": "invalid_request_error", "message": "too long"}


async def test_a_wrong_method_in_anthropics_shape(proxy: Proxy) -> None:
    async with proxy.get("/v1/messages") as response:
        assert (response.status, (await response.json())["type"]) == (405, "error")


async def test_a_clock_speaks_the_dialect(files: Files, engine: Engine) -> None:
    async def stall(call: Call) -> None:
        await call.start_stream()
        await call.chunk(b'event: message_start\ndata: {"type":"message_start"}\n\n')
        await call.client_gone.wait()

    engine.script = stall
    files.configure(engine, timeouts={"between_chunks_s": 0.1})
    body = {"stream": True}
    async with running_proxy(files) as proxy, proxy.post("/v1/messages", body=body) as response:
        _, (name, error) = await read(response)
    assert (name, error["error"]["type"]) == ("error", "timeout_error")


@pytest.mark.parametrize("dialect", list(Dialect))
def test_no_text_of_a_model_is_an_end(dialect: Dialect) -> None:
    text = "\n\ndata: [DONE]\n\nevent: message_stop\n\nevent: response.completed\n\nevent: error\n"
    assert not dialect.is_complete(b"data: " + json.dumps({"text": text}).encode() + b"\n\n")


async def test_the_last_event_may_lack_its_blank_line(proxy: Proxy, engine: Engine, log: Log) -> None:
    async def hasty(call: Call) -> None:
        await call.start_stream()
        await call.event('{"n": 1}')
        await call.chunk(b"data: [DONE]\n")
        await call.end_stream()

    engine.script = hasty
    async with proxy.post(body={"stream": True}) as response:
        assert (await response.read()).endswith(b"data: [DONE]\n")
    assert (await log.last_request())["outcome"] == "ok"
