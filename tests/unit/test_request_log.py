"""The log of requests that an engine imports."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from stack_request_log import Message, Receive, RequestLog, Send

START = {"type": "http.response.start", "status": 200, "headers": []}


async def answer(scope: Message, receive: Receive, send: Send) -> None:
    """Two pieces, the second of which is the last."""
    await send(START)
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    await send({"type": "http.response.body", "body": b"b"})


async def part_of_an_answer(scope: Message, receive: Receive, send: Send) -> None:
    """What is left when the client has gone: no last piece."""
    await send(START)
    await send({"type": "http.response.body", "body": b"a", "more_body": True})


async def failure(scope: Message, receive: Receive, send: Send) -> None:
    raise RuntimeError("schema of a client")


def lines_of(
    app: Any, caplog: pytest.LogCaptureFixture, headers: list[tuple[bytes, bytes]], path: str = "/v1/completions"
) -> list[str]:
    """What is logged of one request, and that all of its answer goes on."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"the client's words"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"q=words",
        "headers": headers,
    }
    with caplog.at_level(logging.INFO):
        try:
            asyncio.run(RequestLog(app)(scope, receive, send))
        except RuntimeError:
            assert app is failure
    assert len(sent) == {answer: 3, part_of_an_answer: 2, failure: 0}[app]
    return [record.getMessage().rsplit(" ", 2)[0] for record in caplog.records]


ID = [(b"host", b"engine"), (b"x-request-id", b"id-1")]


@pytest.mark.parametrize(
    ("app", "end"),
    [
        (answer, "request id-1: 200 after"),
        (part_of_an_answer, "request id-1: 200 broken off after"),
        (failure, "request id-1: no status broken off after"),
    ],
)
def test_a_request_has_two_lines(caplog: pytest.LogCaptureFixture, app: Any, end: str) -> None:
    begin, last = lines_of(app, caplog, ID)
    assert begin.startswith("request id-1:")
    assert last == end
    assert "words" not in caplog.text
    assert "schema" not in caplog.text


def test_probes_and_scrapes_have_no_id_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(answer, caplog, [(b"host", b"engine")]) == []


def test_a_path_cannot_begin_another_line(caplog: pytest.LogCaptureFixture) -> None:
    begin, _ = lines_of(answer, caplog, ID, path="/v1/models\nrequest forged: 200")
    assert "\n" not in begin


def test_an_id_cannot_move_a_terminals_cursor(caplog: pytest.LogCaptureFixture) -> None:
    assert r"request a\x1b[2Jb: 200 after" in lines_of(answer, caplog, [(b"x-request-id", b"a\x1b[2Jb")])
