#!/usr/bin/env python3
"""Check that what an engine needs for its start is not taken by other programs, while the old engine still serves.

    engine_room.py NAME --release /opt/vllm/releases/X --state /var/lib/vllm    exit 1 with one line for each problem

It needs its ports, its GPUs, and space for compiled graphs and kernels. What engines of this role hold does not count: a roll stops them.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from engine_probe import Engine

PROC = Path("/proc")
WILDCARDS = ("*", "0.0.0.0", "::")
# A disk with less than this is full: the first start of a release writes compiled graphs and kernels.
FREE_GB = 1
# NVIDIA's own service for sharing a GPU. nvidia-smi lists the service, and the programs that use it.
SHARING = "nvidia-cuda-mps-server"


def ours(pid: int) -> bool:
    """Whether the process belongs to an engine's unit, or has ended."""
    try:
        return "/vllm@" in (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return True


def lines(*command: str) -> List[str]:
    """The lines of a program's output; none if it is not installed or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def listeners(engine: Engine, place: Path) -> Iterator[Tuple[Optional[str], Optional[int]]]:
    """Addresses and ports of the engine on this host. Of one over several hosts, the head listens, on two ports more (cluster_member.py)."""
    address = urllib.parse.urlsplit(engine.url)
    if not place.exists():
        yield address.hostname, address.port
        return
    its = json.loads(place.read_text())
    if its["rank"] == 0:
        yield from ((address.hostname, port) for port in (address.port, its["port"] - 1, its["port"]))


def of_ports(engine: Engine, place: Path) -> Iterator[str]:
    for address, port in listeners(engine, place):
        for line in lines("ss", "-Hltnp", f"sport = :{port}"):
            host = line.split()[3].rpartition(":")[0].split("%")[0].strip("[]")
            if host not in (*WILDCARDS, address):
                continue
            for name, pid in re.findall(r'\("([^"]*)",pid=(\d+)', line):
                if not ours(int(pid)):
                    yield f"port {port} is held by process {pid}, {name}: stop it, or give the engine another port"


def of_gpus(engine: Engine) -> Iterator[str]:
    listed = [line.split(", ") for line in lines("nvidia-smi", "--query-gpu=uuid,index", "--format=csv,noheader")]
    indexes = {uuid: int(index) for uuid, index in listed}
    query = "--query-compute-apps=gpu_uuid,pid,used_gpu_memory,process_name"
    for line in lines("nvidia-smi", query, "--format=csv,noheader"):
        uuid, pid, memory, name = line.split(", ", 3)
        index = indexes.get(uuid)
        if index is None or (engine.gpus is not None and index not in engine.gpus):
            continue
        if SHARING not in name and not ours(int(pid)):
            yield f"GPU {index} is held by process {pid}, {name}, with {memory}: stop it, or give the engine other `gpus`"


def of_disk(state: Path) -> Iterator[str]:
    free_gb = shutil.disk_usage(state).free / 1e9
    if free_gb < FREE_GB:
        yield f"the disk of {state} is full: {free_gb:.1f} GB are free, and a start needs {FREE_GB} GB: remove files, or enlarge it"


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(description="Check what an engine's start needs of its host.")
    parser.add_argument("name", help="the engine's")
    parser.add_argument("--release", type=Path, required=True, help="directory of the release that describes it")
    parser.add_argument("--state", type=Path, required=True, help="directory of its caches")
    options = parser.parse_args(arguments)
    engine = Engine.read(options.name, options.release)
    place = options.release / "engines" / f"{options.name}.cluster.json"
    problems = [*of_ports(engine, place), *of_gpus(engine), *of_disk(options.state)]
    for problem in problems:
        print(f"engine {engine.name}: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
