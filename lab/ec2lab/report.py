"""Errors for people, and one line of progress a step."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class LabError(Exception):
    """Something a person has to act on; the message says what, where and what to do."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print `title` with the seconds it took, once it is over."""
    started = time.monotonic()
    outcome = "FAILED"
    try:
        yield
        outcome = "ok"
    finally:
        seconds = time.monotonic() - started
        print(f"{seconds:6.1f} s  {title}{'' if outcome == 'ok' else ': ' + outcome}", file=sys.stderr, flush=True)


def run(argv: Sequence[str | Path], *, log: Path | None = None, **options: object) -> str:
    """Run a command and return what it printed.

    Raises LabError with the command and the end of its output when it fails; `log` keeps the whole of it.
    """
    words = [str(word) for word in argv]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)  # type: ignore[call-overload]
    output: str = done.stdout
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(output)
    if done.returncode != 0:
        tail = "\n".join(output.splitlines()[-15:])
        where = f"\n(all of it: {log})" if log else ""
        raise LabError(f"`{' '.join(words[:6])}` ended with status {done.returncode}:\n{tail}{where}")
    return output
