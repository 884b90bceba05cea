"""The lab's daemons end with all that they started."""

from __future__ import annotations

import os
from pathlib import Path

from ec2lab import process


def test_a_daemon_ends_with_what_it_started(tmp_path: Path) -> None:
    """As the loop around systemd-nspawn does: hosts once outlived their lab, until no inotify instance was left."""
    record, child = tmp_path / "record", tmp_path / "child"
    os.mkfifo(child)
    process.start(["sh", "-c", f"sleep 600 & echo $! > {child}; wait"], record, tmp_path / "log")
    pid = int(child.read_text())
    process.stop(record)
    assert process.wait_gone(pid, 10)
