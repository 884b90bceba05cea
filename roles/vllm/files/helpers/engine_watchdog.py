#!/usr/bin/env python3
"""Kill engines of this host that hang, so that their units start them again.

    engine_watchdog.py --timeout 60

Before it kills an engine it has each of its processes write its stacks (engine_stacks.py).

An engine hangs if for ``--timeout`` seconds it has neither answered a request for one token nor increased its counter of tokens.
A busy engine increases that counter, however long its requests wait. An engine whose gauges say that nothing runs is asked for a token
like any other, so requests that it lost track of hide no hang. An engine that starts has its own ``start_timeout_s`` until it listens,
and a little more than ``--timeout`` for its first token. An engine for which a compiler runs, or whose features a roll tries for the first
time, has as much time as a start. Engines that are stopped, stopping or waiting after a crash are left alone.
The running engines are found by ``/run/vllm-NAME/probe.json``, which the unit writes at each start.
systemd restarts the watchdog itself if it is frozen (WatchdogSec= of its unit).
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Optional

import engine_probe
import engine_stacks
from engine_probe import Engine

RUN = engine_probe.RUN
LOOK_EVERY_S = 5.0
# How often a quiet engine is asked for a token. More often would fill its metrics with the watchdog's requests.
ASK_EVERY_S = 15.0
# Time for the first token after a start, for which something may have to be loaded or compiled.
FIRST_TOKEN_S = 90.0
# Programs that torch's compiler, Triton and FlashInfer run.
COMPILERS = {
    "as",
    "c++",
    "cc1",
    "cc1plus",
    "cicc",
    "collect2",
    "cudafe++",
    "g++",
    "gcc",
    "ld",
    "ninja",
    "nvcc",
    "ptxas",
}


@dataclass
class Watch:
    """The watchdog's notes about one run of an engine."""

    run: str
    begin_s: float
    alive_s: float
    tokens: Optional[float] = None
    listens: bool = False
    served: bool = False
    asked_s: float = float("-inf")
    question: Optional[threading.Thread] = None
    lock: threading.Lock = field(default_factory=threading.Lock)


def running(name: str) -> Optional[str]:
    """An id of the engine's current run, or None if it is not up."""
    state = engine_probe.unit_state(f"vllm@{name}.service", "ActiveState,InvocationID")
    return state.get("InvocationID") if state.get("ActiveState") == "active" else None


def listens(engine: Engine) -> bool:
    """Whether its port accepts connections, which it does once the model is loaded. For a frozen engine the kernel accepts them."""
    address = urllib.parse.urlsplit(engine.url)
    try:
        with socket.create_connection((address.hostname or "", address.port or 80), timeout=2):
            return True
    except OSError:
        return False


def compiles(engine: Engine) -> bool:
    """Whether the engine may be compiling what the first request with a feature needs.

    A compiler runs for it, or the proof of a roll tries features. torch prepares what it compiles in the engine's own process, which took
    a minute on a busy machine.
    """
    return any(name in COMPILERS for name in engine_stacks.names(engine.unit)) or engine_probe.features_are_tried(
        engine.name
    )


def kill(name: str) -> None:
    """Send SIGKILL to every process of the engine: a stopped or deadlocked one handles no other signal."""
    subprocess.run(["systemctl", "kill", "--signal=SIGKILL", f"vllm@{name}.service"], check=False)


def read(directory: Path) -> Optional[Engine]:
    """The engine whose runtime directory this is."""
    name = directory.name[len("vllm-") :]
    try:
        return Engine(name=name, fingerprint="", **json.loads((directory / "probe.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None  # it is just being started or stopped


def say_alive() -> None:
    """Notify systemd, which restarts a watchdog that does not."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"WATCHDOG=1", address.replace("@", "\0", 1))


class Watchdog:
    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.watches: Dict[str, Watch] = {}

    def look(self) -> None:
        """Check each engine once."""
        found = {directory.name: read(directory) for directory in sorted(RUN.glob("vllm-*"))}
        engines = {engine.name: engine for engine in found.values() if engine is not None}
        for name in self.watches.keys() - engines.keys():
            del self.watches[name]
        say_alive()
        for engine in engines.values():
            self.look_at(engine, time.monotonic())
            say_alive()

    def look_at(self, engine: Engine, now_s: float) -> None:
        run = running(engine.name)
        if run is None:
            self.watches.pop(engine.name, None)
            return
        watch = self.watches.get(engine.name)
        if watch is None or watch.run != run:
            watch = self.watches[engine.name] = Watch(run, now_s, now_s)
        if not watch.listens and listens(engine):
            watch.listens, watch.alive_s = True, now_s
        moved = self.moved(engine, watch)
        with watch.lock:
            if moved:
                watch.alive_s, watch.served = time.monotonic(), True
            quiet_s = time.monotonic() - watch.alive_s
        # An engine that compiles counts as loading, for at most as long as a start may take.
        if quiet_s > self.limit_s(engine, watch) and not (quiet_s <= engine.start_timeout_s and compiles(engine)):
            self.end(engine, watch, quiet_s)
        elif not moved and now_s - watch.asked_s >= ASK_EVERY_S and not (watch.question and watch.question.is_alive()):
            watch.asked_s = now_s
            watch.question = threading.Thread(target=self.ask, args=(engine, watch), daemon=True)
            watch.question.start()

    def limit_s(self, engine: Engine, watch: Watch) -> float:
        """Seconds that the engine may be quiet."""
        if watch.served:
            return self.timeout_s
        return max(self.timeout_s, FIRST_TOKEN_S) if watch.listens else engine.start_timeout_s

    def end(self, engine: Engine, watch: Watch, quiet_s: float) -> None:
        """Kill the engine, unless it was restarted or stopped during the check."""
        if running(engine.name) != watch.run:
            return
        print(
            f"{engine.unit} hangs: no answer and no token for {quiet_s:.0f} s. Its processes write their stacks to its journal;"
            " then it is killed, and systemd starts it again",
            flush=True,
        )
        for line in engine_stacks.dump(engine.unit):
            print(f"{engine.unit}: {line}", flush=True)
        del self.watches[engine.name]
        kill(engine.name)

    @staticmethod
    def moved(engine: Engine, watch: Watch) -> bool:
        """Whether the engine has generated since the last check."""
        before, tokens = watch.tokens, engine_probe.tokens(engine)
        watch.tokens = max(tokens, before or 0.0)
        return before is not None and tokens > before

    def ask(self, engine: Engine, watch: Watch) -> None:
        """Request one token. A response without one, such as a refusal under load, proves nothing; then the counter decides."""
        path, body, kind = engine_probe.question(engine)
        try:
            answer = json.loads(engine_probe.request(engine.url + path, body, timeout=self.timeout_s, kind=kind))
        except (OSError, ValueError):
            return
        if engine_probe.made(engine, answer):
            with watch.lock:
                watch.alive_s, watch.served = time.monotonic(), True


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill engines of this host that hang; their units start them again.")
    parser.add_argument("--timeout", type=float, required=True, help="seconds without an answer or a token")
    watchdog = Watchdog(parser.parse_args().timeout)
    while True:
        watchdog.look()
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
