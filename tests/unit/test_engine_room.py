"""What is said of a port, GPUs and a disk that others hold, with real sockets and a nvidia-smi that is a script."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import engine_room
import pytest

APPS = """\
GPU-a, 111, 700 MiB, /usr/bin/python3, trainer
GPU-b, 222, 800 MiB, other
GPU-a, 333, 9 MiB, nvidia-cuda-mps-server
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with two GPUs, of which processes of somebody else hold each one."""
    (tmp_path / "apps").write_text(APPS)
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f'#!/bin/sh\ncase $1 in --query-gpu*) printf "GPU-a, 0\\nGPU-b, 1\\n";; *) cat {tmp_path}/apps;; esac\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for pid in (111, 222, 333):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "cgroup").write_text("0::/user.slice\n")
    monkeypatch.setattr(engine_room, "PROC", tmp_path / "proc")
    return tmp_path


def said(host: Path, capsys: pytest.CaptureFixture[str], port: int, name: str = "x", **fields: Any) -> list[str]:
    engines = host / "engines"
    engines.mkdir(exist_ok=True)
    probe = {"url": f"http://127.0.0.1:{port}", "model": "m", "probe": "completions", "gpus": [], **fields}
    (engines / f"{name}.probe.json").write_text(json.dumps(probe))
    (engines / f"{name}.fingerprint").write_text("f\n")
    status = engine_room.main([name, "--release", str(host), "--state", str(host)])
    lines = capsys.readouterr().out.splitlines()
    assert status == bool(lines)
    return lines


@pytest.mark.parametrize(("unit", "held"), [("user.slice", True), ("system.slice/vllm@y.service", False)])
def test_a_port_of_somebody_else(host: Path, capsys: pytest.CaptureFixture[str], unit: str, held: bool) -> None:
    own = host / "proc" / str(os.getpid())
    own.mkdir()
    (own / "cgroup").write_text(f"0::/{unit}\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        lines = said(host, capsys, port)
    assert len(lines) == held
    if held:
        assert lines[0].startswith(f"engine x: port {port} is held by process {os.getpid()}, ")
        assert lines[0].endswith(": stop it, or give the engine another port")
    assert said(host, capsys, port) == [], "nobody listens any more"


def test_gpus_of_somebody_else(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = "engine x: GPU 0 is held by process 111, /usr/bin/python3, trainer, with 700 MiB: stop it, or give the engine other `gpus`"
    second = "engine x: GPU 1 is held by process 222, other, with 800 MiB: stop it, or give the engine other `gpus`"
    assert said(host, capsys, 9, gpus=[0]) == [first]
    assert said(host, capsys, 9, gpus=None) == [first, second]
    (host / "proc" / "111" / "cgroup").write_text("0::/system.slice/system-vllm.slice/vllm@y.service\n")
    assert said(host, capsys, 9, gpus=[0]) == [], "a roll stops engines itself"


def test_a_full_disk(host: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_room, "FREE_GB", 10**9)
    (line,) = said(host, capsys, 9)
    assert line.startswith(f"engine x: the disk of {host} is full: ")


@pytest.fixture
def second(host: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host with a running engine x, process 444, for which `x.beside` is to be started."""
    monkeypatch.setattr(engine_room.engine_stacks, "processes", lambda unit: {"vllm@x.service": [444]}[unit])
    (host / "proc" / "444").mkdir()
    (host / "proc" / "444" / "status").write_text("Name:\tvllm\nRssAnon:\t 2000000 kB\nThreads:\t9\n")
    (host / "proc" / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 3000000 kB\n")
    return host


def said_beside(host: Path, capsys: pytest.CaptureFixture[str], port: int = 9, **fields: Any) -> list[str]:
    return said(host, capsys, port, name="x.beside", **fields)


def test_a_second_engine_needs_a_free_port_whoever_holds_it(second: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = second / "proc" / str(os.getpid())
    own.mkdir()
    (own / "cgroup").write_text("0::/system.slice/vllm@y.service\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        (line,) = said_beside(second, capsys, server.getsockname()[1])
    assert "is held by process" in line
    assert said_beside(second, capsys) == []


def test_a_second_engine_needs_memory_of_the_host(second: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (second / "proc" / "meminfo").write_text("MemAvailable: 1000000 kB\n")
    (line,) = said_beside(second, capsys)
    assert line == (
        "engine x.beside: the host has 1.0 GB of memory left, and a second engine takes about the 2.0 GB that the running one has: "
        "use a host with more memory, or take beside_port out for this roll, which then has a gap"
    )
    assert said(second, capsys, 9) == [], "the engine itself takes the place of the old one"
    (second / "proc" / "meminfo").unlink()
    assert said_beside(second, capsys) == []


def test_a_second_engine_needs_memory_of_its_gpus(
    second: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {"index,memory.total,memory.free": ["0, 81920, 40000", "1, 81920, 30000"]}
    monkeypatch.setattr(
        engine_room, "lines", lambda *command: next((found for key, found in listed.items() if key in command[1]), [])
    )
    assert said_beside(second, capsys, gpus=[0], gpu_share=0.45) == []
    (line,) = said_beside(second, capsys, gpus=[0, 1], gpu_share=0.45)
    assert "GPU 1 has 29.3 GiB free, and a second engine takes 36.0 GiB (0.45 of 80.0 GiB)" in line
    assert said_beside(second, capsys, gpus=None, gpu_share=None) == []


@pytest.mark.parametrize(("rank", "before", "held"), [(0, 0, True), (0, 1, True), (0, 2, False), (1, 0, False)])
def test_the_ports_of_an_engine_over_several_hosts_are_its_head_s(
    host: Path, capsys: pytest.CaptureFixture[str], rank: int, before: int, held: bool
) -> None:
    own = host / "proc" / str(os.getpid())
    own.mkdir()
    (own / "cgroup").write_text("0::/user.slice\n")
    (host / "engines").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (host / "engines" / "x.cluster.json").write_text(json.dumps({"rank": rank, "port": port + before}))
        lines = said(host, capsys, 9)
    assert len(lines) == held, lines
