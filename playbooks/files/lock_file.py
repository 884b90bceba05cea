#!/usr/bin/env python3
"""Take, give back or show this host's copy of the stack's lock. Prints what is so afterwards, as one JSON object.

    lock_file.py take '{"id": …}' [--instead-of ID]     ID is the lock that it may replace
    lock_file.py release ID                              only the lock of that run
    lock_file.py show

`lock` is the lock that is there now, or null; `replaced` the one that was replaced, or null. Below /run, so that no machine image holds a lock, and
none outlives a restart of the whole stack. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """The lock that is there; None if there is none. If the file cannot be read, its holder is unknown."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) and "id" in found else {"id": "unreadable", "who": "unknown", "text": text}


def write(path: Path, lock: Any) -> None:
    """Write it whole or not at all."""
    candidate = path.with_suffix(".new")
    candidate.write_text(json.dumps(lock))
    os.replace(candidate, path)


def change(options: argparse.Namespace) -> Any:
    path = Path(options.path)
    replaced = None
    with open(path.with_suffix(".guard"), "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        found = read(path)
        if options.command == "take":
            wanted = json.loads(options.lock)
            if found is None or found["id"] == options.instead_of:
                write(path, wanted)
                found, replaced = wanted, found
        elif options.command == "release" and found is not None and found["id"] == options.id:
            path.unlink()
            found = None
    return {"lock": found, "replaced": replaced}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", default="/run/ec2-inference-stack.lock")
    commands = parser.add_subparsers(dest="command", required=True)
    take = commands.add_parser("take")
    take.add_argument("lock")
    take.add_argument("--instead-of")
    commands.add_parser("release").add_argument("id")
    commands.add_parser("show")
    options = parser.parse_args(arguments)
    if options.command == "show":
        # Under --check nothing is written, not even the guard.
        print(json.dumps({"lock": read(Path(options.path)), "replaced": None}))
    else:
        print(json.dumps(change(options)))


if __name__ == "__main__":
    main()
