"""Bytes that no correct client sends: none may reach an engine as a request, or a client as a header."""

import asyncio

import pytest

from engine import WAIT_S, Call, Engine, complete
from expect import expect_error
from harness import KEY, Files, Proxy, running_proxy

pytestmark = pytest.mark.anyio

BODY = b'{"model":"big"}'
HEAD = b"host: x\r\ncontent-type: application/json\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HEAD
HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\n" + HEAD + b"content-length: 15\r\n\r\n" + BODY


async def exchange(proxy: Proxy, data: bytes) -> bytes:
    """Everything that comes back until the server closes.

    Half-closing tells it that nothing more will come.
    """
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
        # A client that is still writing when the server has closed gets a reset.
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


UPGRADES = [
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAA\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Connection: keep-alive\r\nConnection: UPGRADE\r\nUpgrade: TLS/1.2, foo\r\n",
    b"upgrade: h2c\r\nconnection: upgrade\r\nupgrade: \r\n",
]


async def answers_to(proxy: Proxy, *packets: bytes, count: int) -> list[int]:
    """The statuses of `count` answers, proving that there are no others.

    A last request of our own is answered after them. Each packet is sent once the server has had time for the
    one before.
    """
    last = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        for packet in packets:
            writer.write(packet)
            await writer.drain()
            await proxy.ready()  # a round trip through the same event loop
        writer.write(last)
        found = statuses(await asyncio.wait_for(reader.read(), WAIT_S))
        assert len(found) == count + 1, found
        assert found[-1] == 200
        return found[:-1]
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upgrade_is_ignored_and_the_body_taken(
    proxy: Proxy, engine: Engine, upgrade: bytes, apart: bool, chunked: bool
) -> None:
    if chunked:
        head, body = b"transfer-encoding: chunked\r\n\r\n", b"f\r\n" + BODY + b"\r\n0\r\n\r\n"
    else:
        head, body = b"content-length: 15\r\n\r\n", BODY
    head = POST + upgrade + head
    packets = (head, body) if apart else (head + body,)
    assert await answers_to(proxy, *packets, count=1) == [200]
    assert [(call.path, call.body) for call in engine.calls] == [("/v1/completions", BODY)]
    assert not {"upgrade", "connection", "http2-settings"} & engine.calls[0].headers.keys()


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("apart", [False, True])
async def test_the_body_of_an_upgrade_is_no_request(
    proxy: Proxy, engine: Engine, upgrade: bytes, apart: bool
) -> None:
    head = POST + upgrade + b"content-length: %d\r\n\r\n" % len(HIDDEN)
    packets = (head, HIDDEN) if apart else (head + HIDDEN,)
    assert await answers_to(proxy, *packets, count=1) == [400]
    assert not engine.calls


async def test_requests_after_an_upgrade_are_requests(proxy: Proxy, engine: Engine) -> None:
    one = POST + UPGRADES[0] + b"content-length: 15\r\n\r\n" + BODY
    without_body = b"GET /v1/models HTTP/1.1\r\n" + HEAD + UPGRADES[1] + b"\r\n"
    every = one + without_body + POST + b"content-length: 15\r\n\r\n" + BODY + one
    assert await answers_to(proxy, every, count=4) == [200] * 4
    assert [call.body for call in engine.calls] == [BODY] * 3


async def test_an_upgrade_in_pieces(proxy: Proxy, engine: Engine) -> None:
    data = POST + UPGRADES[0] + b"content-length: 15\r\n\r\n" + BODY
    assert await answers_to(proxy, *(data[at : at + 40] for at in range(0, len(data), 40)), count=1) == [200]
    assert [call.body for call in engine.calls] == [BODY]


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n" + HIDDEN,
        b"CONNECT /v1/completions HTTP/1.1\r\n" + HEAD + b"content-length: 15\r\n\r\n" + BODY + HIDDEN,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
        POST + UPGRADES[0] + b"content-length: 15\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + UPGRADES[0] + b"content-length: 15, 0\r\n\r\n" + BODY + HIDDEN,
        POST + UPGRADES[0] + b"transfer-encoding: chunked\r\n\r\n-1\r\n" + BODY + HIDDEN,
    ],
)
async def test_no_tunnel_and_no_other_protocol(proxy: Proxy, engine: Engine, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(data)
    answers = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    assert statuses(answers) == [400]
    assert b'"code":"malformed_request"' in answers
    assert not engine.calls


async def test_rubbish_after_a_request_does_not_spoil_its_answer(proxy: Proxy, engine: Engine) -> None:
    go_on = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.start_stream()
        await call.event('{"choices":[]}')
        await go_on.wait()
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = slow
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    body = b'{"model":"big","stream":true}'
    writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
    first = await asyncio.wait_for(reader.readuntil(b"[]}\n\n\r\n"), WAIT_S)
    writer.write(b"RUBBISH\r\n\r\n" + HIDDEN)
    await proxy.ready()
    go_on.set()
    rest = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    assert statuses(first + rest) == [200]
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert len(engine.calls) == 1


LARGE = 4 * 1024 * 1024
NO_KEY = POST.replace(KEY.encode(), b"nobody")


@pytest.mark.parametrize(("head", "status"), [(NO_KEY, 401), (POST, 413)])
@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
async def test_an_early_answer_arrives_and_the_rest_of_the_upload_is_no_request(
    files: Files, engine: Engine, head: bytes, status: int, close: bytes
) -> None:
    files.configure(engine, body_limit_bytes=1000)
    async with running_proxy(files) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(head + close + b"content-length: %d\r\n\r\n" % LARGE)
        await reader.readuntil(b"}}")
        # All of it, although the server no longer needs it.
        writer.write(HIDDEN * 100 + b"x" * (LARGE - 100 * len(HIDDEN)))
        await writer.drain()
        writer.write(b"GET /v1/models HTTP/1.1\r\n" + HEAD + b"connection: close\r\n\r\n")
        assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == ([] if close else [200])
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(head + close + b"content-length: %d\r\n\r\n" % LARGE + b"x" * LARGE)
        await writer.drain()
        writer.write_eof()
        assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == [status]
        writer.close()
    assert not engine.calls


async def test_a_body_that_was_not_asked_for_is_no_request(proxy: Proxy, engine: Engine) -> None:
    """After `Expect: 100-continue` and an error, some clients send the body and others omit it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(NO_KEY + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
    assert statuses(head) == [401]
    assert b"\r\nconnection: close\r\n" in head
    writer.write(HIDDEN)
    assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == []
    writer.close()
    assert not engine.calls


async def test_requests_in_a_row_end_with_their_connection(
    proxy: Proxy, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the first of them, which is not the connection's latest request."""

    async def hold(call: Call) -> None:
        await call.client_gone.wait()

    engine.script = hold
    request = POST + b"content-length: 15\r\n\r\n" + BODY
    for at_once, later in ((3, 0), (1, 1), (2, 3)):
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(request * at_once)
        call = await engine.next_call()
        writer.write(request * later)
        await writer.drain()
        writer.close()
        await asyncio.wait_for(call.client_gone.wait(), WAIT_S)
        await proxy.idle()
    assert not caplog.records
    assert len(engine.calls) == 3


async def test_many_requests_in_a_row_are_answered(proxy: Proxy, engine: Engine) -> None:
    go_on = asyncio.Event()

    async def hold(call: Call) -> None:
        await go_on.wait()
        await complete(call)

    engine.script = hold
    request = POST + b"content-length: 15\r\n\r\n" + BODY
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(request * 100)
    await engine.next_call()
    writer.write(request * 99 + request.replace(b"host: x", b"connection: close\r\nhost: x"))
    go_on.set()
    assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == [200] * 200
    writer.close()


async def test_a_client_of_http_1_0_gets_no_interim_answer(proxy: Proxy, engine: Engine) -> None:
    head = POST.replace(b"1.1", b"1.0") + b"expect: 100-continue\r\ncontent-length: 15\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(head + BODY)
    assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == [200]
    writer.close()
    assert len(engine.calls) == 1


@pytest.mark.parametrize("before", [1, 3])
async def test_a_body_that_cannot_be_read_spoils_no_answer_before_it(
    proxy: Proxy, engine: Engine, before: int
) -> None:
    go_on = asyncio.Event()

    async def hold(call: Call) -> None:
        await go_on.wait()
        await complete(call)

    engine.script = hold
    request = POST + b"content-length: 15\r\n\r\n" + BODY
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(request * before + POST + b"transfer-encoding: chunked\r\n\r\n")
    await engine.next_call()
    writer.write(b"no size\r\n")
    await proxy.ready()
    go_on.set()
    assert statuses(await asyncio.wait_for(reader.read(), WAIT_S)) == [200] * before
    writer.close()
    await proxy.idle()
    assert len(engine.calls) == before
