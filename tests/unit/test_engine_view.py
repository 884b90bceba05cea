"""How a roll takes an engine out of a proxy host and puts it back, against small servers that have the workers' health page."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_view
import pytest

ENGINE = "gpu1:a"
OPTIONS = ("--check", "--serving")


class Worker:
    """Tells one page after the other, and goes on with the last one. A page is the engine's state and requests; None: it does not know it."""

    def __init__(self, status: int, *pages: tuple[str, int] | None) -> None:
        self.pages = list(pages)
        worker = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = worker.pages.pop(0) if len(worker.pages) > 1 else worker.pages[0]
                engines: list[dict[str, Any]] = [{"id": "gpu2:b", "state": "down", "in_flight": 9}]
                if page is not None:
                    engines.append({"id": ENGINE, "state": page[0], "in_flight": page[1]})
                content = json.dumps({"engines": engines}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/health/ready"

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    workers: list[Worker] = []

    def starter(*pages: tuple[str, int] | None, status: int = 200) -> Worker:
        workers.append(Worker(status, *pages))
        return workers[-1]

    monkeypatch.setattr(engine_view, "workers", lambda address: [worker.url for worker in workers])
    monkeypatch.setattr(engine_view, "PAUSE_S", 0.01)
    yield starter
    for worker in workers:
        worker.end()


@pytest.fixture
def drained(tmp_path: Path) -> Path:
    """The directory of markers, where the engine is drained by a roll."""
    directory = tmp_path / "drained"
    directory.mkdir()
    (directory / ENGINE).write_text("rolling update; by bob\n")
    return directory


def run(capsys: pytest.CaptureFixture[str], verb: str, *words: object) -> dict[str, Any]:
    """As the role calls it: options first."""
    options = [str(word) for word in words if word in OPTIONS]
    others = [str(word) for word in words if word not in OPTIONS]
    assert engine_view.main([verb, *options, "--", ENGINE, *others]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def wait_idle(capsys: pytest.CaptureFixture[str], timeout_s: float = 60) -> dict[str, Any]:
    return run(capsys, "idle", "127.0.0.1", timeout_s)


def put_back(capsys: Any, drained: Path, *options: str, ours: str = "rolling update; ", timeout_s: float = 60) -> Any:
    return run(capsys, "back", drained, ours, "127.0.0.1", timeout_s, *options)


def test_the_time_that_requests_need_begins_when_the_engine_is_out(start: Any, capsys: Any, monkeypatch: Any) -> None:
    clock = count()
    monkeypatch.setattr(
        engine_view, "time", SimpleNamespace(monotonic=lambda: float(next(clock)), sleep=lambda s: None)
    )
    worker = start(("serving", 3), ("drained", 3), ("drained", 3), ("drained", 0), status=503)
    start(None)
    told = wait_idle(capsys)
    assert told["problems"] == []
    assert told["waited_s"] > 0
    assert worker.pages == [("drained", 0)]


def test_what_is_left_at_the_end_is_told(start: Any, capsys: Any) -> None:
    worker = start(("drained", 2))
    assert wait_idle(capsys, 0)["problems"] == [f"the worker at {worker.url} sees it as drained, 2 requests"]


def test_a_worker_that_does_not_answer_sends_nothing_but_serves_nothing_either(
    start: Any, capsys: Any, monkeypatch: Any, drained: Path
) -> None:
    url = "http://127.0.0.1:9/health/ready"
    monkeypatch.setattr(engine_view, "workers", lambda address: [url])
    assert wait_idle(capsys)["problems"] == []
    assert put_back(capsys, drained, timeout_s=0)["problems"] == [f"the worker at {url} does not answer"]


def test_an_engine_is_back_when_every_worker_that_knows_it_serves_it(start: Any, capsys: Any, drained: Path) -> None:
    worker = start(("drained", 0), ("starting", 0), ("serving", 0))
    start(None)
    start(("absent", 0))
    start(("draining", 0))
    told = put_back(capsys, drained)
    assert told == {"changed": True, "marker": "rolling update; by bob", "problems": []}
    assert worker.pages == [("serving", 0)]
    assert not list(drained.iterdir())
    # Nothing is waited for that was not taken out.
    worker.pages = [("down", 0)]
    assert put_back(capsys, drained) == {"changed": False, "problems": []}


def test_an_engine_that_has_to_serve_is_known_to_every_worker(start: Any, capsys: Any, drained: Path) -> None:
    start(("serving", 0))
    unknown, absent = start(None), start(("absent", 0))
    assert put_back(capsys, drained, "--serving", timeout_s=0)["problems"] == [
        f"the worker at {unknown.url} does not know it: run playbooks/proxy.yml first",
        f"the worker at {absent.url} sees it as absent, 0 requests",
    ]


def test_the_workers_are_those_whose_units_run(tmp_path: Any, monkeypatch: Any) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        "#!/bin/sh\necho 'proxy@9000.service loaded active running x'\necho 'proxy@9001.service loaded active running x'\n"
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert engine_view.workers("10.0.0.2") == [f"http://10.0.0.2:{port}/health/ready" for port in (9000, 9001)]
    assert engine_view.workers("fd00::2")[0] == "http://[fd00::2]:9000/health/ready"


def test_a_marker_of_somebody_else_stays_and_a_check_changes_none(start: Any, capsys: Any, drained: Path) -> None:
    start(("drained", 0))
    text = (drained / ENGINE).read_text()
    assert put_back(capsys, drained, ours="new disk") == {"changed": False, "problems": []}
    assert put_back(capsys, drained, "--check")["changed"]
    assert run(capsys, "out", drained, "new disk; by eve") == {"changed": False}
    assert (drained / ENGINE).read_text() == text
    (drained / ENGINE).unlink()
    assert run(capsys, "out", drained, "new disk; by eve", "--check") == {"changed": True}
    assert not list(drained.iterdir())
    assert run(capsys, "out", drained, "new disk; by eve") == {"changed": True}
    assert [(marker.name, marker.read_text()) for marker in drained.iterdir()] == [(ENGINE, "new disk; by eve\n")]
    assert (drained / ENGINE).stat().st_mode & 0o777 == 0o644


def test_a_marker_that_was_written_a_moment_ago_is_not_replaced(capsys: Any, drained: Path, monkeypatch: Any) -> None:
    """As if an operator's were written between the look and the link."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert run(capsys, "out", drained, "rolling update; by eve") == {"changed": False}
    assert [marker.read_text() for marker in drained.iterdir()] == ["rolling update; by bob\n"]


def test_there_is_never_a_file_beside_the_markers(capsys: Any, drained: Path, monkeypatch: Any) -> None:
    """Since each file there counts as a marker, even one that a killed run leaves."""
    (drained / ENGINE).unlink()
    link = os.link

    def killed_before(source: Path, marker: Path) -> None:
        assert not list(drained.iterdir())
        link(source, marker)

    monkeypatch.setattr(os, "link", killed_before)
    assert run(capsys, "out", drained, "--check=1; by eve") == {"changed": True}
    assert [(marker.name, marker.read_text()) for marker in drained.iterdir()] == [(ENGINE, "--check=1; by eve\n")]


def test_a_marker_that_no_roll_can_have_written_stays(capsys: Any, drained: Path) -> None:
    (drained / ENGINE).write_bytes(b"\xff\xfe")
    assert put_back(capsys, drained) == {"changed": False, "problems": []}
    (drained / ENGINE).unlink()
    (drained / ENGINE).mkdir()
    assert put_back(capsys, drained) == {"changed": False, "problems": []}
    assert run(capsys, "out", drained, "rolling update; by bob") == {"changed": False}


def test_the_engines_are_those_of_the_first_worker_that_answers(
    start: Any, capsys: Any, drained: Path, monkeypatch: Any
) -> None:
    worker = start(("serving", 3), status=503)
    monkeypatch.setattr(engine_view, "workers", lambda address: ["http://127.0.0.1:9/health/ready", worker.url])
    seen = run(capsys, "look", drained, "127.0.0.1")["engines"]
    assert {one["id"]: one["state"] for one in seen} == {"gpu2:b": "down", ENGINE: "serving"}
    monkeypatch.setattr(engine_view, "workers", lambda address: [])
    assert run(capsys, "look", drained, "127.0.0.1") == {"engines": None}


def test_a_host_without_a_proxy_says_nothing_and_has_no_marker(capsys: Any, tmp_path: Path) -> None:
    assert engine_view.main(["look", "--", ENGINE, str(tmp_path / "none"), "127.0.0.1"]) == 0
    assert capsys.readouterr().out == ""
    assert put_back(capsys, tmp_path / "none") == {"changed": False, "problems": []}
