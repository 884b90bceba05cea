"""Errors for people, and one line of progress per step."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

# How often a running step shows its progress: on a terminal its line is redrawn, a log gets a further line.
REDRAW_S, FURTHER_LINE_S = 1, 30
LINE_MAX = 70  # characters of a terminal's line that is redrawn: one that wraps cannot be
CLEAR_LINE = "\r\x1b[K"


class LabError(Exception):
    """An error that a person has to act on. The message says what is wrong, where, and what to do."""


class Step:
    """A step's progress on stderr: its seconds while it runs, and one final line.

    Of nested steps only the innermost is shown while it runs.
    """

    _running: ClassVar[list[Step]] = []

    def __init__(self, title: str) -> None:
        self.detail = ""  # what the step is doing now
        self._title = title
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._running.append(self)
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def end(self, outcome: str = "") -> None:
        """Print the title with the seconds that the step took, and `outcome` if it failed."""
        self._ended.set()
        self._thread.join()
        self._running.remove(self)
        self._write(f"{self._title}{outcome and ': ' + outcome}", end="\n")

    def _show(self) -> None:
        terminal = sys.stderr.isatty()
        while not self._ended.wait(REDRAW_S if terminal else FURTHER_LINE_S):
            if self._running[-1] is self:
                text = f"{self._title} … {self.detail}"
                self._write(text[:LINE_MAX] if terminal else text, end="" if terminal else "\n")

    def _write(self, text: str, end: str) -> None:
        start = CLEAR_LINE if sys.stderr.isatty() else ""
        print(f"{start}{time.monotonic() - self._started:6.1f} s  {text}", end=end, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show `title` while it runs, and how long it took."""
    shown = Step(title)
    try:
        yield shown
    except BaseException:
        shown.end("FAILED")
        raise
    shown.end()


def run(argv: Sequence[str | Path], *, log: Path | None = None, **options: object) -> str:
    """Run a command and return what it printed.

    Raises LabError with the command and the end of its output when it fails; `log` gets all of it.
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
