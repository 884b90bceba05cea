"""Engines that begin answers and do not end them, requests that break engines, and engines that freeze."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from engine import COMPLETION, WAIT_S, Call, Engine, Script, complete, stream, stream_body
from expect import expect_error
from harness import KEY, SMALL_KEY, Files, Log, Proxy, running_engine, running_proxy, sha256
from inference_proxy.engines import poller

pytestmark = pytest.mark.anyio

# An engine counts as hung after 0.2 s, and idle engines are not probed meanwhile.
QUICK = {"stall_s": 0.2, "probe_after_s": 600, "probe_timeout_s": 0.2, "cool_down_s": 0.05}
KEYS = [
    {"name": name, "sha256": sha256(key), "models": []} for name, key in (("alice", KEY), ("bob", SMALL_KEY))
]


def states(status: dict[str, Any]) -> list[str]:
    return [engine["state"] for engine in status["engines"]]


async def mute(call: Call) -> None:
    await call.client_gone.wait()


async def end_early(call: Call) -> None:
    await call.start_stream()
    await call.event('{"choices":[{"delta":{"content":"x"}}]}')
    call.break_off()


async def end_unmarked(call: Call) -> None:
    await call.start_stream()
    await call.event('{"choices":[{"delta":{"content":"x"}}]}')
    await call.end_stream()


async def tell_an_error(call: Call) -> None:
    await call.start_stream()
    await call.event('{"error": {"message": "EngineCore encountered an issue.", "type": "Err", "code": 500}}')
    await call.event("[DONE]")
    await call.end_stream()


async def fail_a_response(call: Call) -> None:
    await call.start_stream()
    await call.chunk(b'event: response.created\ndata: {"type":"response.created"}\n\n')
    await call.chunk(b'event: response.failed\ndata: {"type":"response.failed"}\n\n')
    await call.end_stream()


async def fail_a_message(call: Call) -> None:
    await call.start_stream()
    await call.chunk(b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n')
    await call.end_stream()


async def be_too_short(call: Call) -> None:
    await call.head(200, "content-type: application/json", "content-length: 500")
    await call.write(b'{"id":')
    call.break_off()


async def cut_a_chunked_answer(call: Call) -> None:
    await call.head(200, "content-type: application/json", "transfer-encoding: chunked")
    await call.chunk(b'{"id":')
    call.break_off()


async def end_in_the_middle_of_json(call: Call) -> None:
    await call.answer(200, b'{"id":"c-1","choices":[{"message":{"content":"hello"}')


async def end_in_the_middle_of_json_in_chunks(call: Call) -> None:
    await call.head(200, "content-type: application/json", "transfer-encoding: chunked")
    await call.chunk(b'{"id":"c-1","choices":[{"message":')
    await call.chunk(b'{"content":"hello')
    await call.end_stream()


async def say_nothing_in_200(call: Call) -> None:
    await call.answer(200, b"")


async def answer_an_error(call: Call) -> None:
    await call.answer(200, {"error": {"message": "EngineCore encountered an issue.", "code": 500}})


async def respond(call: Call) -> None:
    await call.start_stream()
    await call.chunk(b'event: response.completed\ndata: {"type":"response.completed"}\n\n')
    await call.end_stream()


async def send_a_message(call: Call) -> None:
    await call.start_stream()
    await call.chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    await call.end_stream()


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


async def answer(call: Call) -> None:
    """A stream if the request asks for one, in chat's dialect."""
    await (stream if b'"stream": true' in call.body else complete)(call)


async def ask(proxy: Proxy, path: str = CHAT, key: str = KEY, **body: Any) -> str:
    """What the client sees: `fine`, an error's code, or `broken` if the answer has no proper end."""
    try:
        async with proxy.post(path, body=body, key=key) as response:
            text = await response.text()
    except aiohttp.ClientPayloadError:
        return "broken"
    return "error" if '"error"' in text or "failed" in text else "fine"


async def until_ejected(proxy: Proxy, path: str = CHAT, **body: Any) -> None:
    """Send requests until the second engine is ejected.

    (The first may not be: it alone has one of its models.)
    """
    async with asyncio.timeout(WAIT_S):
        while states(await proxy.ready()) != ["serving", "ejected"]:
            await asyncio.gather(*(ask(proxy, path, **body) for _ in range(4)))


# An engine that breaks its answers.


@pytest.mark.parametrize(
    ("bad", "streams", "path", "fine"),
    [
        (end_early, True, CHAT, stream),
        (end_unmarked, True, CHAT, stream),
        (tell_an_error, True, CHAT, stream),
        (fail_a_response, True, RESPONSES, respond),
        (fail_a_message, True, MESSAGES, send_a_message),
        (be_too_short, False, CHAT, complete),
        (cut_a_chunked_answer, False, CHAT, complete),
        (end_in_the_middle_of_json, False, CHAT, complete),
        (end_in_the_middle_of_json_in_chunks, False, CHAT, complete),
        (say_nothing_in_200, False, CHAT, complete),
        (answer_an_error, False, CHAT, complete),
    ],
)
async def test_an_engine_that_ends_no_answer_is_ejected_though_probes_go_well(
    pair: Proxy, engine: Engine, other: Engine, bad: Script, streams: bool, path: str, fine: Script
) -> None:
    engine.script, other.script = fine, bad
    await until_ejected(pair, path, stream=streams)
    assert len(other.calls) <= 5 + 4 + 4, "the failures that eject it, and what was under way by then"
    before = len(other.calls)
    assert {await ask(pair, path, stream=streams) for _ in range(10)} == {"fine"}
    assert len(other.calls) == before


async def test_an_engine_that_breaks_half_of_its_answers_is_ejected(
    pair: Proxy, engine: Engine, other: Engine
) -> None:
    async def sometimes(call: Call) -> None:
        await (stream if len(other.calls) % 2 else end_early)(call)

    engine.script, other.script = stream, sometimes
    await until_ejected(pair, stream=True)


async def test_json_cut_off_before_the_client_saw_it_is_asked_for_elsewhere(
    pair: Proxy, engine: Engine, other: Engine
) -> None:
    engine.script = end_in_the_middle_of_json
    while not engine.calls:
        assert await ask(pair) == "fine"


async def test_json_is_missed_wherever_it_is_cut_off(files: Files, engine: Engine) -> None:
    body = json.dumps(COMPLETION).encode()

    async def cut(call: Call) -> None:
        await call.answer(200, body[: len(engine.calls) - 1])

    engine.script = cut
    files.configure(engine, retries={"attempts": 1})
    async with running_proxy(files) as proxy:
        for _ in range(len(body)):
            async with proxy.post() as response:
                await expect_error(response, 502, "engine_unreachable")
        assert await ask(proxy) == "fine"


@pytest.mark.parametrize(
    "answer",
    [{"choices": [{"message": {"content": "}}}"}}]}, {"usage": float("nan"), "text": "{"}, "{ is plain"],
)
async def test_braces_that_a_model_wrote_cut_nothing_off(proxy: Proxy, engine: Engine, answer: Any) -> None:
    async def write(call: Call) -> None:
        if isinstance(answer, str):
            await call.head(200, "content-type: text/plain", f"content-length: {len(answer)}")
            return await call.write(answer.encode())
        await call.answer(200, answer)

    engine.script = write
    async with proxy.post() as response:
        assert response.status == 200
        assert await response.text() == (
            answer if isinstance(answer, str) else json.dumps(answer, separators=(",", ":"))
        )


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (('{"a":"x', '"}', "\n"), True),
        (("[", "1,2", "]"), True),
        (('"x', 'y"'), True),
        (("12", "3"), True),
        (('{"a":"x', '"'), False),
        (('{"a":[1', "]"), False),
        (("[{", "}"), False),
        (('"x', "y"), False),
    ],
)
async def test_json_in_parts_is_whole_where_it_ends_as_it_began(
    proxy: Proxy, engine: Engine, parts: tuple[str, ...], whole: bool
) -> None:
    read = asyncio.Event()

    async def write(call: Call) -> None:
        await call.head(200, "content-type: application/json", "transfer-encoding: chunked")
        for part in parts:
            await call.chunk(part.encode())
            await read.wait()
        await call.end_stream()

    engine.script = write
    async with proxy.post() as response:
        assert await response.content.readany() == parts[0].encode()
        read.set()
        if whole:
            assert (await response.read()).decode() == "".join(parts[1:])
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"error":{"message":"x","code":500}}', "engine_error"),
        (b' { "error" : "x"}', "engine_error"),
        (b'{"object":"error","message":"x","code":400}', "engine_refused"),
        (b'{"type":"error","error":{"type":"invalid_request_error"}}', "engine_refused"),
        (b'{"error":null,"output":[]}', "ok"),
        (b'{"x":{"error":{}}}', "ok"),
    ],
)
async def test_an_error_in_a_200_is_one_in_the_log(
    proxy: Proxy, engine: Engine, log: Log, body: bytes, outcome: str
) -> None:
    async def tell(call: Call) -> None:
        await call.answer(200, body)

    engine.script = tell
    async with proxy.post() as response:
        assert await response.read() == body
    assert (await log.last_request())["outcome"] == outcome


@pytest.mark.parametrize(
    ("path", "event"),
    [
        (CHAT, 'data: { "error": {"code": 500}}\r\n\r\ndata: [DONE]\r\n\r\n'),
        (RESPONSES, "event:response.failed\r\ndata: {}\r\n\r\n"),
        (MESSAGES, "event: error\r\ndata: {}\r\n\r\n"),
    ],
)
async def test_an_error_event_is_one_however_its_lines_end(
    proxy: Proxy, engine: Engine, log: Log, path: str, event: str
) -> None:
    async def tell(call: Call) -> None:
        await call.start_stream()
        await call.chunk(event.encode())
        await call.end_stream()

    engine.script = tell
    async with proxy.post(path, body={"stream": True}) as response:
        assert await response.text() == event
    assert (await log.last_request())["outcome"] == "engine_error"


async def test_a_stream_that_tells_of_an_error_is_no_success_in_the_log(
    proxy: Proxy, engine: Engine, log: Log
) -> None:
    engine.script = tell_an_error
    async with proxy.post(body={"stream": True}) as response:
        assert (await response.text()).endswith("data: [DONE]\n\n")
    assert (await log.last_request())["outcome"] == "engine_error"


async def test_a_stream_that_is_refused_in_its_middle_is_no_failure_of_the_engine(
    files: Files, engine: Engine, log: Log
) -> None:
    async def refuse(call: Call) -> None:
        await call.start_stream()
        await call.event('{"error": {"message": "no", "type": "BadRequestError", "code": 400}}')
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = refuse
    files.configure(engine, health={"failures": 1, "max_ejected_share": 1})
    async with running_proxy(files) as proxy:
        for _ in range(5):
            assert await ask(proxy, stream=True) == "error"
        assert states(await proxy.ready()) == ["serving"]
    assert engine.probed.empty()
    assert (await log.last_request())["outcome"] == "engine_refused"


async def test_a_model_cannot_write_an_error_event(proxy: Proxy, engine: Engine, log: Log) -> None:
    async def quote(call: Call) -> None:
        await call.start_stream()
        await call.event(
            json.dumps({"choices": [{"delta": {"content": '\n\ndata: {"error": {"code": 500}}'}}]})
        )
        await stream_body(call)

    engine.script = quote
    async with proxy.post(body={"stream": True}) as response:
        await response.read()
    assert (await log.last_request())["outcome"] == "ok"


async def test_clients_that_leave_are_no_failures_of_an_engine(
    files: Files, engine: Engine, other: Engine
) -> None:
    async def begin(call: Call) -> None:
        await call.start_stream()
        await call.event('{"choices":[]}')
        await call.client_gone.wait()

    engine.script = other.script = begin
    files.configure(engine, other, admin=files.admin(), health={"failures": 1, "max_ejected_share": 1})
    async with running_proxy(files) as proxy:
        for _ in range(10):
            async with proxy.post(body={"stream": True}) as response:
                await response.content.readany()
                response.close()
        await proxy.idle()
        engines = (await proxy.admin.get("/admin/engines"))["engines"]
        assert [(engine["state"], engine["failures"]) for engine in engines] == [("serving", 0)] * 2


# Requests that are at fault.


def configure_equals(files: Files, *engines: Engine, **settings: Any) -> None:
    """All have the same model, so that any of them may be ejected."""
    entries = [
        {"id": f"host{number}:e", "url": engine.url, "models": ["big"]}
        for number, engine in enumerate(engines, 1)
    ]
    files.configure(*engines, engines=entries, **settings)


async def refuse_schema(call: Call) -> None:
    """vLLM answers 500 to some schemas, or, in a stream, sends the error in a 200."""
    if b"not-a-type" not in call.body:
        await complete(call)
    elif b'"stream": true' in call.body:
        await tell_an_error(call)
    else:
        await call.answer(500, {"error": {"message": "", "type": "InternalServerError", "code": 500}})


@pytest.mark.parametrize("streams", [False, True])
async def test_one_clients_bad_requests_eject_no_engine(
    files: Files, engine: Engine, other: Engine, streams: bool
) -> None:
    engine.script = other.script = refuse_schema
    files.write(files.keys, KEYS)
    configure_equals(files, engine, other)
    async with running_proxy(files) as proxy:
        for _ in range(40):
            assert await ask(proxy, stream=streams, schema="not-a-type") == "error"
            assert states(await proxy.ready()) == ["serving", "serving"]
        async with asyncio.timeout(WAIT_S):
            await engine.probed.get()
            await other.probed.get()
        await proxy.until(lambda status: states(status) == ["serving", "serving"])
        assert await ask(proxy, key=SMALL_KEY) == "fine"


async def test_one_clients_bad_requests_of_one_session_eject_no_engine(
    files: Files, engine: Engine, other: Engine
) -> None:
    """Affinity would keep them at one engine, which would then see all the failures."""
    engine.script = other.script = refuse_schema
    configure_equals(files, engine, other)
    async with running_proxy(files) as proxy:
        for _ in range(40):
            await ask(proxy, stream=True, schema="not-a-type", user="session")
        assert states(await proxy.ready()) == ["serving", "serving"]


async def test_an_engine_that_answers_500_and_fails_its_probe_is_ejected(
    files: Files, engine: Engine, other: Engine
) -> None:
    async def err(call: Call) -> None:
        await call.answer(500, {"error": {"message": "EngineDeadError"}})

    engine.script = engine.prober = err
    files.configure(engine, other, health={"probe_after_s": 600})
    async with running_proxy(files) as proxy:
        while not engine.calls:
            await ask(proxy)
        await proxy.until(lambda status: states(status) == ["ejected", "serving"])


async def test_one_request_breaks_two_engines_at_most(files: Files, engine: Engine, other: Engine) -> None:
    """Whatever the retries and fallbacks; and its answer tells clients' libraries not to send it again."""

    async def break_off(call: Call) -> None:
        call.break_off()

    async with running_engine("big") as third, running_engine("spare") as spare:
        engines = engine, other, third, spare
        for each in engines:
            each.script = break_off
        files.configure(
            *engines,
            models=[{"name": "big", "fallback": "spare"}],
            retries={"attempts": 10, "backoff_s": 0},
        )
        async with running_proxy(files) as proxy, proxy.post() as response:
            await expect_error(response, 502, "engine_unreachable")
            assert response.headers["x-should-retry"] == "false"
        assert sum(len(each.calls) for each in engines) == 2


# Engines that are frozen.


def freeze(engine: Engine, files: Files, *others: Engine) -> None:
    """As if SIGSTOP had stopped its core while idle: it answers the poller, but its gauges stand still."""
    engine.script = engine.prober = mute
    engine.gauges = {"num_requests_running": 0, "iteration_tokens_total_sum": 77}
    files.configure(engine, *others, health=QUICK)


async def test_requests_at_an_engine_that_froze_while_idle_are_answered_by_another(
    files: Files, engine: Engine, other: Engine
) -> None:
    other.script = answer
    freeze(engine, files, other)
    async with running_proxy(files) as proxy:
        async with asyncio.timeout(WAIT_S):
            while not engine.calls:
                await asyncio.gather(*(ask(proxy, stream=True) for _ in range(2)))
        answers = await asyncio.gather(*(ask(proxy) for _ in range(4)))
        assert states(await proxy.ready()) == ["ejected", "serving"]
    assert answers == ["fine"] * 4


async def test_clients_of_an_only_engine_that_froze_are_told(files: Files, engine: Engine) -> None:
    freeze(engine, files)
    async with running_proxy(files) as proxy, proxy.post() as response:
        await expect_error(response, 502, "engine_hung")


async def test_an_engine_that_still_counts_tokens_is_frozen_all_the_same(
    files: Files, engine: Engine
) -> None:
    """Its server does that by itself."""

    async def count(call: Call) -> None:
        await (complete if call.path == "/tokenize" else mute)(call)

    freeze(engine, files)
    engine.script = count
    async with running_proxy(files) as proxy:
        waiting = asyncio.create_task(proxy.post().__aenter__())
        async with asyncio.timeout(WAIT_S):
            while not waiting.done():
                await ask(proxy, "/tokenize")
        await expect_error(await waiting, 502, "engine_hung")


async def test_a_stream_that_has_begun_at_an_engine_that_froze_ends_with_an_error_event(
    files: Files, engine: Engine
) -> None:
    async def begin(call: Call) -> None:
        await call.start_stream()
        await call.event('{"choices":[{"delta":{"content":"x"}}]}')
        await call.client_gone.wait()

    freeze(engine, files)
    engine.script = begin
    async with running_proxy(files) as proxy, proxy.post(body={"stream": True}) as response:
        assert '"code":"engine_hung"' in await response.text()


async def test_clients_of_a_frozen_engine_are_told_though_it_is_drained(files: Files, engine: Engine) -> None:
    freeze(engine, files)
    async with running_proxy(files) as proxy:
        waiting = asyncio.create_task(proxy.post().__aenter__())
        await engine.next_call()
        (files.drained / "host1:e").touch()
        async with await waiting as response:
            await expect_error(response, 502, "engine_hung")


async def test_clients_of_a_frozen_engine_are_told_though_it_is_no_longer_configured(
    files: Files, engine: Engine, other: Engine
) -> None:
    freeze(engine, files)
    async with running_proxy(files) as proxy:
        waiting = asyncio.create_task(proxy.post().__aenter__())
        await engine.next_call()
        files.configure(other, health=QUICK)
        async with await waiting as response:
            assert response.status == 200, "the new one has answered"


async def test_clients_of_an_engine_whose_host_has_vanished_are_told(
    files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are not reset, and it answers no poll either."""

    async def silence(call: Call) -> None:
        await call.reader.read(1)

    freeze(engine, files)
    async with running_proxy(files) as proxy:
        waiting = asyncio.create_task(proxy.post().__aenter__())
        await engine.next_call()
        engine.models = silence
        # Not before: on a busy machine the engine would be unreachable when the request comes.
        monkeypatch.setattr(poller, "_TIMEOUT_S", 0.05)
        async with await waiting as response:
            await expect_error(response, 502, "engine_hung")


async def test_clients_of_a_frozen_engine_are_told_though_it_was_ejected_before(
    files: Files, engine: Engine, other: Engine
) -> None:
    """Because of failures of other requests, and for longer than any client would wait."""

    async def hang_or_break(call: Call) -> None:
        await (end_early if b'"stream": true' in call.body else mute)(call)

    engine.script, other.script, other.prober = answer, hang_or_break, mute
    files.configure(engine, other, health=QUICK | {"stall_s": 1, "cool_down_s": 600})
    async with running_proxy(files) as proxy:
        waiting = []
        while not other.calls:
            waiting.append(asyncio.create_task(ask(proxy)))
            await asyncio.sleep(0.01)
        await until_ejected(proxy, stream=True)
        assert set(await asyncio.gather(*waiting)) == {"fine"}
        assert states(await proxy.ready()) == ["serving", "ejected"]


async def test_a_frozen_engine_whose_queue_is_full_is_no_busy_one(files: Files, engine: Engine) -> None:
    async def full(call: Call) -> None:
        await call.answer(503, {"error": {"message": "full"}})

    freeze(engine, files)
    engine.prober = full
    async with running_proxy(files) as proxy, proxy.post() as response:
        await expect_error(response, 502, "engine_hung")


async def test_a_long_answer_is_awaited_from_an_engine_that_answers_probes(
    files: Files, engine: Engine
) -> None:
    """It reports no gauges, and nothing of the answer comes before it is complete."""

    async def long(call: Call) -> None:
        for _ in range(3):
            await asyncio.wait_for(engine.probed.get(), WAIT_S)
        await complete(call)

    engine.script = long
    files.configure(engine, health=QUICK)
    async with running_proxy(files) as proxy:
        assert await ask(proxy) == "fine"
        assert states(await proxy.ready()) == ["serving"]


async def test_a_long_answer_is_awaited_from_an_engine_that_gives_others_their_tokens(
    files: Files, engine: Engine
) -> None:
    """Its queue is so long that no probe is answered in time."""
    scrapes: asyncio.Queue[None] = asyncio.Queue()
    done = asyncio.Event()

    async def metrics(call: Call) -> None:
        scrapes.put_nowait(None)
        await call.answer(404, {"detail": "Not Found"})

    async def script(call: Call) -> None:
        if b'"stream": true' not in call.body:
            await done.wait()
            return await complete(call)
        await call.start_stream()
        for _ in range(30):
            await asyncio.wait_for(scrapes.get(), WAIT_S)
            await call.event('{"choices":[{"delta":{"content":"x"}}]}')
        done.set()
        await stream_body(call)

    engine.metrics, engine.script, engine.prober = metrics, script, mute
    files.configure(engine, health=QUICK)
    async with running_proxy(files) as proxy:
        assert await asyncio.gather(ask(proxy, stream=True), ask(proxy)) == ["fine", "fine"]
        assert states(await proxy.ready()) == ["serving"]


# An engine that leaves the configuration.


async def test_a_request_does_not_go_back_to_an_engine_that_is_no_longer_configured(
    files: Files, engine: Engine
) -> None:
    broken = asyncio.Event()

    async def break_off(call: Call) -> None:
        await broken.wait()
        call.break_off()

    engine.script = break_off
    async with running_engine("wide") as other:
        files.configure(engine)
        async with running_proxy(files) as proxy:
            waiting = asyncio.create_task(proxy.post().__aenter__())
            await engine.next_call()
            files.configure(other)
            await proxy.until(lambda status: status["engines"][0]["models"] == ["wide"])
            broken.set()
            async with await waiting as response:
                await expect_error(response, 502, "engine_unreachable")
    assert len(engine.calls) == 1


async def test_after_its_last_event_a_stream_has_nothing_to_lose(proxy: Proxy, engine: Engine) -> None:
    async def break_after_the_end(call: Call) -> None:
        await call.start_stream()
        await call.event('{"choices":[{"delta":{"content":"x"}}]}')
        await call.event("[DONE]")
        call.break_off()

    engine.script = break_after_the_end
    async with proxy.post(body={"stream": True}) as response:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
