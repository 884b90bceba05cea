#!/usr/bin/env python3
"""Decide whether a second engine serves while a roll replaces an engine that has a `beside_port`.

    engine_beside.py NAME --release /opt/vllm/releases/X      X is the release that the roll brings

Prints one word:

    serving   one is there: of that release, or of another one while the engine itself does not generate. An interrupted roll left it.
    start     one has to be started
    nothing   the engine does not generate, so there is no service to keep up
    no-room   the engine runs with options of a time when it had no `beside_port`, so it may have taken all memory of its GPUs

The second engine is called NAME.beside. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Optional

import engine_probe
from engine_probe import Engine, ProbeError
from engine_watchdog import read

HOME = Path("/opt/vllm")


def is_up(name: str) -> bool:
    return engine_probe.unit_state(f"vllm@{name}.service").get("ActiveState") == "active"


def generates(name: str) -> bool:
    """Whether the engine generates now, whatever its release."""
    engine = read(engine_probe.RUN / f"vllm-{name}")
    if engine is None or not is_up(name):
        return False
    try:
        engine_probe.generate(engine)
    except ProbeError:
        return False
    return True


def is_of(name: str, release: Path) -> bool:
    """Whether the engine runs that release and generates. Waits for one that is still loading."""
    try:
        engine_probe.check_current(Engine.read(name, release))
    except (OSError, ProbeError):
        return False
    return True


def leaves_room(name: str) -> bool:
    """Whether a release in which the engine had a `beside_port` has the options that it runs with."""
    # playbooks/restart.yml removes the running engine's.
    noted = [engine_probe.RUN / f"vllm-{name}" / "fingerprint", HOME / "current" / "engines" / f"{name}.fingerprint"]
    runs = next((path.read_text() for path in noted if path.exists()), None)
    return any(
        path.read_text() == runs and path.with_name(f"{name}.beside.fingerprint").exists()
        for path in HOME.glob(f"releases/*/engines/{name}.fingerprint")
    )


def decide(name: str, release: Path) -> str:
    second = f"{name}.beside"
    if is_up(second) and is_of(second, release):
        return "serving"
    if generates(name):
        return "start" if leaves_room(name) else "no-room"
    return "serving" if generates(second) else "nothing"


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Decide whether a second engine serves during a roll.")
    parser.add_argument("name", help="the engine's")
    parser.add_argument("--release", type=Path, required=True, help="directory of the wanted release")
    options = parser.parse_args(arguments)
    print(decide(options.name, options.release))
    return 0


if __name__ == "__main__":
    sys.exit(main())
