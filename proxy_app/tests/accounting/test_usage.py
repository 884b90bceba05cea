"""Usage by key and day: counted, stored, read; and what the access log says about content."""

import asyncio
import json
import sqlite3
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import WAIT_S, Call, Engine
from harness import SMALL_KEY, Files, Log, running_proxy
from inference_proxy import cli
from inference_proxy.accounting import usage_store
from inference_proxy.accounting.exchange import Exchange
from inference_proxy.accounting.usage_store import UsageStore, Used, read_usage
from jobs import a_settings

pytestmark = pytest.mark.anyio

DAY = date(2026, 11, 23)


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_store, "today", lambda: DAY)


def used(key: str = "k", model: str = "m", **counts: int) -> Used:
    return Used("", key, "o", model, **({"requests": 1} | counts))


def store(directory: Path, worker: str = "9000", days: int = 400) -> UsageStore:
    made = UsageStore(worker)
    made.reconfigure(a_settings({}, usage={"directory": directory, "retention_days": days}))
    return made


async def test_requests_are_counted_and_outlive_the_worker(files: Files, engine: Engine) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(400, {"error": {"message": "no"}})

    files.configure(engine, admin=files.admin(), usage={"directory": str(files.usage)})
    expected = [
        {"day": "2026-11-23", "key": "alice", "owner": "alice", "model": "big", "requests": 2, "errors": 1,
         "prompt_tokens": 3, "completion_tokens": 5},
        {"day": "2026-11-23", "key": "bob", "owner": "bob", "model": "small", "requests": 1, "errors": 0,
         "prompt_tokens": 3, "completion_tokens": 5},
    ]  # fmt: skip
    async with running_proxy(files) as proxy:
        async with proxy.post() as response:
            assert response.status == 200
        async with proxy.post(body={"model": "small"}, key=SMALL_KEY) as response:
            assert response.status == 200
        async with proxy.post(key="not a key of ours") as response:
            assert response.status == 401
        engine.script = refuse
        async with proxy.post() as response:
            assert response.status == 400
        await proxy.idle()
        today = "since=2026-11-23&until=2026-11-23"
        assert (await proxy.admin.get(f"/admin/usage?{today}"))["usage"] == expected
        assert (await proxy.admin.get(f"/admin/usage?{today}&key=bob"))["usage"] == expected[1:]
        assert (await proxy.admin.get("/admin/usage?until=2026-11-22"))["usage"] == []
    files.configure(engine, admin=files.admin(), usage={"directory": str(files.usage)})
    async with running_proxy(files) as proxy:
        async with proxy.post() as response:
            assert response.status == 400
        await proxy.idle()
        assert (await proxy.admin.get(f"/admin/usage?{today}"))["usage"][0]["requests"] == 3


async def test_an_answer_that_was_cut_off_counts_as_far_as_it_came(files: Files, engine: Engine) -> None:
    async def four_events(call: Call) -> None:
        await call.start_stream()
        for _ in range(4):
            await call.event(json.dumps({"choices": [{"delta": {"content": "x"}}]}))
        await call.client_gone.wait()

    engine.script = four_events
    files.configure(engine, admin=files.admin(), usage={"directory": str(files.usage)})
    async with running_proxy(files) as proxy:
        async with proxy.post(body={"stream": True, "messages": "x" * 40}) as response:
            for _ in range(4):
                await response.content.readuntil(b"\n\n")
        await proxy.idle()
        (row,) = (await proxy.admin.get("/admin/usage?until=2026-11-23"))["usage"]
    assert (row["errors"], row["prompt_tokens"], row["completion_tokens"]) == (0, 10, 4)


async def test_an_orderly_end_writes_the_rest(tmp_path: Path) -> None:
    books = store(tmp_path)
    books.start()
    books.add(used(prompt_tokens=2))
    books.add(used(prompt_tokens=3, errors=1))
    await books.close()
    assert read_usage(tmp_path, DAY, DAY) == [Used("2026-11-23", "k", "o", "m", 2, 1, 5, 0)]


async def test_workers_of_a_host_add_up(tmp_path: Path) -> None:
    for worker in ("9000", "9001"):
        books = store(tmp_path, worker)
        for _ in range(2):
            books.add(used(completion_tokens=4))
            await books.flush()
    assert [(row.requests, row.completion_tokens) for row in read_usage(tmp_path, DAY, DAY)] == [(4, 16)]


async def test_what_cannot_be_written_is_kept(tmp_path: Path, log: Log) -> None:
    books = store(tmp_path / "missing")
    for _ in range(3):
        books.add(used())
        await books.flush()
    (tmp_path / "missing").mkdir()
    await books.flush()
    assert [row.requests for row in read_usage(tmp_path / "missing", DAY, DAY)] == [3]
    assert len([line for line in log.lines("log") if "cannot be written" in line["message"]]) == 1


async def test_a_reader_does_not_lose_a_writers_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_store, "_BUSY_S", 0.01)
    books = store(tmp_path)
    books.add(used())
    await books.flush()
    reader = sqlite3.connect(tmp_path / "usage-9000.sqlite", isolation_level=None)
    reader.execute("begin exclusive")
    books.add(used())
    await books.flush()
    reader.execute("rollback")
    reader.close()
    await books.flush()
    assert [row.requests for row in read_usage(tmp_path, DAY, DAY)] == [2]


async def test_days_are_kept_apart_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = store(tmp_path, days=2)
    for number in range(5):
        monkeypatch.setattr(usage_store, "today", lambda day=DAY + timedelta(days=number): day)
        books.add(used())
        await books.flush()
    days = [row.day for row in read_usage(tmp_path, DAY, DAY + timedelta(days=9))]
    assert days == ["2026-11-25", "2026-11-26", "2026-11-27"]


async def test_nothing_is_counted_without_a_directory(tmp_path: Path) -> None:
    books = UsageStore("9000")
    books.add(used())
    await books.flush()
    books.reconfigure(a_settings({}, usage={"directory": tmp_path}))
    await books.flush()
    assert list(tmp_path.iterdir()) == []


async def test_the_command(files: Files, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    files.configure(engine, usage={"directory": str(files.usage)})
    books = store(files.usage)
    books.add(used("alice"))
    books.add(used("bob", prompt_tokens=9))
    await books.flush()
    command = ["usage", "--config", str(files.config), "--since", "2026-11-01", "--until", "2026-11-30"]
    assert cli.main(command) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split("\t")[:4] == ["day", "key", "owner", "model"]
    assert [row.split("\t")[1] for row in rows] == ["alice", "bob"]
    assert cli.main([*command, "--key", "bob", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [(row["key"], row["prompt_tokens"]) for row in found] == [("bob", 9)]

    files.configure(engine)
    assert cli.main(command) == 2
    assert "usage: missing" in capsys.readouterr().err


async def test_a_file_that_is_no_database_is_named(
    files: Files, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    files.configure(engine, usage={"directory": str(files.usage)})
    (files.usage / "usage-9000.sqlite").write_text("no database" * 100)
    assert cli.main(["usage", "--config", str(files.config)]) == 1
    assert str(files.usage) in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [False, True])
async def test_content_is_logged_only_where_it_is_asked_for(
    files: Files, engine: Engine, log: Log, wanted: bool
) -> None:
    async def stream(call: Call) -> None:
        await call.start_stream()
        for word in ("its", "secret", "and", "many", "more", "words", "than", "are", "kept"):
            await call.event(json.dumps({"choices": [{"delta": {"content": word}}]}))
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = stream
    files.configure(engine, log_content=wanted)
    async with running_proxy(files) as proxy:
        async with proxy.post(body={"stream": True, "messages": "my secret"}) as response:
            await response.read()
        line = await asyncio.wait_for(log.last_request(), WAIT_S)
    assert ("my secret" in line.get("prompt", "")) == wanted
    assert ("secret" in line.get("completion", "")) == wanted
    assert ("secret" in log.text) == wanted


def test_what_is_kept_to_be_logged_is_bounded() -> None:
    exchange = Exchange("id", "POST", "/v1/chat/completions")
    exchange.log_content(b"prompt")
    piece = b"data: " + b"x" * 20_000 + b"\n\n"
    for number in range(500):
        exchange.note_chunk(piece + b"%d" % number)
    kept = b"".join(exchange.tail)
    assert kept.endswith(b"499")
    assert 32 * 1024 <= len(kept) < 32 * 1024 + len(piece) + 3
