"""Engines that an operator has drained: one marker file each.

Every worker of the host sees the markers (reload.py).
"""

import re
from pathlib import Path

# In the marker of a roll, which restarts the engine: how long its last start took.
_START = re.compile(r"; a start takes (\d{1,5}) s(?:;|$)")
_OURS = "admin: "
_REASON_BYTES = 1024


class NotOurs(Exception):
    """Someone else created the marker; the message is their reason."""


def why_drained(directory: Path, engine: str) -> str | None:
    """The marker's text, "" if it cannot be read, None if there is no marker."""
    try:
        with (directory / engine).open(errors="replace") as marker:
            return marker.read(_REASON_BYTES).strip()
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def start_s(reason: str | None) -> int | None:
    """The seconds of the engine's last start, if its marker says that it restarts."""
    found = _START.search(reason or "")
    return int(found[1]) if found else None


def mark_drained(directory: Path, engine: str, reason: str) -> None:
    """Drain the engine. An existing marker is left unchanged. Raises OSError."""
    try:
        with (directory / engine).open("x") as marker:
            marker.write(f"{_OURS}{reason}\n")
    except FileExistsError:
        pass


def unmark_drained(directory: Path, engine: str) -> None:
    """Put the engine back if mark_drained() drained it; do nothing if it is not drained.

    Raises NotOurs, OSError.
    """
    reason = why_drained(directory, engine)
    if reason is None:
        return
    if not reason.startswith(_OURS.strip()):
        raise NotOurs(reason)
    (directory / engine).unlink(missing_ok=True)
