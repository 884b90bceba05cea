"""Known problems of other gateways (from their issue trackers, autumn 2026), and that each has a test.

Tests are here or beside the step that they concern, marked with the problem's number: `pytest -m complaint`
runs them all.
"""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from engine import Call, Engine, complete
from expect import expect_error
from harness import KEY, SMALL_KEY, Files, Log, Proxy, running_engine, running_proxy
from inference_proxy.api.endpoints import TABLE

pytestmark = pytest.mark.anyio

COMPLAINTS = {
    1: "memory grows without bound",
    2: "the client has gone, and the engine goes on generating",
    3: "502 from a kept-alive connection that the engine was closing",
    4: "streams are buffered on their way",
    5: "health says 200 while the engine hangs",
    6: "a busy engine is taken for a dead one",
    7: "no timeout before the headers, and a trickle holds a stream for ever",
    8: "long jobs are cut",
    9: "retry storms, and Retry-After is ignored",
    10: "limits are multiplied by the number of workers",
    11: "dies at 1,000 connections",
    12: "affinity makes hot spots",
    13: "errors are masked, then retried",
    14: "one bad engine breaks the list of models, or health",
    15: "CPU for each token",
    16: "a restart kills streams",
    17: "body limits differ from tier to tier",
    18: "overload is answered by 429 or 503 at random",
    19: "engines' other routes can be reached; keys are kept in clear, and can change what there is",
}

OVERFLOW = {
    "error": {
        "message": "This model's maximum context length is 4096 tokens.",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }
}


@pytest.mark.parametrize("number", COMPLAINTS, ids=COMPLAINTS.values())
def test_a_test_is_there_for(number: int) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert re.search(rf"^@pytest\.mark\.complaint\({number}\)$", tests, re.MULTILINE)


@pytest.mark.complaint(13)
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 429])
async def test_what_is_wrong_with_a_request_is_told_as_it_is_and_never_retried(
    pair: Proxy, engine: Engine, other: Engine, status: int
) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(status, OVERFLOW)

    engine.script = other.script = refuse
    async with pair.post(body={"stream": True}) as response:
        error = await expect_error(response, status, "400", "input_tokens")
    assert error["message"] == OVERFLOW["error"]["message"]
    assert len(engine.calls) + len(other.calls) == 1


@pytest.mark.complaint(13)
async def test_not_even_where_another_model_could_stand_in(files: Files, engine: Engine) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(400, OVERFLOW)

    engine.script = refuse
    files.configure(engine, models=[{"name": "big", "fallback": "small"}])
    async with running_proxy(files) as proxy, proxy.post() as response:
        await expect_error(response, 400, "400", "input_tokens")
    assert len(engine.calls) == 1


async def hang(call: Call) -> None:
    await call.reader.read(1)


async def garbage(call: Call) -> None:
    await call.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    call.break_off()


async def nonsense(call: Call) -> None:
    await call.answer(200, b'{"data": {"id": "big"}}')


async def failing(call: Call) -> None:
    await call.answer(500, b"Internal Server Error")


@pytest.mark.complaint(14)
@pytest.mark.parametrize("how", [hang, garbage, nonsense, failing])
async def test_one_bad_engine_spoils_neither_the_list_nor_health(
    files: Files, engine: Engine, how: Any
) -> None:
    async with running_engine("wide") as bad:
        bad.models = how
        files.configure(engine, bad)
        async with running_proxy(files) as proxy:
            assert (await proxy.ready())["http"] == 200
            async with proxy.get("/v1/models") as response:
                assert [card["id"] for card in (await response.json())["data"]] == ["big", "small", "wide"]
            async with proxy.get("/v1/models/big") as response:
                assert response.status == 200
            async with proxy.post() as response:
                assert response.status == 200
            async with proxy.post(body={"model": "wide"}) as response:
                await expect_error(response, 503, "model_unavailable")


@pytest.mark.complaint(17)
@pytest.mark.parametrize("row", [row for row in TABLE if "POST" in row.methods], ids=lambda row: row.path)
async def test_the_body_limit_is_the_configured_one_on_every_path(
    files: Files, engine: Engine, row: Any
) -> None:
    limit = 2 << 20
    path = ("/v1" if row.versioned else "") + row.path
    kind = "multipart/form-data; boundary=x" if row.path.startswith("/audio") else "application/json"
    files.configure(engine, body_limit_bytes=limit)
    if "multipart" in kind:
        head, tail = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nbig\r\n', b"\r\n--x--"
        head += b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    else:
        head, tail = b'{"model":"big","x":"', b'"}'
    async with running_proxy(files) as proxy:
        for size, status in ((limit, 200), (limit + 1, 413)):
            body = head + b"x" * (size - len(head) - len(tail)) + tail
            async with proxy.post(path, data=body, headers={"content-type": kind}) as response:
                assert response.status == status, await response.text()
    (call,) = engine.calls
    assert len(call.body) == limit, "to the last byte"


@pytest.mark.complaint(18)
async def test_what_is_our_capacity_is_503_with_a_time_to_come_again(files: Files, engine: Engine) -> None:
    async with running_engine("lost") as lost:
        files.configure(engine, lost)
    async with running_proxy(files) as proxy:
        async with proxy.post(body={"model": "lost"}) as response:
            await expect_error(response, 503, "model_unavailable")
            assert int(response.headers["retry-after"]) > 0

        async def full(call: Call) -> None:
            await call.answer(503, {"error": {"message": "too many queued requests"}})

        engine.script = full
        async with proxy.post() as response:
            await expect_error(response, 503, None)
            assert int(response.headers["retry-after"]) > 0, "vLLM gives none"
        async with proxy.post("/v1/messages") as response:
            assert (response.status, response.headers["retry-after"]) == (503, "1"), "not Anthropic's 529"
            assert (await response.json())["error"]["type"] == "overloaded_error"


@pytest.mark.complaint(19)
@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/load", "/version", "/ping", "/invocations", "/tokenizer_info",
        "/scale_elastic_ep", "/start_profile", "/sleep", "/wake_up", "/reset_prefix_cache", "/collective_rpc",
        "/server_info", "/update_config", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
        "/v1/chat/completions/render", "/inference/v1/generate", "/docs", "/workers",
        "/add_worker", "/remove_worker", "/list_workers", "/get_loads", "/flush_cache",
    ],
)  # fmt: skip
async def test_no_path_reaches_an_engine_that_is_not_on_the_list(
    proxy: Proxy, engine: Engine, path: str
) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        async with proxy.session.request(
            method, proxy.url + path, headers=headers, data=b'{"model":"big"}'
        ) as response:
            await expect_error(response, 404, "not_found")
    assert not engine.calls


@pytest.mark.complaint(19)
async def test_a_key_that_was_revoked_fails_also_on_a_connection_that_stays_open(
    proxy: Proxy, files: Files
) -> None:
    headers = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SMALL_KEY}\r\n"
    body = b'{"model":"small"}'
    request = (
        f"{headers}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

    async def ask() -> bytes:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        return head.split(b" ")[1]

    assert await ask() == b"200"
    files.write(files.keys, [{"name": "carol", "sha256": "0" * 64}])
    async with asyncio.timeout(10):
        while await ask() != b"401":
            await asyncio.sleep(0.01)
    writer.close()


@pytest.mark.complaint(19)
async def test_no_key_changes_what_there_is(proxy: Proxy, engine: Engine) -> None:
    before = await proxy.ready()
    for path in ("/health/ready", "/health/live", "/v1/models", "/openapi.json"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            async with proxy.session.request(
                method,
                proxy.url + path,
                headers={"authorization": f"Bearer {KEY}"},
                data=b'{"url":"http://x"}',
            ) as response:
                assert response.status == 405
    assert await proxy.ready() == before


@pytest.mark.complaint(19)
async def test_no_key_is_in_the_log_or_reaches_an_engine(proxy: Proxy, engine: Engine, log: Log) -> None:
    engine.script = complete
    async with proxy.post() as response:
        assert response.status == 200
    assert (await log.last_request())["key"] == "alice"
    assert KEY not in log.text
    assert all(KEY not in str(call.headers) for call in engine.calls), "an engine has no use for it"
