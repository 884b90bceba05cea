"""Puts a load on a running candidate, and measures what its processes use."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from .cases import Case

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
KEY = "bench-key-0123456789-0123456789-0123"


class Result(TypedDict):
    """One object of bench.json, in the units that the names give.

    Null means "does not apply": there is no process to measure, no stream, or streams that do not end.
    """

    candidate: str
    case: str
    repeat: int
    cpu_us_per_chunk: float | None
    cpu_us_per_request: float | None
    chunks_per_s: float
    requests_per_s: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    chunk_p50_ms: float | None
    chunk_p99_ms: float | None
    rss_mb: float | None
    errors: int


@dataclass(frozen=True)
class Usage:
    cpu_us: float
    rss_mb: float


def usage(root: int) -> Usage:
    """CPU since their start, and current resident memory, of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    fields: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            # The second field is the name, which may contain blanks and parentheses.
            fields[int(entry.name)] = text[text.rindex(")") + 2 :].split()
            children.setdefault(int(fields[int(entry.name)][1]), []).append(int(entry.name))
    if root not in fields:
        raise RuntimeError(f"process {root} has ended; see its log")
    ticks = pages = 0
    todo = [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        # utime, stime, those of children that were waited for, and rss. Indexes are proc(5)'s without the
        # first two fields.
        ticks += sum(int(value) for value in fields[pid][11:15])
        pages += int(fields[pid][21])
    return Usage(ticks / _TICKS * 1e6, pages * _PAGE / 1e6)


def load(
    program: Path, case: Case, port: int, candidate: str, repeat: int, root: int | None, core: int
) -> Result:
    """Put `case` on the server at `port`, and measure the CPU of `root` and its descendants meanwhile."""
    options = {
        "port": port,
        "connections": case.connections,
        "stream": int(case.stream),
        "tokens": case.tokens,
        "interval": case.interval_us,
        "body": case.body_bytes,
        "ramp": case.ramp_s,
        "seconds": case.seconds,
        "key": KEY,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen(
        [program, *words],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    ) as process:
        assert process.stdout is not None
        try:
            _expect(process.stdout.readline(), "begin")
            before = usage(root) if root is not None else None
            _expect(process.stdout.readline(), "end")
            after = usage(root) if root is not None else None
            found: dict[str, Any] = json.loads(process.stdout.readline())
        finally:
            process.kill()
    cpu_us = after.cpu_us - before.cpu_us if before and after else None
    return {
        "candidate": candidate,
        "case": case.name,
        "repeat": repeat,
        "cpu_us_per_chunk": _per(cpu_us, found["chunks"]),
        "cpu_us_per_request": _per(cpu_us, found["requests"]),
        "chunks_per_s": round(found["chunks"] / found["seconds"], 1),
        "requests_per_s": round(found["requests"] / found["seconds"], 1),
        "ttft_p50_ms": found["ttft_p50_ms"],
        "ttft_p99_ms": found["ttft_p99_ms"],
        "chunk_p50_ms": found["chunk_p50_ms"],
        "chunk_p99_ms": found["chunk_p99_ms"],
        "rss_mb": round(after.rss_mb, 1) if after else None,
        "errors": found["errors"] + found["errors_before"],
    }


def _expect(line: str, word: str) -> None:
    if line.strip() != word:
        raise RuntimeError(f"the load generator said {line.strip()!r} instead of {word!r}")


def _per(cpu_us: float | None, count: int) -> float | None:
    return round(cpu_us / count, 2) if cpu_us is not None and count else None
