"""The ranks of an engine over several hosts: programs of their own on addresses of the loopback, with a process in the engine's place."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_member
import pytest

PROGRAM = cluster_member.__file__
ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
SECRET = "0123456789abcdef" * 2
# Says that it runs, and ends when it is told to.
ENGINE = "import signal, sys, time; print('engine runs', flush=True); signal.signal(15, lambda *_: sys.exit(0)); time.sleep(600)"
# For what takes a moment, on a busy machine too.
SOON_S = 60


def until(true: Callable[[], Any], what: Callable[[], str]) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


class Rank:
    """A rank's program, and what it wrote."""

    def __init__(self, directory: Path, rank: int, port: int, hosts: int, **other: str) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "cluster_token").write_text(other.get("token", SECRET) + "\n")
        self.place = directory / "place.json"
        place = {"rank": rank, "addresses": ADDRESSES[:hosts], "port": port, "grace_s": 5}
        self.place.write_text(json.dumps(place | {"generation": other.get("generation", "one")}))
        self.log = directory / f"log{time.monotonic_ns()}"
        with self.log.open("wb") as log:
            command = [sys.executable, PROGRAM, str(self.place), sys.executable, "-c", ENGINE]
            environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(directory)}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def said(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> None:
        until(lambda: text in self.said(), lambda: f"no {text!r} in:\n{self.said()}")

    def ends(self) -> int:
        return self.process.wait(SOON_S)

    def engines(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]


Make = Callable[..., Rank]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Starts a rank; all of a test meet at one port, and end with it."""
    with socket.create_server((ADDRESSES[0], 0)) as free:
        port = free.getsockname()[1]
    started: list[Rank] = []

    def one(rank: int, hosts: int = 2, **other: str) -> Rank:
        started.append(Rank(tmp_path / str(rank), rank, port, hosts, **other))
        return started[-1]

    yield one
    for rank in started:
        if rank.process.poll() is None:
            for pid in rank.engines():
                os.kill(pid, signal.SIGKILL)
            rank.process.kill()
            rank.process.wait()


def both(make: Make) -> tuple[Rank, Rank]:
    head, worker = make(0), make(1)
    for rank in (head, worker):
        rank.says("engine runs")
    return head, worker


def test_no_engine_starts_before_all_ranks_are_there(make: Make) -> None:
    head, first = make(0, hosts=3), make(1, hosts=3)
    head.says("waits for rank 2 (127.0.0.3)")
    first.says("waits for the other ranks")
    assert not head.engines()
    assert not first.engines()
    for rank in (make(2, hosts=3), head, first):
        rank.says("engine runs")


def test_a_worker_waits_for_its_head(make: Make) -> None:
    worker = make(1)
    worker.says("waits for rank 0 (127.0.0.1): ")
    make(0).says("engine runs")
    worker.says("engine runs")


@pytest.mark.parametrize("lost", [0, 1])
def test_an_engine_that_ends_ends_that_of_every_rank(make: Make, lost: int) -> None:
    ranks = both(make)
    engines = [rank.engines()[0] for rank in ranks]
    os.kill(engines[lost], signal.SIGKILL)
    assert [rank.ends() for rank in ranks] == [1, 1], "\n".join(rank.said() for rank in ranks)
    assert f"the engine of rank {lost} ({ADDRESSES[lost]}) ended with status -9" in ranks[1 - lost].said()
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_or_silent_is_lost_and_all_start_again(make: Make, lost: int) -> None:
    ranks = both(make)
    signals = [signal.SIGSTOP, signal.SIGKILL]
    (engine,) = ranks[lost].engines()
    ranks[lost].process.send_signal(signals[lost])
    other = ranks[1 - lost]
    assert other.ends() == 1
    assert f"rank {lost} ({ADDRESSES[lost]}) is lost" in other.said()
    # As systemd ends it with its rank.
    os.kill(engine, signal.SIGKILL)
    if lost == 0:
        assert "has been silent for" in other.said()
        ranks[lost].process.kill()
        ranks[lost].process.wait()
    both(make)


def test_the_head_stops_as_it_is_told_and_the_worker_is_to_be_started_again(make: Make) -> None:
    head, worker = both(make)
    head.process.terminate()
    assert (head.ends(), worker.ends()) == (0, 1), head.said() + worker.said()
    # Its engine ended by itself, and was not killed.
    assert "the engine of rank 0 (127.0.0.1) ended with status 0" in head.said()


def test_a_worker_that_stops_has_the_head_finish_first(make: Make) -> None:
    head, worker = both(make)
    worker.process.terminate()
    assert (head.ends(), worker.ends()) == (1, 0), head.said() + worker.said()
    assert "the engine of rank 0 (127.0.0.1) ended with status 0" in head.said()
    assert "rank 0 (127.0.0.1) is lost" in worker.said()


@pytest.mark.parametrize("other", [{"token": "another" * 6}, {"generation": "two"}])
def test_a_rank_with_another_token_or_release_is_refused_until_it_has_the_same(
    make: Make, other: dict[str, str]
) -> None:
    head, worker = make(0), make(1, **other)
    worker.says("is refused by rank 0 (127.0.0.1): its release or its token is another one")
    assert not head.engines()
    worker.process.terminate()
    assert worker.ends() == 0
    make(1).says("engine runs")


def test_what_is_no_rank_harms_nothing(make: Make) -> None:
    head = make(0)
    head.says("waits for rank 1")
    port = json.loads(head.place.read_text())["port"]
    for source, words in ((ADDRESSES[2], b""), (ADDRESSES[1], b"[1]\n"), (ADDRESSES[1], b"x" * 10_000)):
        stranger = socket.create_connection((ADDRESSES[0], port), timeout=SOON_S, source_address=(source, 0))
        # It may be closed at once.
        with stranger, contextlib.suppress(ConnectionError):
            stranger.sendall(words)
            while stranger.recv(4096):
                pass
    make(1).says("engine runs")
    head.says("engine runs")


def test_systemd_hears_when_all_started_and_the_engine_does_not_get_the_secret(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(SOON_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        head = make(0)
        heard = [manager.recv(4096).decode()]
        while "EXTEND_TIMEOUT_USEC=60000000" not in heard[-1]:
            heard.append(manager.recv(4096).decode())
        monkeypatch.delenv("NOTIFY_SOCKET")
        make(1)
        while "READY=1" not in heard[-1]:
            heard.append(manager.recv(4096).decode())
        assert any("STATUS=waits for rank 1 (127.0.0.2)" in one for one in heard)
        while "WATCHDOG=1" not in heard[-1]:
            heard.append(manager.recv(4096).decode())
    head.says("engine runs")
    environment = Path(f"/proc/{head.engines()[0]}/environ").read_text()
    assert "CREDENTIALS_DIRECTORY" not in environment
    assert "NOTIFY_SOCKET" not in environment
