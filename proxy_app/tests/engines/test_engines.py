"""Choosing an engine, and engines that are late, broken or gone before the client has received anything."""

import asyncio
import logging
import socket
from collections import Counter
from typing import Any, cast

import pytest
import yaml

from engine import WAIT_S, Call, Engine, complete
from expect import expect_error
from harness import SMALL_KEY, Files, Log, Proxy, running_engine, running_proxy
from inference_proxy.engines import poller
from inference_proxy.http.client import Document, EngineClient
from jobs import a_fleet

pytestmark = pytest.mark.anyio


async def break_off(call: Call) -> None:
    call.break_off()


async def say_nothing(call: Call) -> None:
    await call.client_gone.wait()


async def test_the_least_busy_engine_is_chosen(pair: Proxy, engine: Engine, other: Engine) -> None:
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = other.script = hold
    requests = []
    for taken in (1, 2, 3):
        requests += [asyncio.create_task(pair.post().__aenter__()) for _ in range(2)]
        async with asyncio.timeout(WAIT_S):
            while counts(await pair.ready()) != [taken, taken]:
                await asyncio.sleep(0.01)
    finish.set()
    for response in await asyncio.gather(*requests):
        assert response.status == 200
        response.release()
    await pair.idle()


def counts(status: dict[str, Any]) -> list[int]:
    return [engine["in_flight"] for engine in status["engines"]]


def states(status: dict[str, Any]) -> list[str]:
    return [engine["state"] for engine in status["engines"]]


async def test_only_engines_that_have_the_model_are_asked(pair: Proxy, engine: Engine, other: Engine) -> None:
    for _ in range(10):
        async with pair.post(body={"model": "small"}) as response:
            assert response.status == 200
    assert len(engine.calls) == 10
    assert not other.calls


async def test_equal_engines_share_the_work(pair: Proxy, engine: Engine, other: Engine) -> None:
    for _ in range(40):
        async with pair.post() as response:
            await response.read()
    assert engine.calls
    assert other.calls


async def test_a_broken_engine_is_replaced(pair: Proxy, engine: Engine, other: Engine, log: Log) -> None:
    engine.script = break_off
    while not engine.calls:
        async with pair.post() as response:
            assert response.status == 200
            await response.read()
    assert other.calls[-1].body == engine.calls[-1].body
    assert (await log.last_request())["engine"] == "host2:e"


async def test_headers_alone_are_no_answer(pair: Proxy, engine: Engine, other: Engine) -> None:
    async def promise(call: Call) -> None:
        await call.start_stream()
        call.break_off()

    engine.script = promise
    while not engine.calls:
        async with pair.post() as response:
            assert response.status == 200
            await response.read()
    assert other.calls


async def test_an_engine_that_is_told_to_stop_is_replaced(pair: Proxy, engine: Engine, other: Engine) -> None:
    async def abort(call: Call) -> None:
        await call.answer(200, {"choices": [{"finish_reason": "abort"}]})

    engine.script = abort
    while not engine.calls:
        async with pair.post() as response:
            assert (await response.json())["id"] == "c-1"


async def test_a_stale_connection_is_noticed_by_nobody(proxy: Proxy, engine: Engine) -> None:
    async def once_a_connection(call: Call) -> None:
        if call.nth_on_connection > 1:
            call.break_off()
        else:
            await complete(call)

    async def only_calls(call: Call) -> None:
        # Close the connections of polls, so that they do not use up the pool's.
        await call.answer(200, {"data": engine.cards}, "connection: close")
        call.break_off()

    engine.models = only_calls
    engine.script = once_a_connection
    for _ in range(20):
        async with proxy.post() as response:
            assert response.status == 200
            await response.read()
    assert len(engine.calls) > 20, "no connection was used twice: this test has proved nothing"


async def test_an_engine_that_breaks_twice(proxy: Proxy, engine: Engine, log: Log) -> None:
    engine.script = break_off
    async with proxy.post() as response:
        await expect_error(response, 502, "engine_unreachable")
    assert len(engine.calls) == 2
    assert (await log.last_request())["outcome"] == "engine_unreachable"
    await proxy.idle()


@pytest.mark.complaint(3)
async def test_engines_that_close_kept_alive_connections_under_load_cost_no_request(
    pair: Proxy, engine: Engine, other: Engine, log: Log
) -> None:
    async def capricious(call: Call) -> None:
        if call.nth_on_connection % 3 == 0:
            return call.break_off()
        await complete(call)
        if call.nth_on_connection % 4 == 2:
            call.break_off()

    async def many() -> None:
        for _ in range(50):
            async with pair.post() as response:
                assert response.status == 200
                await response.read()

    engine.script = other.script = capricious
    async with asyncio.timeout(6 * WAIT_S):
        await asyncio.gather(*(many() for _ in range(20)))
    assert Counter(line["outcome"] for line in log.lines("request")) == {"ok": 1000}


async def test_an_engine_that_talks_nonsense(proxy: Proxy, engine: Engine) -> None:
    async def nonsense(call: Call) -> None:
        await call.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        call.break_off()

    engine.script = nonsense
    async with proxy.post() as response:
        await expect_error(response, 502, "engine_unreachable")


async def test_a_redirect_is_not_followed(proxy: Proxy, engine: Engine) -> None:
    async def redirect(call: Call) -> None:
        await call.answer(307, b"", f"location: {engine.url}/metrics")

    engine.script = redirect
    async with proxy.post() as response:
        await expect_error(response, 502, "bad_gateway")
    assert len(engine.calls) == 1


async def test_a_dead_engine_is_found_out_and_found_again(proxy: Proxy, engine: Engine) -> None:
    await engine.stop()
    async with proxy.post() as response:
        assert response.status in (502, 503)
    status = await proxy.until(lambda status: states(status) == ["down"])
    assert (status["status"], status["http"]) == ("unready", 503)
    async with proxy.post() as response:
        await expect_error(response, 503, "model_unavailable")
        assert int(response.headers["retry-after"]) > 0
    await engine.start()
    status = await proxy.until(lambda status: states(status) == ["serving"])
    assert (status["status"], status["http"]) == ("ready", 200)
    async with proxy.post() as response:
        assert response.status == 200


async def test_an_engine_that_was_never_there(files: Files) -> None:
    absent = Engine("big")
    await absent.start()
    await absent.stop()
    files.configure(absent)
    async with running_proxy(files) as proxy:
        assert states(await proxy.ready()) == ["starting"]
        async with proxy.post() as response:
            await expect_error(response, 503, "model_unavailable")


async def test_the_second_engine_answers_when_the_first_has_died(
    pair: Proxy, engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(call: Call) -> None:
        await call.answer(200, {"data": engine.cards})

    other.models = busy
    await engine.stop()
    for _ in range(20):
        async with pair.post() as response:
            assert response.status == 200
            await response.read()
    assert len(other.calls) == 20


async def test_an_engine_that_answers_no_poll_is_down(
    proxy: Proxy, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "_TIMEOUT_S", 0.05)
    silent = asyncio.Event()

    async def silence(call: Call) -> None:
        silent.set()
        await call.reader.read(1)

    engine.models = silence
    await asyncio.wait_for(silent.wait(), WAIT_S)
    await proxy.until(lambda status: states(status) == ["down"])


async def test_an_engine_that_answers_late_is_not_dead() -> None:
    class Silent:
        async def get(self, *_: Any, **__: Any) -> Document:
            raise TimeoutError

    fleet = a_fleet({})
    (engine,) = fleet.engines
    one = poller._EnginePoller(fleet, cast(EngineClient, Silent()), engine)
    reachable = []
    for _ in range(3):
        await one.poll()
        reachable.append(engine.reachable)
    assert reachable == [True, True, False]


async def test_the_first_byte_clock(files: Files, engine: Engine) -> None:
    engine.script = say_nothing
    files.configure(engine, timeouts={"first_byte_s": 0.1})
    async with running_proxy(files) as proxy:
        async with proxy.post(body={"stream": True}) as response:
            await expect_error(response, 504, "first_byte_timeout")
        call = await engine.next_call()
        await asyncio.wait_for(call.client_gone.wait(), WAIT_S)
        assert len(engine.calls) == 1, "what was late once is not asked for again"
        await proxy.idle()


@pytest.mark.complaint(7)
async def test_headers_do_not_stop_the_first_byte_clock(files: Files, engine: Engine) -> None:
    async def promise(call: Call) -> None:
        await call.start_stream()
        await call.client_gone.wait()

    engine.script = promise
    files.configure(engine, timeouts={"first_byte_s": 0.1})
    async with running_proxy(files) as proxy, proxy.post(body={"stream": True}) as response:
        await expect_error(response, 504, "first_byte_timeout")


async def test_the_total_clock(files: Files, engine: Engine) -> None:
    engine.script = say_nothing
    files.configure(engine, timeouts={"total_s": {"generation": 0.1}})
    async with running_proxy(files) as proxy, proxy.post() as response:
        await expect_error(response, 504, "total_timeout")


async def test_the_connect_clock(files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def always_well(*_: Any, **__: Any) -> Document:
        return Document(200, b'{"data": []}', {})

    # A listener with a full backlog answers no SYN, so connecting to it hangs. The poller must not notice.
    monkeypatch.setattr(EngineClient, "get", always_well)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        engine.port = deaf.getsockname()[1]
        files.configure(engine, timeouts={"connect_s": 0.1})
        async with running_proxy(files) as proxy, proxy.post() as response:
            await expect_error(response, 504, "connect_timeout")
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {
                "error": {
                    "message": "too long",
                    "type": "BadRequestError",
                    "param": "input_tokens",
                    "code": 400,
                }
            },
            ("too long", "BadRequestError", "input_tokens", "400"),
        ),
        (401, {"error": "Unauthorized"}, ("Unauthorized", "invalid_request_error", None, None)),
        (404, {"detail": "Not Found"}, ("Not Found", "invalid_request_error", None, None)),
        (
            422,
            {"detail": [{"loc": ["body", "n"], "msg": "not a number", "type": "int"}]},
            ("body.n: not a number", "invalid_request_error", None, None),
        ),
        (
            400,
            {"object": "error", "message": "old style", "type": "X", "code": 40001},
            ("old style", "X", None, "40001"),
        ),
        (500, b"Internal Server Error", ("The engine answered 500.", "server_error", None, None)),
        (500, b"", ("The engine answered 500.", "server_error", None, None)),
        (500, ["odd"], ("The engine answered 500.", "server_error", None, None)),
        (503, {"error": {"message": "full"}}, ("full", "server_error", None, None)),
        (429, b"x" * 300_000, ("The engine answered 429.", "invalid_request_error", None, None)),
    ],
)
async def test_an_engines_error_gets_the_one_shape(
    proxy: Proxy, engine: Engine, log: Log, status: int, body: Any, expected: tuple[str | None, ...]
) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(status, body)

    engine.script = refuse
    async with proxy.post(body={"stream": True}) as response:
        error = await expect_error(response, status, expected[3], expected[2])
        assert (error["message"], error["type"]) == expected[:2]
        assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert len(engine.calls) == 1, "an answer is an answer: no second attempt"
    assert (await log.last_request())["outcome"] == ("engine_error" if status >= 500 else "engine_refused")


async def test_retry_after_is_kept(proxy: Proxy, engine: Engine) -> None:
    async def busy(call: Call) -> None:
        await call.answer(503, {"error": {"message": "full"}}, "retry-after: 17")

    engine.script = busy
    async with proxy.post() as response:
        assert response.headers["retry-after"] == "17"


async def test_models_of_all_engines_are_one_list(files: Files, engine: Engine) -> None:

    async with running_engine("big", "wide") as other, running_engine("lost") as dead:
        engine.cards[0]["max_model_len"] = 4096
        other.cards.append({"id": "adapter-nobody-configured"})
        files.configure(engine, other, dead)
        text = files.config.read_text().replace("- adapter-nobody-configured\n", "- wide\n")
        files.write(files.config, text)
        await dead.stop()
        async with running_proxy(files) as proxy:
            async with proxy.get("/v1/models") as response:
                models = await response.json()
            async with proxy.get("/v1/models", key=SMALL_KEY) as response:
                few = await response.json()
    assert models["object"] == "list"
    assert [card["id"] for card in models["data"]] == ["big", "lost", "small", "wide"]
    big = models["data"][0]
    assert big == {
        "id": "big",
        "object": "model",
        "created": 7,
        "owned_by": "vllm",
        "max_model_len": big["max_model_len"],
    }
    assert "secret" not in str(models)
    assert [card["id"] for card in few["data"]] == ["small"]


@pytest.mark.parametrize("answer", [b"not json", b"[]", b'{"data": 3}', b'{"data": [1]}'])
async def test_an_engine_with_a_broken_list_spoils_nothing(
    files: Files, engine: Engine, other: Engine, answer: bytes
) -> None:
    async def nonsense(call: Call) -> None:
        await call.answer(200, answer)

    other.models = nonsense
    files.configure(engine, other)
    async with running_proxy(files) as proxy:
        assert states(await proxy.ready()) == ["serving", "starting"]
        async with proxy.get("/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["big", "small"]


async def test_health_needs_no_key_and_is_not_logged(proxy: Proxy, log: Log) -> None:
    async with proxy.get("/health/live", key=None) as response:
        assert await response.json() == {"status": "live", "version": "0.1.0", "release": ""}
    status = await proxy.ready()
    assert status == {
        "http": 200,
        "status": "ready",
        "version": "0.1.0",
        "release": "",
        "in_flight": 0,
        "config_error": None,
        "fault": None,
        "limits_store_away": False,
        "engines": [
            {
                "id": "host1:e",
                "url": status["engines"][0]["url"],
                "models": ["big", "small"],
                "state": "serving",
                "in_flight": 0,
            }
        ],
    }
    assert not log.lines("request")


async def test_no_engine_at_all_is_not_ready(files: Files) -> None:
    files.configure()
    async with running_proxy(files) as proxy:
        assert (await proxy.ready())["http"] == 503
        async with proxy.get("/v1/models") as response:
            assert (await response.json())["data"] == []


async def test_a_conversation_stays_at_its_engine(pair: Proxy, engine: Engine, other: Engine) -> None:
    for number in range(8):
        for _ in range(5):
            async with pair.post(headers={"x-session-id": f"s{number}"}) as response:
                assert response.status == 200
    for known in (engine, other):
        sessions = [call.headers for call in known.calls]
        assert len(sessions) % 5 == 0
    assert len(engine.calls) + len(other.calls) == 40
    assert engine.calls
    assert other.calls


async def test_prompts_that_begin_alike_meet_at_one_engine(
    pair: Proxy, engine: Engine, other: Engine
) -> None:
    beginning = {"role": "system", "content": "You are a pirate. " * 100}
    for number in range(10):
        said = [beginning, {"role": "user", "content": str(number)}]
        async with pair.post(body={"messages": said}) as response:
            assert response.status == 200
    assert sorted([len(engine.calls), len(other.calls)]) == [0, 10]


@pytest.mark.complaint(12)
async def test_a_popular_beginning_makes_no_hot_spot(files: Files, engine: Engine, other: Engine) -> None:
    """sglang#14305. Unfinished requests, all with one key: one engine's excess stays within the bound."""
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = other.script = hold
    files.configure(engine, other, routing={"affinity_free_tokens": 600, "affinity_bound": 1.25})
    async with running_proxy(files) as proxy:
        headers = {"x-session-id": "everybody"}
        requests = [asyncio.create_task(proxy.post(headers=headers).__aenter__()) for _ in range(40)]
        status = await proxy.until(lambda status: sum(counts(status)) == 40)
        assert max(counts(status)) <= 26
        finish.set()
        for response in await asyncio.gather(*requests):
            response.release()


async def test_large_requests_go_to_their_pool(files: Files, engine: Engine, other: Engine) -> None:
    entries = [
        {"id": "host1:e", "url": engine.url, "models": ["big"]},
        {"id": "host2:e", "url": other.url, "models": ["big"], "pool": "long"},
    ]
    files.configure(engines=entries, routing={"pools": {"long": {"max_tokens": 1000}}})
    async with running_proxy(files) as proxy:
        for _ in range(5):
            async with proxy.post(body={"max_tokens": 10}) as response:
                assert response.status == 200
            async with proxy.post(body={"max_tokens": 1000}) as response:
                assert response.status == 200
        assert (len(engine.calls), len(other.calls)) == (5, 5)
        (files.drained / "host2:e").write_text("away")
        await proxy.until(lambda status: states(status) == ["serving", "drained"])
        async with proxy.post(body={"max_tokens": 1000}) as response:
            assert response.status == 200
    assert len(engine.calls) == 6


async def test_an_optional_engine_comes_and_goes_without_a_warning(
    files: Files, engine: Engine, other: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    await other.stop()
    files.configure(engine, other)
    entries = yaml.safe_load(files.config.read_text())
    entries["engines"][1]["optional"] = True
    files.write(files.config, entries)
    async with running_proxy(files) as proxy:
        status = await proxy.ready()
        assert (status["http"], states(status)) == (200, ["serving", "absent"])
        marker = files.drained / "host2:e"
        marker.write_text("rolling update\n")
        await proxy.until(lambda status: states(status) == ["serving", "drained"])
        await other.start()
        marker.unlink()
        await proxy.until(lambda status: states(status) == ["serving", "serving"])
        while not other.calls:
            async with proxy.post() as response:
                assert response.status == 200
        marker.write_text("rolling update\n")
        await proxy.until(lambda status: states(status) == ["serving", "drained"])
        await other.stop()
        marker.unlink()
        # Never "serving": it is put back only when it has answered again.
        assert states(await proxy.until(lambda status: states(status)[1] != "drained")) == [
            "serving",
            "absent",
        ]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text
