#!/usr/bin/env python3
"""Check that what an engine needs for its start is not taken by other programs, while the old engine still serves.

    engine_room.py NAME --release /opt/vllm/releases/X --state /var/lib/vllm    exit 1 with one line for each problem

It needs its ports, its GPUs, and space for compiled graphs and kernels. What engines of this role hold does not count: a roll stops them.
A second engine (NAME.beside) starts while the others serve: its port must be free, and there has to be memory for both.
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
from typing import Dict, Iterator, List, Optional, Tuple

import engine_stacks
from engine_probe import Engine

PROC = Path("/proc")
WILDCARDS = ("*", "0.0.0.0", "::")
# A disk with less than this is full: the first start of a release writes compiled graphs and kernels.
FREE_GB = 1
# What a second engine's name ends with.
BESIDE = ".beside"
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
                if engine.name.endswith(BESIDE) or not ours(int(pid)):
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


def of_gpu_memory(engine: Engine) -> Iterator[str]:
    """As vLLM checks it at its start, but before anything is started."""
    if engine.gpus is None or engine.gpu_share is None:
        return
    query = "--query-gpu=index,memory.total,memory.free"
    for line in lines("nvidia-smi", query, "--format=csv,noheader,nounits"):
        index, total_mib, free_mib = map(int, line.split(", "))
        if index in engine.gpus and free_mib < engine.gpu_share * total_mib:
            yield (
                f"GPU {index} has {free_mib / 1024:.1f} GiB free, and a second engine takes {engine.gpu_share * total_mib / 1024:.1f} GiB "
                f"({engine.gpu_share:g} of {total_mib / 1024:.1f} GiB): lower gpu-memory-utilization in its args, or take beside_port out for this "
                "roll, which then has a gap"
            )


def of_memory(engine: Engine) -> Iterator[str]:
    """A second engine needs about as much memory of the host as the one that runs. Without it, the kernel would kill one of them."""
    used = sum(anonymous_bytes(pid) for pid in engine_stacks.processes(f"vllm@{engine.name[: -len(BESIDE)]}.service"))
    available = memory_available_bytes()
    if available is not None and available < used:
        yield (
            f"the host has {available / 1e9:.1f} GB of memory left, and a second engine takes about the {used / 1e9:.1f} GB that the running one has: "
            "use a host with more memory, or take beside_port out for this roll, which then has a gap"
        )


def fields_kb(path: Path) -> Dict[str, int]:
    """The fields of a file of /proc that are given in kB."""
    try:
        return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", path.read_text(), re.MULTILINE)}
    except OSError:
        return {}


def anonymous_bytes(pid: int) -> int:
    """Memory that the process shares with no other; files that it reads can leave the memory."""
    return 1024 * fields_kb(PROC / str(pid) / "status").get("RssAnon", 0)


def memory_available_bytes() -> Optional[int]:
    available = fields_kb(PROC / "meminfo").get("MemAvailable")
    return None if available is None else 1024 * available


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
    if engine.name.endswith(BESIDE):
        problems += [*of_gpu_memory(engine), *of_memory(engine)]
    for problem in problems:
        print(f"engine {engine.name}: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
