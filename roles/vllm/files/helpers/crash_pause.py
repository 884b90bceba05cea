#!/usr/bin/env python3
"""Wait before an engine that keeps crashing is started again: each pause is twice as long as the one before.

    crash_pause.py NAME     called by the unit before each start

The first three restarts have no pause. A run of half an hour, or a start by hand, resets the count of crashes, which is kept in
``/run/vllm-NAME/crashes.json``. The journal and ``systemctl status`` show the count and the time of the next start.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

RUN = Path("/run")
FIRST_PAUSE_S = 10
LONGEST_PAUSE_S = 300
# Restarts without a pause.
AT_ONCE = 3
# A run of this length resets the count.
GOOD_RUN_S = 1800


def restarts(name: str) -> int:
    """How often systemd has restarted the unit by itself since it was last started by hand."""
    command = ["systemctl", "show", f"vllm@{name}.service", "--property=NRestarts", "--value"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip() or 0)


def crashes_in_a_row(record: Path, by_itself: bool, now_s: float) -> int:
    """Count the crashes in a row before this start, and record them for the next one; seconds are since boot."""
    try:
        known: dict[str, float] = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {"crashes": 0, "started_s": now_s}
    in_a_row = now_s - known["started_s"] < GOOD_RUN_S
    crashes = (int(known["crashes"]) if in_a_row else 0) + 1 if by_itself else 0
    record.write_text(json.dumps({"crashes": crashes, "started_s": now_s}))
    return crashes


def pause_s(crashes: int) -> int:
    """How long to wait before the start that follows so many crashes in a row."""
    if crashes <= AT_ONCE:
        return 0
    # Twice as long each time; bounded before it is computed, since a row may be thousands long.
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S << min(crashes - AT_ONCE - 1, 10))


def tell(text: str) -> None:
    """Write it to the journal, and send it to systemd for ``systemctl status``."""
    print(text, flush=True)
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(f"STATUS={text}".encode(), address.replace("@", "\0", 1))


def main(arguments: list[str]) -> int:
    name = arguments[0]
    record = RUN / f"vllm-{name}" / "crashes.json"
    crashes = crashes_in_a_row(record, restarts(name) > 0, time.monotonic())
    if crashes == 0:
        return 0
    wait_s = pause_s(crashes)
    if wait_s:
        at = datetime.fromtimestamp(time.time() + wait_s, timezone.utc).strftime("%H:%M:%S")
        tell(f"crashed {crashes} times in a row; the next start is at {at} UTC, in {wait_s} s")
        time.sleep(wait_s)
        # The run is counted from its own begin.
        record.write_text(json.dumps({"crashes": crashes, "started_s": time.monotonic()}))
    tell(f"restarted after crash {crashes} in a row")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
