"""The lab's daemons end with all that they started."""

from __future__ import annotations

import os
import subprocess
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


def test_what_runs_in_a_host_is_known_by_its_root() -> None:
    """The link /proc/PID/root did not tell: hosts outlived their lab again when systemd-nspawn had ended before them."""
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert os.getpid() in process.inside(device)
    assert process.inside("no-such-device") == []
