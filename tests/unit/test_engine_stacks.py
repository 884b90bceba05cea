"""Stacks of an engine's processes, with real processes in the place of an engine's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import engine_stacks
import pytest

ENGINE_MODULES = Path(__file__).resolve().parents[2] / "roles" / "vllm" / "files" / "engine"
PROGRAM = """
import sys

def wait_for_the_end(prompt):
    print("begun", flush=True)
    sys.stdin.read()

wait_for_the_end("s3cret prompt")
"""


class Process(subprocess.Popen[str]):
    def __init__(self, directory: Path, path: str) -> None:
        self.log = directory / "stderr"
        environment = os.environ | {"PYTHONPATH": path}
        with self.log.open("w") as log:
            super().__init__(
                [sys.executable, "-c", PROGRAM],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.stdout is not None
        assert self.stdout.readline() == "begun\n", self.log.read_text()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with Process(tmp_path, str(ENGINE_MODULES)) as begun:
        yield begun
        begun.kill()


def test_a_frozen_process_tells_where_it_was_and_no_values(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_stacks, "processes", lambda unit: [process.pid, 2**22])
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)

    (line,) = engine_stacks.dump("vllm@x.service")

    assert re.fullmatch(
        rf"process {process.pid}, python\S*, 1 threads, state T \(stopped\): its stacks are in the engine's journal",
        line,
    )
    said = process.log.read_text()
    assert re.search(r'File "<string>", line \d in wait_for_the_end', said), said
    assert "s3cret" not in said
    assert process.poll() is None, "it goes on"


def test_a_process_without_a_handler_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        monkeypatch.setattr(engine_stacks, "processes", lambda unit: [other.pid])
        (line,) = engine_stacks.dump("vllm@x.service")
        assert line.endswith("it writes no stacks")
        assert other.poll() is None
        other.kill()


def test_another_sitecustomize_runs_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the other one')\n")
    done = subprocess.run(
        [sys.executable, "-c", "import faulthandler; print(faulthandler.is_enabled())"],
        env=os.environ | {"PYTHONPATH": f"{ENGINE_MODULES}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["the other one", "True"]
    assert done.stderr == ""
