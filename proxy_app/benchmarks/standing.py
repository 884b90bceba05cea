"""A candidate that waits for its turns: started, but stopped by a signal."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .candidates import Candidate, Ended, Ground, awake, free_ports, running
from .measure import usage


class Standing:
    """Used as a context. A candidate that ends by itself is started again for the remaining cases.

    `ended` says how it ended, each time: that is part of the result. `rss_mb` is its resident memory before
    any load.
    """

    def __init__(self, candidate: Candidate, venv: Path, engines: Sequence[int], core: int) -> None:
        self.ended: list[str] = []
        self._candidate = candidate
        self._venv = venv
        self._engines = [f"http://127.0.0.1:{port}" for port in engines]
        self._core = core
        self._process = contextlib.ExitStack()

    def __enter__(self) -> "Standing":
        try:
            self._start()
        except BaseException:
            # Processes must not outlive this, and __exit__ is not called if __enter__ fails.
            self._process.close()
            raise
        self.rss_mb = usage(self._root).rss_mb
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    @contextlib.contextmanager
    def awake(self) -> Iterator[tuple[int, int]]:
        """Its turn: port and process."""
        with contextlib.ExitStack() as turn:
            try:
                turn.enter_context(awake(self._root, self._port, self._log))
            except Ended as ended:
                self.ended.append(str(ended))
                self._process.close()
                self._start()
                turn.enter_context(awake(self._root, self._port, self._log))
            yield self._port, self._root

    def _start(self) -> None:
        directory = Path(self._process.enter_context(tempfile.TemporaryDirectory()))
        self._port, other_port = free_ports(2)
        ground = Ground(directory, self._venv, self._port, other_port, self._engines)
        command = self._candidate.prepare(ground)
        self._log = directory / "log"
        self._root = self._process.enter_context(
            running(command, directory, self._core, self._candidate.environment)
        )
        with awake(self._root, self._port, self._log):
            pass
