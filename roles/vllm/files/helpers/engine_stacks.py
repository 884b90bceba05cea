#!/usr/bin/env python3
"""Make every process of an engine write the stacks of all its threads to the engine's journal; the processes go on.

    engine_stacks.py NAME      then: journalctl --unit vllm@NAME

Processes do it on SIGUSR2 (files/engine/sitecustomize.py); a stopped one is continued for it. One that waits in the kernel cannot; its
state is told instead. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# One after the other, so that their lines do not mix. Writing the stacks takes milliseconds.
WRITE_S = 0.5


def processes(unit: str) -> Iterator[int]:
    """The unit's processes."""
    command = ["systemctl", "show", unit, "--property=ControlGroup", "--value"]
    group = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    if not group:
        return
    try:
        yield from map(int, (CGROUPS / group[1:] / "cgroup.procs").read_text().split())
    except OSError:
        return  # it ended meanwhile


def status(pid: int) -> Dict[str, str]:
    """The fields of /proc/PID/status. Raises OSError if the process has ended."""
    lines = (PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def names(unit: str) -> Iterator[str]:
    """The names of the unit's processes."""
    for pid in processes(unit):
        try:
            yield status(pid)["Name"]
        except (OSError, KeyError):
            continue  # it has ended


def handles(known: Dict[str, str], number: int) -> bool:
    """Whether the process has a handler for the signal, which would otherwise end it."""
    return bool(int(known["SigCgt"], 16) >> (number - 1) & 1)


def dump(unit: str) -> Iterator[str]:
    """Signal one process after the other; yields one line about each, from /proc."""
    for pid in processes(unit):
        try:
            known = status(pid)
            writes = handles(known, signal.SIGUSR2)
            if writes:
                os.kill(pid, signal.SIGUSR2)
                os.kill(pid, signal.SIGCONT)
                time.sleep(WRITE_S)
        except (OSError, KeyError, ValueError):
            continue  # it has ended
        told = "its stacks are in the engine's journal" if writes else "it writes no stacks"
        yield f"process {pid}, {known['Name']}, {known['Threads']} threads, state {known['State']}: {told}"


if __name__ == "__main__":
    for line in dump(f"vllm@{sys.argv[1]}.service"):
        print(line)
