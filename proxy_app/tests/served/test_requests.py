"""The proxy's own answers, and what it sends to an engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine import COMPLETION, Call, Engine
from expect import expect_error
from harness import KEY, SMALL_KEY, Files, Log, Proxy, running_proxy

pytestmark = pytest.mark.anyio

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
]


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_comes_through_as_it_is(proxy: Proxy, engine: Engine, path: str) -> None:
    body = b'{ "model" : "big",  "input": "\\u00e9" }'
    async with proxy.post(path, data=body) as response:
        assert response.status == 200
        assert await response.json() == COMPLETION
        assert "content-length" in response.headers
    call = await engine.next_call()
    assert (call.method, call.path, call.body) == ("POST", path, body)


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer ", "missing_api_key"),
        (f"Basic {KEY}", "missing_api_key"),
        (f"Bearer {KEY}x", "invalid_api_key"),
        (f"Bearer {KEY[:-1]}", "invalid_api_key"),
        ("Bearer \u00e9", "invalid_api_key"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_no_request_without_a_key(
    proxy: Proxy, engine: Engine, authorization: str | None, code: str, path: str
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    method = "GET" if path == "/v1/models" else "POST"
    async with proxy.session.request(method, proxy.url + path, headers=headers) as response:
        await expect_error(response, 401, code)
        assert response.headers["www-authenticate"] == "Bearer"
    assert not engine.calls


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_has_no_case(proxy: Proxy, scheme: str) -> None:
    async with proxy.post(headers={"authorization": f"{scheme} {KEY}"}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"big"', "invalid_json", None),
        (b'{"model": "big"} x', "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        ('{"model": "big"}'.encode("utf-16"), "invalid_json", None),
        (b'{"a":' * 5000, "invalid_json", None),
        (b"{}", "missing_field", "model"),
        (b'{"model": null}', "missing_field", "model"),
        (b'{"model": 3}', "invalid_type", "model"),
        (b'{"model": ""}', "invalid_type", "model"),
        (b'{"model": "big", "stream": "yes"}', "invalid_type", "stream"),
        (b'{"model": "\xff"}', "invalid_value", "model"),
        (b'{"model": "big", "user": "\xff"}', "invalid_value", "user"),
        (b'{"model": "big", "n": 1e400}', "invalid_value", "n"),
    ],
)
async def test_a_bad_body_is_named(
    proxy: Proxy, engine: Engine, body: bytes, code: str, param: str | None
) -> None:
    async with proxy.post(data=body) as response:
        await expect_error(response, 400, code, param)
    assert not engine.calls


async def test_options_that_cannot_be_read_are_the_engines_to_refuse(proxy: Proxy, engine: Engine) -> None:
    body = b'{"model": "big", "stream": true, "stream_options": {"x": "\xff"}}'
    async with proxy.post(data=body) as response:
        assert response.status == 200
    assert b'"stream_options":{"x":"\xff"' in (await engine.next_call()).body


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/v1", "/v1/models/", "/v1/chat/completions/", "/health", "/load", "/v1/responses/r1"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_else_reaches_an_engine(proxy: Proxy, engine: Engine, path: str, method: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    async with proxy.session.request(method, proxy.url + path, headers=headers) as response:
        await expect_error(response, 404, "not_found")
    assert not engine.calls


async def test_a_path_cannot_be_disguised(proxy: Proxy, engine: Engine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(
        b"POST /v1/chat/completions/../../load HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        b"authorization: Bearer %s\r\ncontent-length: 15\r\n\r\n" % KEY.encode() + b'{"model":"big"}'
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
    writer.close()
    assert not engine.calls


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/tokenize", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("PUT", "/v1/models", {"GET", "HEAD"}),
    ],
)
async def test_the_wrong_method(proxy: Proxy, method: str, path: str, allow: set[str]) -> None:
    async with proxy.session.request(method, proxy.url + path) as response:
        await expect_error(response, 405, "method_not_allowed")
        assert set(response.headers["allow"].replace(" ", "").split(",")) == allow


async def test_an_unknown_model(proxy: Proxy, engine: Engine) -> None:
    async with proxy.post(body={"model": "huge"}) as response:
        error = await expect_error(response, 404, "model_not_found", "model")
    assert "huge" in error["message"]
    assert not engine.calls


async def test_a_model_that_the_key_may_not_use_is_unknown_to_it(proxy: Proxy) -> None:
    async with proxy.post(key=SMALL_KEY) as response:
        refused = await expect_error(response, 404, "model_not_found", "model")
    async with proxy.post(body={"model": "huge"}, key=SMALL_KEY) as response:
        unknown = await expect_error(response, 404, "model_not_found", "model")
    assert refused["message"].replace("big", "huge") == unknown["message"]
    async with proxy.post(body={"model": "small"}, key=SMALL_KEY) as response:
        assert response.status == 200


def padded(size: int) -> bytes:
    head, tail = b'{"model":"big","prompt":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 100_000):
        yield body[at : at + 100_000]


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_limit(proxy: Proxy, engine: Engine, chunked: bool) -> None:
    limit = 4 << 20

    async def post(size: int) -> Any:
        body = padded(size)
        return await proxy.post(data=in_pieces(body) if chunked else body)

    async with await post(limit + 1) as response:
        await expect_error(response, 413, "body_too_large")
    assert not engine.calls
    async with await post(limit) as response:
        assert response.status == 200
    assert len((await engine.next_call()).body) == limit


async def test_what_an_engine_is_told(proxy: Proxy, engine: Engine) -> None:
    headers = {
        "x-request-id": "from-nginx.1",
        "x-vllm-priority": "-100",
        "x-data-parallel-rank": "1",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "te": "trailers",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "accept-encoding": "gzip",
        "accept": "text/event-stream",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    async with proxy.post("/v1/completions?admin=1", headers=headers) as response:
        assert response.headers["x-request-id"] == "from-nginx.1"
    call = await engine.next_call()
    assert call.path == "/v1/completions"
    assert call.headers.pop("user-agent") == "ec2-inference-proxy"
    assert call.headers == {
        "host": f"127.0.0.1:{engine.port}",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(call.body)),
        "traceparent": headers["traceparent"],
        "x-request-id": "from-nginx.1",
    }


async def test_headers_of_an_answer(proxy: Proxy, engine: Engine) -> None:
    async def script(call: Call) -> None:
        theirs = ["server: vllm", "date: long ago", "x-request-id: its-own", "keep-alive: timeout=5"]
        await call.answer(200, {}, *theirs, "connection: keep-alive, x-hop", "x-hop: 1", "x-load: 3")

    engine.script = script
    async with proxy.post() as response:
        names = [name.lower() for name in response.headers]
        assert sorted(names) == ["content-length", "content-type", "x-load", "x-request-id"]
        assert response.headers["x-request-id"] == (await engine.next_call()).headers["x-request-id"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "semi;colon", "\u00e9"])
async def test_a_request_id_that_is_none_is_replaced(proxy: Proxy, given: str) -> None:
    async with proxy.post(headers={"x-request-id": given}) as response:
        made = response.headers["x-request-id"]
    assert len(made) == 32
    async with proxy.get("/nowhere") as response:
        assert len(response.headers["x-request-id"]) == 32


async def test_one_access_line(proxy: Proxy, log: Log) -> None:
    async with proxy.post(body={"prompt": "a secret"}, headers={"x-request-id": "r1"}) as response:
        size = len(await response.read())
    line = await log.last_request()
    assert line.pop("time")
    assert line.pop("duration_ms") >= line.pop("ttft_ms") > line.pop("queue_ms") >= 0
    assert line == {
        "event": "request",
        "request_id": "r1",
        "key": "alice",
        "owner": "alice",
        "method": "POST",
        "path": "/v1/chat/completions",
        "class": "generation",
        "model": "big",
        "served_model": "big",
        "engine": "host1:e",
        "status": 200,
        "stream": False,
        "retries": 0,
        "bytes": size,
        "outcome": "ok",
        "prompt_tokens": 3,
        "completion_tokens": 5,
    }
    assert "a secret" not in log.text
    assert "hello" not in log.text
    assert KEY not in log.text


async def test_refusals_are_logged_too(proxy: Proxy, log: Log) -> None:
    async with proxy.post(key="wrong" * 8):
        line = await log.last_request()
    assert (line["status"], line["outcome"], line["key"]) == (401, "invalid_api_key", None)
    async with proxy.get("/v1/nothing?key=secret"):
        assert len(log.lines("request")) == 2
    line = log.lines("request")[-1]
    assert (line["status"], line["outcome"], line["path"]) == (404, "not_found", "/v1/nothing")
    assert "wrongwrong" not in log.text
    assert "secret" not in log.text


async def test_a_slow_upload_meets_the_total_clock(files: Files, engine: Engine) -> None:
    files.configure(engine, timeouts={"total_s": {"generation": 0.2}})
    async with running_proxy(files) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n"
            b'content-length: 100\r\n\r\n{"model"' % KEY.encode()
        )
        head, body = (await reader.readuntil(b"}}")).split(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "request_timeout"


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("change", [b"", b',"priority":1'])
async def test_a_byte_order_mark_is_skipped(proxy: Proxy, engine: Engine, change: bytes) -> None:
    async with proxy.post(data=BOM + b'{"model":"big"' + change + b"}") as response:
        assert response.status == 200
    assert (await engine.next_call()).body == b'{"model":"big"}'


@pytest.mark.parametrize("value", [b'"true"', b'"True"', b'"1"', b"1", b"1.0"])
async def test_streams_are_asked_for_in_every_way_that_engines_take(
    proxy: Proxy, engine: Engine, value: bytes
) -> None:
    body = b'{"model":"big","stream_options":{"include_usage":true},"stream":' + value + b"}"
    async with proxy.post(data=body) as response:
        assert response.status == 200
    assert (await engine.next_call()).body == body


@pytest.mark.parametrize("value", [b"2", b'"yes"', b"[]", b"0.5", b'""'])
async def test_what_is_neither_true_nor_false_is_refused(proxy: Proxy, engine: Engine, value: bytes) -> None:
    async with proxy.post(data=b'{"model":"big","stream":' + value + b"}") as response:
        await expect_error(response, 400, "invalid_type", "stream")
    assert not engine.calls
