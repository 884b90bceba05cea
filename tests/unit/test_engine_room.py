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


def said(host: Path, capsys: pytest.CaptureFixture[str], port: int, **fields: Any) -> list[str]:
    engines = host / "engines"
    engines.mkdir(exist_ok=True)
    probe = {"url": f"http://127.0.0.1:{port}", "model": "m", "probe": "completions", "gpus": [], **fields}
    (engines / "x.probe.json").write_text(json.dumps(probe))
    (engines / "x.fingerprint").write_text("f\n")
    status = engine_room.main(["x", "--release", str(host), "--state", str(host)])
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
