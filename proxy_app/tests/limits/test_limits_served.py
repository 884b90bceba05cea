"""Limits as clients meet them: in one worker, in two with a shared store, and while the store is away."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine import WAIT_S, Call, Engine, Script, complete, stream
from expect import expect_error
from harness import KEY, SMALL_KEY, Files, Log, Proxy, running_proxy, sha256
from inference_proxy.http.server_protocol import ClientConnection
from inference_proxy.limits import redis, shared_store
from inference_proxy.limits.local_store import LocalStore
from process import running_process
from store_server import Valkey, running_valkey

pytestmark = pytest.mark.anyio

EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
USAGE = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"total_tokens":8,"completion_tokens":5}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def limit(files: Files, **limits: Any) -> None:
    """Set the limits of the key that tests use; the other key has none."""
    files.write(
        files.keys,
        [
            {"name": "alice", "sha256": sha256(KEY), "limits": limits},
            {"name": "bob", "sha256": sha256(SMALL_KEY)},
        ],
    )


@contextlib.asynccontextmanager
async def limited(files: Files, engine: Engine, /, **limits: Any) -> AsyncIterator[Proxy]:
    limit(files, **limits)
    files.configure(engine)
    async with running_proxy(files) as proxy:
        yield proxy


async def status(proxy: Proxy, body: dict[str, Any] | None = None) -> int:
    async with proxy.post(body=body) as response:
        await response.read()
        return int(response.status)


async def remaining(proxy: Proxy, what: str) -> int:
    """What the next request finds left, including itself."""
    async with proxy.post(body={"max_tokens": 1}) as response:
        return int(response.headers[f"x-ratelimit-remaining-{what}"])


async def test_requests_per_minute(files: Files, engine: Engine, log: Log) -> None:
    async with limited(files, engine, requests_per_minute=3) as proxy:
        for left in (2, 1, 0):
            async with proxy.post() as response:
                assert response.status == 200
                assert response.headers["x-ratelimit-limit-requests"] == "3"
                assert response.headers["x-ratelimit-remaining-requests"] == str(left)
                assert response.headers["x-ratelimit-reset-requests"].endswith("s")
                assert "x-ratelimit-limit-tokens" not in response.headers
        async with proxy.post() as response:
            error = await expect_error(response, 429, "requests_per_minute_exceeded")
            assert error["type"] == "rate_limit_error"
            assert 0 < int(response.headers["retry-after"]) <= 65
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
        async with proxy.post(key=SMALL_KEY) as response:
            assert response.status == 200, "another key's limits are its own"
            assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]
    assert len(engine.calls) == 4
    assert Counter(line["outcome"] for line in log.lines("request")) == {
        "ok": 4,
        "requests_per_minute_exceeded": 1,
    }


async def test_how_limits_stand_can_be_seen(files: Files, engine: Engine) -> None:
    limit(files, requests_per_minute=1, models={"small": {"tokens_per_day": 9000}})
    files.configure(engine, admin=files.admin())
    async with running_proxy(files) as proxy:
        assert [await status(proxy, {"model": name, "max_tokens": 8}) for name in ("small", "big")] == [
            200,
            429,
        ]
        rows = (await proxy.admin.get("/admin/limits"))["limits"]
        found = await proxy.admin.metrics()
        async with proxy.admin.request("GET", "/") as response:
            assert "<caption>Limits</caption>" in await response.text()
    assert [(row["key"], row["model"], row["limit"], row["used"], row["of"]) for row in rows] == [
        ("alice", None, "requests_per_minute", 1, 1),
        ("alice", "small", "tokens_per_day", 9, 9000),
    ]
    refused = [name for name, value in found.items() if "limit_rejections_total" in name and value]
    assert len(refused) == 1
    assert 'owner="alice"' in refused[0]
    assert 'code="requests_per_minute_exceeded"' in refused[0]


async def test_an_engine_that_is_full_costs_its_caller_nothing(files: Files, engine: Engine) -> None:
    async def full(call: Call) -> None:
        await call.answer(503, {"error": {"message": "full"}})

    async with limited(files, engine, requests_per_minute=1) as proxy:
        engine.script = full
        assert await status(proxy) == 503
        engine.script = complete
        assert await status(proxy) == 200


async def test_a_refusal_in_anthropics_shape(files: Files, engine: Engine) -> None:
    async with limited(files, engine, requests_per_minute=1) as proxy:
        await (await proxy.post("/v1/messages")).read()
        async with proxy.post("/v1/messages") as response:
            assert response.status == 429
            assert (await response.json())["error"]["type"] == "rate_limit_error"
            assert response.headers["retry-after"]


async def test_requests_of_one_model(files: Files, engine: Engine) -> None:
    async with limited(files, engine, models={"small": {"requests_per_minute": 1}}) as proxy:
        assert [await status(proxy, {"model": name}) for name in ("small", "small", "big", "big")] == [
            200, 429, 200, 200,
        ]  # fmt: skip


async def test_concurrent_requests(files: Files, engine: Engine) -> None:
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = hold
    async with limited(files, engine, concurrent_requests=2) as proxy:
        running = [asyncio.create_task(status(proxy)) for _ in range(2)]
        for _ in running:
            await engine.next_call()
        async with proxy.post() as response:
            await expect_error(response, 429, "concurrent_requests_exceeded")
            assert response.headers["retry-after"] == "1"
        finish.set()
        assert await asyncio.gather(*running) == [200, 200]
        assert await status(proxy) == 200


@pytest.mark.parametrize("script", [complete, stream], ids=["whole", "stream"])
async def test_a_place_is_free_before_the_client_reads_the_end(
    files: Files, engine: Engine, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the client's next request, to another worker, could be refused because of this one."""
    order: list[str] = []

    def noted(owner: type, name: str, what: str) -> None:
        real = getattr(owner, name)

        def noting(*arguments: Any) -> Any:
            order.append(what)
            return real(*arguments)

        monkeypatch.setattr(owner, name, noting)

    noted(LocalStore, "settle", "free")
    noted(ClientConnection, "answer", "end")
    noted(ClientConnection, "end", "end")
    engine.script = script
    async with limited(files, engine, concurrent_requests=1) as proxy:
        for _ in range(2):
            assert await status(proxy, {"stream": script is stream}) == 200
    assert order == ["free", "end"] * 2


async def test_a_client_that_hangs_up_gives_its_place_back(files: Files, engine: Engine) -> None:
    async def hold(call: Call) -> None:
        await call.client_gone.wait()

    engine.script = hold
    async with limited(files, engine, concurrent_requests=1) as proxy:
        for _ in range(3):
            running = asyncio.create_task(status(proxy))
            call = await engine.next_call()
            running.cancel()
            await asyncio.wait_for(call.client_gone.wait(), WAIT_S)
            await proxy.idle()
        engine.script = complete
        assert await status(proxy) == 200


async def test_tokens_are_reserved_then_settled_by_what_the_engine_counted(
    files: Files, engine: Engine
) -> None:
    async with limited(files, engine, tokens_per_minute=1000) as proxy:
        async with proxy.post(body={"max_tokens": 899}) as response:
            assert response.headers["x-ratelimit-limit-tokens"] == "1000"
            assert response.headers["x-ratelimit-remaining-tokens"] == "100"
            await response.read()
        await proxy.idle()
        assert await remaining(proxy, "tokens") == 1000 - 8 - 2


async def test_a_request_that_can_never_fit(files: Files, engine: Engine) -> None:
    async with limited(files, engine, tokens_per_day=1000) as proxy:
        async with proxy.post(body={"max_tokens": 5000}) as response:
            error = await expect_error(response, 429, "request_exceeds_limit")
            assert "5001 tokens" in error["message"]
            assert "1000 tokens per day" in error["message"]
            assert response.headers["x-should-retry"] == "false"
            assert response.headers["retry-after"]
        assert await status(proxy) == 200
    assert len(engine.calls) == 1


async def test_a_budget_that_is_spent(files: Files, engine: Engine) -> None:
    async with limited(files, engine, tokens_per_month=12) as proxy:
        assert await status(proxy, {"max_tokens": 2}) == 200
        await proxy.idle()
        async with proxy.post(body={"max_tokens": 6}) as response:
            await expect_error(response, 429, "tokens_per_month_exceeded")
            assert int(response.headers["retry-after"]) > 0
        assert await status(proxy, {"max_tokens": 3}) == 200


async def test_requests_of_a_day(files: Files, engine: Engine) -> None:
    async with limited(files, engine, requests_per_day=1) as proxy:
        async with proxy.post() as response:
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
            await response.read()
        async with proxy.post() as response:
            await expect_error(response, 429, "requests_per_day_exceeded")
            assert int(response.headers["retry-after"]) > 0


async def test_what_an_engine_refuses_costs_a_request_and_no_tokens(files: Files, engine: Engine) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})

    engine.script = refuse
    async with limited(files, engine, tokens_per_day=10_000, requests_per_minute=9) as proxy:
        assert await status(proxy, {"max_tokens": 5000}) == 400
        await proxy.idle()
        async with proxy.post(body={"max_tokens": 1}) as response:
            assert response.headers["x-ratelimit-remaining-tokens"] == "9998"
            assert response.headers["x-ratelimit-remaining-requests"] == "7"


async def test_429_is_the_callers_limit_and_503_our_capacity(files: Files, engine: Engine) -> None:
    """Gateways 18. The two are never confused, and both say when to retry."""
    async with limited(files, engine, requests_per_minute=1) as proxy:
        (files.drained / "host1:e").touch()
        await proxy.until(lambda status: status["engines"][0]["state"] == "drained")
        for _ in range(3):
            async with proxy.post() as response:
                await expect_error(response, 503, "model_unavailable")
                assert int(response.headers["retry-after"]) > 0
        (files.drained / "host1:e").unlink()
        await proxy.until(lambda status: status["engines"][0]["state"] == "serving")
        assert await status(proxy) == 200, "what we could not serve is not counted"
        async with proxy.post() as response:
            await expect_error(response, 429, "requests_per_minute_exceeded")
            assert int(response.headers["retry-after"]) > 0


async def test_limits_are_changed_live(files: Files, engine: Engine) -> None:
    async with limited(files, engine, requests_per_minute=2) as proxy:
        assert [await status(proxy) for _ in range(3)] == [200, 200, 429]
        limit(files, requests_per_minute=4)
        async with asyncio.timeout(WAIT_S):
            while await status(proxy) == 429:
                await asyncio.sleep(0.01)
        assert [await status(proxy) for _ in range(2)] == [200, 429], "what was counted stays counted"


def stream_of(*chunks: bytes) -> Any:
    async def script(call: Call) -> None:
        await call.start_stream()
        for chunk in chunks:
            await call.chunk(chunk)
        await call.end_stream()

    return script


CUTS = [
    (EVENT, EVENT, USAGE, DONE),
    (EVENT + EVENT + USAGE + DONE,),
    (EVENT, EVENT + USAGE[:9], USAGE[9:] + DONE),
    (EVENT, EVENT, USAGE + DONE),
    (EVENT, EVENT + USAGE, DONE),
    tuple(b"%c" % byte for byte in EVENT + EVENT + USAGE + DONE),
]


@pytest.mark.parametrize("chunks", CUTS)
async def test_usage_of_a_stream_is_known_though_its_client_does_not_see_it(
    proxy: Proxy, engine: Engine, log: Log, chunks: tuple[bytes, ...]
) -> None:
    engine.script = stream_of(*chunks)
    async with proxy.post(body={"stream": True}) as response:
        assert await response.read() == EVENT + EVENT + DONE
    line = await log.last_request()
    assert (line["prompt_tokens"], line["completion_tokens"], line["outcome"]) == (3, 5, "ok")
    asked = json.loads((await engine.next_call()).body)
    assert asked == {"model": "big", "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("options", "sent", "hidden"),
    [
        ({"include_usage": True}, {"include_usage": True}, False),
        ({"include_usage": True, "x": 1}, {"include_usage": True, "x": 1}, False),
        ({"include_usage": False, "x": 1}, {"include_usage": True, "x": 1}, True),
        ({"continuous_usage_stats": True}, {"include_usage": True}, True),
        (None, {"include_usage": True}, True),
        ("no object", "no object", False),
        # Engines' parsers accept them as booleans.
        ({"include_usage": "false"}, {"include_usage": True}, True),
        ({"include_usage": "True"}, {"include_usage": True}, False),
        ({"include_usage": 0}, {"include_usage": True}, True),
    ],
)
async def test_a_client_gets_the_usage_that_it_asks_for(
    proxy: Proxy, engine: Engine, options: Any, sent: Any, hidden: bool
) -> None:
    engine.script = stream_of(EVENT, USAGE, DONE)
    async with proxy.post(body={"stream": True, "stream_options": options}) as response:
        assert await response.read() == (EVENT + DONE if hidden else EVENT + USAGE + DONE)
    assert json.loads((await engine.next_call()).body)["stream_options"] == sent


async def test_a_name_in_options_hides_no_usage(proxy: Proxy, engine: Engine) -> None:
    """Python's own parser accepts half of a surrogate pair, encoded like a character."""
    options = b'{"include_usage":false,"\xed\xa0\x80":1}'
    data = b'{"model":"big","stream":true,"stream_options":' + options + b"}"
    async with proxy.post(data=data) as response:
        await expect_error(response, 400, "invalid_value", "stream_options")
    assert not engine.calls


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 40, "9" * 900])
async def test_numbers_in_options_hide_no_usage(proxy: Proxy, engine: Engine, number: str) -> None:
    """An engine takes them for infinity or a large number, in an option that it does not know."""
    engine.script = stream_of(EVENT, USAGE, DONE)
    options = f'{{"include_usage":false,"x":{number}}}'
    data = f'{{"model":"big","stream":true,"stream_options":{options}}}'
    async with proxy.post(data=data) as response:
        assert await response.read() == EVENT + DONE
    sent = options.replace("false", "true")
    assert f'"stream_options":{sent}' in (await engine.next_call()).body.decode()


@pytest.mark.parametrize(
    "options",
    [{"include_usage": "off"}, {"x": "x" * 2000}, {"include_usage": [1]}, {"include_usage": 10**400}],
)
async def test_options_by_which_usage_might_be_missed_are_refused(
    proxy: Proxy, engine: Engine, options: Any
) -> None:
    async with proxy.post(body={"stream": True, "stream_options": options}) as response:
        assert response.status == 400
        assert "stream_options" in await response.text()
    assert not engine.calls


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", {}), ("/v1/messages", {"stream": True}), ("/v1/responses", {"stream": True})],
)
async def test_no_other_engine_is_asked_for_usage(
    proxy: Proxy, engine: Engine, path: str, body: dict[str, Any]
) -> None:
    await (await proxy.post(path, body=body)).read()
    assert b"stream_options" not in (await engine.next_call()).body


async def test_an_aborted_stream_is_settled_by_what_was_relayed(files: Files, engine: Engine) -> None:
    async def endless(call: Call) -> None:
        await call.start_stream()
        for _ in range(20):
            await call.chunk(EVENT)
        await call.client_gone.wait()

    engine.script = endless
    async with limited(files, engine, tokens_per_day=10_000) as proxy:
        response = await proxy.post(body={"stream": True, "max_tokens": 5000})
        await response.content.readexactly(20 * len(EVENT))
        response.close()
        await proxy.idle()
        engine.script = complete
        assert await remaining(proxy, "tokens") == 10_000 - 20 - 2


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    async with running_valkey(tmp_path) as server:
        yield server


@pytest.mark.complaint(10)
async def test_limits_are_not_multiplied_by_the_number_of_workers(
    files: Files, engine: Engine, valkey: Valkey
) -> None:
    """Gateways 10.

    Two processes, one store, many requests at once: exactly as many pass as the limit allows.
    """
    limit(files, requests_per_minute=37)
    files.configure(engine, limits={"store": valkey.settings()})
    async with running_process(files) as one, running_process(files) as two:
        answers = [status(worker.proxy) for _ in range(50) for worker in (one, two)]
        assert Counter(await asyncio.gather(*answers)) == {200: 37, 429: 63}
        for worker in (one, two):
            assert await status(worker.proxy) == 429
    assert len(engine.calls) == 37


async def test_places_and_tokens_are_shared_too(files: Files, engine: Engine, valkey: Valkey) -> None:
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = hold
    limit(files, concurrent_requests=5, tokens_per_day=1000)
    files.configure(engine, limits={"store": valkey.settings()})
    async with running_process(files) as one, running_process(files) as two:
        workers = [one.proxy, two.proxy] * 10
        running = [asyncio.create_task(status(worker, {"max_tokens": 99})) for worker in workers]
        for _ in range(5):
            await engine.next_call()
        async with asyncio.timeout(WAIT_S):
            while sum(task.done() for task in running) < 15:
                await asyncio.sleep(0.01)
        finish.set()
        assert Counter(await asyncio.gather(*running)) == {200: 5, 429: 15}
        for worker in (one.proxy, two.proxy):
            await worker.idle()
        async with asyncio.timeout(WAIT_S):
            # The proxy does not wait for the store's reply, so the change may still be under way.
            while await valkey.ask("ZCARD", "inference-proxy:{alice}:concurrent_requests") != b":0\r\n":
                await asyncio.sleep(0.01)
        assert await remaining(two.proxy, "tokens") == 1000 - 5 * 8 - 2


async def test_a_dead_workers_places_come_back(
    files: Files, engine: Engine, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold(call: Call) -> None:
        await call.client_gone.wait()

    engine.script = hold
    limit(files, concurrent_requests=1)
    files.configure(engine, limits={"store": valkey.settings()})
    places = "inference-proxy:{alice}:concurrent_requests"
    async with running_process(files) as one:
        running = asyncio.create_task(status(one.proxy))
        await engine.next_call()
        one.process.kill()
        with contextlib.suppress(Exception):
            await running
    assert await valkey.ask("ZCARD", places) == b":1\r\n"
    # Simulates that the lease's half minute has passed.
    (lease,) = (await valkey.ask("ZRANGE", places, "0", "-1")).split(b"\r\n")[2:3]
    await valkey.ask("ZADD", places, "1", lease.decode())
    engine.script = complete
    async with running_proxy(files) as proxy:
        assert await status(proxy) == 200


async def test_a_place_is_renewed_while_its_request_runs(
    files: Files, engine: Engine, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_store, "_RENEWALS", 3000)
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = hold
    limit(files, concurrent_requests=1)
    files.configure(engine, limits={"store": valkey.settings()})
    places = "inference-proxy:{alice}:concurrent_requests"
    async with running_proxy(files) as proxy:
        running = asyncio.create_task(status(proxy))
        await engine.next_call()
        await valkey.ask("DEL", places)
        async with asyncio.timeout(WAIT_S):
            while await valkey.ask("ZCARD", places) != b":1\r\n":
                await asyncio.sleep(0.01)
        assert await status(proxy) == 429
        finish.set()
        assert await running == 200


async def test_without_its_store_a_worker_counts_its_part_and_comes_back(
    files: Files, engine: Engine, valkey: Valkey, log: Log
) -> None:
    limit(files, requests_per_minute=6)
    files.configure(engine, limits={"store": valkey.settings(fail_open=True)})
    async with running_proxy(files) as proxy:
        assert await status(proxy) == 200
        await valkey.stop()
        answers = [await status(proxy) for _ in range(8)]
        assert answers == [200, 200, 200, 429, 429, 429, 429, 429], "half of six: there are two workers"
        await valkey.start()
        await proxy.until(lambda status: not status["limits_store_away"])
        assert [await status(proxy) for _ in range(7)] == [200] * 5 + [429] * 2, "it remembers the first"
    assert [line for line in log.lines("log") if "is away: the connection was closed" in line["message"]]


async def test_without_its_store_a_worker_refuses_if_told_to(
    files: Files, engine: Engine, valkey: Valkey
) -> None:
    limit(files, requests_per_minute=6)
    files.configure(engine, limits={"store": valkey.settings(fail_open=False)})
    async with running_proxy(files) as proxy:
        assert await status(proxy) == 200
        await valkey.stop()
        async with proxy.post() as response:
            await expect_error(response, 503, "limits_unavailable")
            assert response.headers["retry-after"]
        async with proxy.post(key=SMALL_KEY) as response:
            assert response.status == 200, "who has no limits needs no store"
        assert (await proxy.ready())["limits_store_away"]
        await valkey.start()
        await proxy.until(lambda status: not status["limits_store_away"])
        assert await status(proxy) == 200


async def test_a_request_in_flight_outlives_the_store(files: Files, engine: Engine, valkey: Valkey) -> None:
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = hold
    limit(files, concurrent_requests=1, tokens_per_day=5000)
    files.configure(engine, limits={"store": valkey.settings()})
    async with running_proxy(files) as proxy:
        running = asyncio.create_task(status(proxy))
        await engine.next_call()
        await valkey.stop()
        finish.set()
        assert await running == 200


async def test_a_store_that_hangs_is_away_after_its_timeout(files: Files, engine: Engine) -> None:
    """It accepts connections but never replies."""
    hung: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: hung.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limit(files, requests_per_minute=2)
    store = {"url": f"redis://127.0.0.1:{port}", "workers": 1, "timeout_s": 0.05}
    files.configure(engine, limits={"store": store})
    async with running_proxy(files) as proxy:
        assert [await status(proxy) for _ in range(3)] == [200, 200, 429]
    server.close()
    for writer in hung:
        writer.close()


async def test_a_wrong_password_is_said_and_not_told(
    files: Files, engine: Engine, valkey: Valkey, log: Log
) -> None:
    wrong = files.config.with_name("wrong")
    wrong.write_text("not-the-password\n")
    limit(files, requests_per_minute=1)
    files.configure(engine, limits={"store": valkey.settings(password_file=str(wrong), workers=1)})
    async with running_proxy(files) as proxy:
        assert [await status(proxy) for _ in range(2)] == [200, 429]
    assert "WRONGPASS" in json.dumps(log.lines("log"))
    assert "not-the-password" not in log.text


async def test_a_password_that_is_no_text_can_be_mended(
    files: Files, engine: Engine, valkey: Valkey, log: Log
) -> None:
    password = files.config.with_name("other-password")
    password.write_bytes(b"\xff\n")
    files.configure(engine, limits={"store": valkey.settings(password_file=str(password))})
    async with running_proxy(files) as proxy:
        assert (await proxy.ready())["limits_store_away"]
        password.write_text(valkey.password_file.read_text())
        await proxy.until(lambda status: not status["limits_store_away"])
    assert f"is away: {password} is not a text file" in json.dumps(log.lines("log"))


async def test_no_error_ends_the_attempts_to_connect(
    files: Files, engine: Engine, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first attempt is over, the proxy does not serve: it must not wait for one that died."""
    failures = [RuntimeError("unforeseen"), RuntimeError("unforeseen")]
    read = redis._first_line

    def fails_twice(path: Path) -> str:
        if failures:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(redis, "_first_line", fails_twice)
    files.configure(engine, limits={"store": valkey.settings()})
    async with running_proxy(files) as proxy:
        await proxy.until(lambda status: not status["limits_store_away"])
    assert failures == []


async def test_a_client_that_leaves_while_the_store_thinks_takes_nothing(
    files: Files, engine: Engine, valkey: Valkey
) -> None:
    limit(files, concurrent_requests=1, requests_per_minute=1000)
    files.configure(engine, limits={"store": valkey.settings()})
    async with running_proxy(files) as proxy:
        assert await status(proxy) == 200
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            body = b'{"model":"big"}'
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
                b"content-length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
            )
            writer.transport.abort()
        await proxy.idle()
        async with asyncio.timeout(WAIT_S):
            while await status(proxy) != 200:
                await asyncio.sleep(0.01)


async def test_another_store_is_taken_over_live(
    files: Files, engine: Engine, valkey: Valkey, tmp_path: Path
) -> None:
    limit(files, requests_per_minute=1)
    files.configure(engine)
    async with running_proxy(files) as proxy:
        assert [await status(proxy) for _ in range(2)] == [200, 429]
        files.configure(engine, limits={"store": valkey.settings()})
        async with asyncio.timeout(WAIT_S):
            while await status(proxy) != 200:
                await asyncio.sleep(0.01)
        assert await status(proxy) == 429
        assert b"requests_per_minute" in await valkey.ask("KEYS", "*")


@pytest.mark.parametrize("size", [10, 200_000, 3_000_000])
async def test_the_usage_of_a_response_counts_however_much_stands_after_it(
    files: Files, engine: Engine, size: int
) -> None:
    """vLLM repeats the client's input in the last event, which is then passed on in pieces."""
    response = {"status": "completed", "usage": {"input_tokens": 50, "output_tokens": 20}, "user": "u" * size}
    last = {"type": "response.completed", "response": response}

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(b'event: response.created\ndata: {"response":{"usage":null}}\n\n')
        event = b"event: response.completed\ndata: " + json.dumps(last, separators=(",", ":")).encode()
        for at in range(0, len(event), 60_000):
            await call.chunk(event[at : at + 60_000])
        # The end of the event, in two halves.
        await call.chunk(b"\n")
        await call.chunk(b"\n")
        await call.end_stream()

    engine.script = script
    async with limited(files, engine, tokens_per_day=10_000) as proxy:
        body = {"stream": True, "input": "hi", "max_output_tokens": 100}
        async with proxy.post("/v1/responses", body=body) as answer:
            assert b"error" not in await answer.read()
        await proxy.idle()
        engine.script = complete
        assert await remaining(proxy, "tokens") == 10_000 - 70 - 2


async def test_tools_of_a_client_that_leaves_early_are_no_usage(files: Files, engine: Engine) -> None:
    """vLLM repeats them in the first event, in which its own usage is null."""
    tools = [{"parameters": {"usage": {"input_tokens": 0, "output_tokens": 0}}}]
    created = json.dumps({"response": {"tools": tools, "usage": None}}, separators=(",", ":"))

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(f"event: response.created\ndata: {created}\n\n".encode())
        await call.client_gone.wait()

    engine.script = script
    async with limited(files, engine, tokens_per_day=100_000) as proxy:
        async with proxy.post("/v1/responses", body={"stream": True, "input": "x" * 40_000}) as answer:
            await answer.content.readuntil(b"\n\n")
        await proxy.idle()
        engine.script = complete
        assert await remaining(proxy, "tokens") < 90_000
