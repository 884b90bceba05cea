"""The watchdog, with an engine that is a few numbers and a clock that the tests move."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import engine_probe
import engine_watchdog
import pytest

TIMEOUT_S, START_TIMEOUT_S = 60, 600
TOKENS = engine_probe.tokens


class Host:
    """One engine: `run` is what systemd says (None when it is not up), `answers` whether it generates when asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.now_s, self.run, self.tokens, self.answers, self.listens = 1000.0, "run 1", 0.0, True, True
        self.killed: list[float] = []
        self.processes = ["vllm", "VLLM::EngineCor"]
        self.asked: list[float] = []
        host = self

        class Thread:
            """A question that is answered at once, or never."""

            def __init__(self, target, args, daemon) -> None:
                self.target, self.args = target, args

            def start(self) -> None:
                host.asked.append(host.now_s)
                if host.answers:
                    self.target(*self.args)

            def is_alive(self) -> bool:
                return False

        (directory / "vllm-x").mkdir()
        probe = {"url": "http://engine", "model": "m", "probe": "completions", "start_timeout_s": START_TIMEOUT_S}
        (directory / "vllm-x" / "probe.json").write_text(json.dumps(probe))
        (directory / "vllm-half-started").mkdir()
        monkeypatch.setattr(engine_watchdog, "RUN", directory)
        monkeypatch.setattr(engine_probe, "RUN", directory)
        monkeypatch.setattr(engine_watchdog, "running", lambda name: self.run)
        monkeypatch.setattr(engine_watchdog, "listens", lambda engine: self.listens)
        monkeypatch.setattr(engine_watchdog, "kill", lambda name: self.killed.append(self.now_s))
        monkeypatch.setattr(engine_watchdog.engine_stacks, "names", lambda unit: self.processes)
        monkeypatch.setattr(engine_watchdog.engine_stacks, "dump", lambda unit: iter([f"stacks, {self.killed}"]))
        monkeypatch.setattr(engine_watchdog.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(engine_watchdog.threading, "Thread", Thread)
        monkeypatch.setattr(engine_probe, "tokens", lambda engine: self.tokens)
        monkeypatch.setattr(engine_probe, "request", lambda *_, **__: '{"usage": {"completion_tokens": 1}}')
        self.watchdog = engine_watchdog.Watchdog(TIMEOUT_S)

    def watch(self, seconds: float, *, tokens_per_look: float = 0) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.watchdog.look()
            self.now_s += engine_watchdog.LOOK_EVERY_S
            self.tokens += tokens_per_look


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    return Host(monkeypatch, tmp_path)


def test_an_engine_that_answers_lives(host: Host) -> None:
    host.watch(1000)
    assert host.killed == []


def test_a_frozen_engine_is_killed_once_in_time_and_says_so(host: Host, capsys) -> None:
    host.watch(30)
    frozen_s = host.now_s
    host.answers = False
    host.watch(TIMEOUT_S + 20)
    assert len(host.killed) == 1
    assert host.killed[0] - frozen_s <= TIMEOUT_S + engine_watchdog.LOOK_EVERY_S
    said = capsys.readouterr().out
    assert "vllm@x.service hangs: no answer and no token for" in said
    assert "vllm@x.service: stacks, []" in said, "they are written before it is killed"


def test_an_engine_that_says_that_nothing_runs_is_killed_as_well(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in vllm#46811: health and metrics are answered, and say that no request runs, but none ever ends."""
    host.watch(30)
    monkeypatch.setattr(engine_probe, "tokens", TOKENS)

    def request(url: str, body: bytes | None = None, **_: object) -> str:
        if body is not None:
            raise TimeoutError
        return "" if url.endswith("/health") else "vllm:num_requests_running 0\nvllm:iteration_tokens_total_sum 7.0\n"

    monkeypatch.setattr(engine_probe, "request", request)
    host.watch(TIMEOUT_S + 20)
    assert len(host.killed) == 1


def test_a_busy_engine_that_answers_nothing_lives_while_it_generates(host: Host) -> None:
    host.watch(30)
    host.answers = False
    host.watch(1000, tokens_per_look=1)
    assert host.killed == []
    host.watch(TIMEOUT_S + 20)
    assert len(host.killed) == 1


def test_an_engine_that_freezes_before_its_first_token_is_killed_as_well(host: Host) -> None:
    host.answers = host.listens = False
    host.watch(120)
    host.listens = True
    host.watch(engine_watchdog.FIRST_TOKEN_S - 10)
    assert host.killed == []
    host.watch(20)
    assert len(host.killed) == 1


def test_a_start_has_its_own_time(host: Host) -> None:
    host.answers = host.listens = False
    host.watch(START_TIMEOUT_S - 10)
    assert host.killed == []
    host.watch(30)
    assert len(host.killed) == 1


def test_an_engine_that_compiles_has_the_time_of_a_start(host: Host) -> None:
    """Seen: a C++ compiler on a loaded machine took more than half a minute for the first log probabilities."""
    host.watch(30)
    host.answers = False
    host.processes = ["vllm", "VLLM::EngineCor", "g++", "cc1plus"]
    host.watch(START_TIMEOUT_S - 30)
    assert host.killed == []
    host.processes = ["vllm", "VLLM::EngineCor"]
    host.watch(10)
    assert len(host.killed) == 1


def test_an_engine_whose_features_a_roll_tries_has_the_time_of_a_start(host: Host) -> None:
    """Seen: torch's own preparation for the first log probabilities took a minute on a busy machine, before any compiler ran."""
    host.watch(30)
    host.answers = False
    with engine_probe.trying_features("x"):
        host.watch(TIMEOUT_S * 3)
        assert host.killed == []
    host.watch(20)
    assert len(host.killed) == 1, "the time is over with the trial"


def test_a_compiler_that_never_ends_keeps_no_engine(host: Host) -> None:
    host.watch(30)
    host.answers, host.processes = False, ["cc1plus"]
    host.watch(START_TIMEOUT_S + 30)
    assert len(host.killed) == 1


def test_a_restart_begins_anew(host: Host) -> None:
    host.watch(30)
    host.run, host.answers, host.listens = "run 2", False, False
    host.watch(START_TIMEOUT_S - 10)
    assert host.killed == []


def test_what_is_stopped_is_left_alone(host: Host) -> None:
    host.watch(30)
    host.run, host.answers = None, False
    host.watch(2000)
    assert host.killed == []


def test_what_was_restarted_meanwhile_is_left_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.watch(30)
    host.answers = False
    runs = iter(["run 1", "run 2"])
    host.now_s += TIMEOUT_S + 10
    monkeypatch.setattr(engine_watchdog, "running", lambda name: next(runs))
    host.watchdog.look()
    assert host.killed == []


def test_it_tells_systemd_that_it_is_not_frozen_itself(
    monkeypatch: pytest.MonkeyPatch, host: Host, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        host.watchdog.look()
        assert systemd.recv(100) == b"WATCHDOG=1"
