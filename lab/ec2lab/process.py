"""Daemons of the lab, recorded by pid and start time, so that a later process with the same pid is never mistaken for one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ec2lab.report import LabError


def start(argv: list[str], record: Path, log: Path, env: dict[str, str] | None = None) -> None:
    """Start a daemon in its own session. Writes its pid and start time (clock ticks since boot) to `record`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    program = shutil.which(argv[0])
    if program is None:
        raise LabError(f"no program {argv[0]} on this machine")
    with log.open("ab") as output, open(os.devnull) as nothing:
        # Not subprocess: its objects expect to be waited for, and these processes outlive this one.
        files = [
            (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
            *((os.POSIX_SPAWN_DUP2, output.fileno(), fd) for fd in (1, 2)),
        ]
        pid = os.posix_spawn(program, argv, os.environ if env is None else env, file_actions=files, setsid=True)
    record.write_text(json.dumps({"pid": pid, "started": _start_time(pid)}))


def running(record: Path) -> int | None:
    """The pid in `record`, if the same process is still alive."""
    try:
        known = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return None
    pid: int = known["pid"]
    return pid if known["started"] is not None and _start_time(pid) == known["started"] else None


def stop(record: Path, *, grace_s: float = 5) -> None:
    """End the process in `record` (SIGTERM, then SIGKILL) and delete the record."""
    pid = running(record)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        if not wait_gone(pid, grace_s):
            kill([pid])
        # Its children in the session would outlive it.
        kill([other for other in _all() if _session(other) == pid])
    record.unlink(missing_ok=True)


def inside(device: str) -> list[int]:
    """Processes whose root file system is the mount of `device`: all that run in that host, even after nspawn itself ended."""
    return [pid for pid in _all() if device in _roots(pid)]


def kill(pids: list[int]) -> None:
    """SIGKILL each of `pids` and wait until it is gone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pid in pids:
        wait_gone(pid, 10)


def wait_gone(pid: int, timeout_s: float) -> bool:
    """Whether `pid` has ended within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):  # our own child stays a zombie until it is waited for
            os.waitpid(pid, os.WNOHANG)
        if _start_time(pid) is None:
            return True
        time.sleep(0.05)
    return False


def _all() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _roots(pid: int) -> set[str]:
    """The device that `pid` has mounted as its root (proc(5), mountinfo). The link /proc/PID/root shows `/` for other mount namespaces."""
    try:
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    except OSError:
        return set()
    return {fields[fields.index("-") + 2] for fields in mounts if fields[4] == "/"}


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot (proc(5), stat field 22); None for a zombie or no process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
