"""Bytes that no decent client sends: none may reach an engine as a request, or a client as a header."""

import asyncio

import pytest

from engine import WAIT_S, Call, Engine
from expect import expect_error
from harness import KEY, Files, Proxy, running_proxy

pytestmark = pytest.mark.anyio

BODY = b'{"model":"big"}'
HEAD = b"host: x\r\ncontent-type: application/json\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HEAD
HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\n" + HEAD + b"content-length: 15\r\n\r\n" + BODY


async def exchange(proxy: Proxy, data: bytes) -> bytes:
    """All that comes back until the server closes; half-closing tells it that nothing more will come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(data)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


def statuses(answers: bytes) -> list[int]:
    return [int(answer[:3]) for answer in answers.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "data",
    [
        POST + b"content-length: 15\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\ncontent-length: 15\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"content-length: 15\r\ncontent-length: 0\r\n\r\n" + BODY + HIDDEN,
        POST + b"content-length: 0\r\ncontent-length: 15\r\n\r\n" + HIDDEN,
        POST + b"content-length: 15, 0\r\n\r\n" + BODY + HIDDEN,
        POST + b"content-length: -1\r\n\r\n" + BODY + HIDDEN,
        POST + b"content-length: +15\r\n\r\n" + BODY + HIDDEN,
        POST + b"content-length: 0x0f\r\n\r\n" + BODY + HIDDEN,
        POST + b"content-length : 15\r\n\r\n" + BODY + HIDDEN,
        POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\n\r\nf;\n\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
        POST + b"x: 1\n\ncontent-length: 15\r\n\r\n" + BODY + HIDDEN,
        POST + b" folded: 1\r\ncontent-length: 15\r\n\r\n" + BODY,
        POST + b"x\x00y: 1\r\ncontent-length: 15\r\n\r\n" + BODY,
        POST + b"x: a\x00b\r\ncontent-length: 15\r\n\r\n" + BODY,
        POST + b"no colon\r\ncontent-length: 15\r\n\r\n" + BODY,
        b"POST /v1/completions HTTP/9.9\r\n" + HEAD + b"content-length: 15\r\n\r\n" + BODY,
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_a_request_that_can_be_read_in_two_ways_hides_no_second_one(
    proxy: Proxy, engine: Engine, data: bytes
) -> None:
    answers = await exchange(proxy, data)
    assert all(call.path != "/v1/embeddings" for call in engine.calls), "the hidden request came through"
    assert statuses(answers) in ([], [400]), answers
    assert not engine.calls


async def test_pipelined_requests_are_two(proxy: Proxy, engine: Engine) -> None:
    first = POST + b"content-length: 15\r\n\r\n" + BODY
    last = HIDDEN.replace(b"host: x", b"host: x\r\nconnection: close")
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(first + last)
    assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == [200, 200]
    writer.close()
    assert [call.path for call in engine.calls] == ["/v1/completions", "/v1/embeddings"]


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/completions%0d%0ax-vllm-priority:%20-5",
        b"/v1/completions%20HTTP/1.1%0d%0a",
        b"/v1/%63ompletions/../../metrics",
        b"//v1/completions",
        b"/v1//completions",
        b"/v1/completions%2f..%2f..%2fmetrics",
        b"/V1/completions",
        b"http://elsewhere/metrics",
    ],
)
async def test_a_path_is_looked_up_and_never_passed_on(proxy: Proxy, engine: Engine, path: bytes) -> None:
    request = b"POST " + path + b" HTTP/1.1\r\nconnection: close\r\n" + HEAD + b"content-length: 15\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(request + BODY)
    assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) in ([400], [404])
    writer.close()
    assert not engine.calls


async def test_a_name_written_with_percent_signs_is_the_same_path(proxy: Proxy, engine: Engine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    request = b"POST /v1/%63ompletions?x=%0d%0a HTTP/1.1\r\nconnection: close\r\n" + HEAD
    writer.write(request + b"content-length: 15\r\n\r\n" + BODY)
    assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == [200]
    writer.close()
    call = await engine.next_call()
    assert call.path == "/v1/completions", "the table's own path, never the client's bytes"


@pytest.mark.parametrize("value", [b"a\rb", b"a\nx-vllm-priority: -5", b"a\r\n x-vllm-priority: -5"])
@pytest.mark.parametrize("name", [b"accept", b"traceparent", b"x-request-id", b"x-session-id"])
async def test_no_header_is_carried_in_by_another(
    proxy: Proxy, engine: Engine, name: bytes, value: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(POST + name + b": " + value + b"\r\nconnection: close\r\ncontent-length: 15\r\n\r\n" + BODY)
    answer = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    for call in engine.calls:
        assert "x-vllm-priority" not in call.headers
        assert not any("\r" in text or "\n" in text for text in call.headers.values())
    assert statuses(answer) in ([200], [400])
    assert b"\r\nx-vllm-priority" not in answer.lower()


@pytest.mark.parametrize("model", ["a\r\nx-evil: 1", "a\nx-evil: 1", "a\u2028\u0000b", "é" * 300])
async def test_a_models_name_makes_no_header(proxy: Proxy, model: str) -> None:
    async with proxy.post(body={"model": model}) as response:
        await expect_error(response, 404, "model_not_found", "model")
        assert "x-evil" not in response.headers


@pytest.mark.parametrize("line", ["x-evil: a\rset-cookie: b=c", "content-length: 3", "x-null: a\x00b"])
async def test_an_engine_smuggles_nothing_into_an_answer(files: Files, engine: Engine, line: str) -> None:
    async def odd(call: Call) -> None:
        await call.head(200, "content-type: application/json", line, "content-length: 2")
        await call.write(b"{}")
        call.break_off()

    engine.script = odd
    files.configure(engine)
    async with running_proxy(files) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(POST + b"connection: close\r\ncontent-length: 15\r\n\r\n" + BODY)
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
    assert statuses(answer) == [502]
    assert b"set-cookie" not in answer


async def test_a_head_is_bounded(proxy: Proxy, engine: Engine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(POST)

    async def go_on() -> None:
        while True:
            writer.write(b"x: " + b"y" * 1000 + b"\r\n")
            await writer.drain()

    writing = asyncio.create_task(go_on())
    try:
        # A reset is what a client sees that is still writing when the server has closed.
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert statuses(answer) == [431]
    except ConnectionResetError:
        pass
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        writer.transport.abort()
    assert engine.calls == []


async def test_trailers_are_no_headers(proxy: Proxy, engine: Engine) -> None:
    head = POST.replace(b"authorization: Bearer " + KEY.encode(), b"x-nothing: 1")
    trailer = b"authorization: Bearer " + KEY.encode() + b"\r\n"
    body = b"transfer-encoding: chunked\r\n\r\nf\r\n" + BODY + b"\r\n0\r\n" + trailer * 3 + b"\r\n"
    assert statuses(await exchange(proxy, head + body)) == [401]
    assert engine.calls == []
