"""One host's part of an engine on Ray, with programs in the place of Ray and of the engine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray_node

SOON_S = 60
# Ray's node says how it was called. That of a head writes a file when it is complete, which it is told by another one.
RAY = """#!{python}
import pathlib, sys, time
print("ray", *sys.argv[1:], flush=True)
if "--head" in sys.argv:
    while not pathlib.Path("{directory}/go").exists():
        time.sleep(0.05)
    (pathlib.Path("{directory}/ray") / "ray_current_cluster").write_text("complete")
time.sleep(600)
"""
ENGINE = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('engine runs', flush=True); time.sleep(600)"


class Node:
    def __init__(self, directory: Path, *, head: int, address: str) -> None:
        self.go = directory / "go"
        (directory / "ray").mkdir(exist_ok=True)
        program = directory / "ray.py"
        program.write_text(RAY.format(python=sys.executable, directory=directory))
        program.chmod(0o755)
        self.log = directory / f"{address}.log"
        command = [sys.executable, ray_node.__file__, f"--ray={program}", f"--head=127.0.0.1:{head}"]
        command += [f"--address={address}", "--gpus=4", sys.executable, "-c", ENGINE]
        with self.log.open("wb") as log:
            environment = os.environ | {"TMPDIR": str(directory)}
            # A session of its own, as cluster_member.py gives it, and kills.
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def said(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> None:
        end = time.monotonic() + SOON_S
        while text not in self.said():
            assert time.monotonic() < end, f"no {text!r} in:\n{self.said()}"
            time.sleep(0.05)

    def ends(self) -> int:
        return self.process.wait(SOON_S)

    def child(self, what: str) -> int:
        """The process that runs Ray, or the engine."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (pid,) = (int(pid) for pid in listed.split() if what.encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
        return pid


Make = Callable[[str], Node]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def make(tmp_path: Path, port: int) -> Iterator[Make]:
    started: list[Node] = []

    def one(address: str) -> Node:
        started.append(Node(tmp_path, head=port, address=address))
        return started[-1]

    yield one
    for node in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.process.pid, signal.SIGKILL)
        node.process.wait()


def test_the_head_starts_the_engine_when_its_node_is_complete(make: Make, port: int) -> None:
    head = make("127.0.0.1")
    head.says(
        f"ray start --block --head --port={port} --include-dashboard=false --node-ip-address=127.0.0.1 --num-gpus=4"
    )
    assert "engine runs" not in head.said()
    head.go.touch()
    head.says("engine runs")


def test_a_complete_node_of_an_earlier_start_does_not_count(make: Make, tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("an earlier one")
    head = make("127.0.0.1")
    head.says("ray start")
    assert "engine runs" not in head.said()
    head.go.touch()
    head.says("engine runs")


def test_told_to_stop_the_engine_ends_first_and_its_status_is_told(make: Make) -> None:
    head = make("127.0.0.1")
    head.go.touch()
    head.says("engine runs")
    head.process.terminate()
    assert head.ends() == 0, head.said()
    assert "the engine ended with status 0" in head.said()
    assert "the node of Ray" not in head.said()


@pytest.mark.parametrize(("lost", "said"), [("ray.py", "the node of Ray ended"), ("engine runs", "the engine ended")])
def test_it_ends_with_its_node_or_its_engine(make: Make, lost: str, said: str) -> None:
    head = make("127.0.0.1")
    head.go.touch()
    head.says("engine runs")
    os.kill(head.child(lost), signal.SIGKILL)
    assert head.ends() != 0
    assert f"{said} with status -9" in head.said()


def test_a_head_that_never_completes_is_told(make: Make) -> None:
    head = make("127.0.0.1")
    head.says("ray start")
    os.kill(head.child("ray.py"), signal.SIGKILL)
    assert head.ends() == 1
    assert "Ray's head ended with status -9 before it was complete" in head.said()


def test_a_worker_waits_for_the_head_and_runs_no_engine(make: Make, port: int) -> None:
    worker = make("127.0.0.2")
    worker.says(f"waits for Ray's head, 127.0.0.1:{port}")
    assert "ray start" not in worker.said()
    with socket.create_server(("127.0.0.1", port)):
        worker.says(f"ray start --block --address=127.0.0.1:{port} --node-ip-address=127.0.0.2 --num-gpus=4")
    os.killpg(worker.process.pid, signal.SIGKILL)
    assert worker.ends() == -9
    assert "engine runs" not in worker.said()
