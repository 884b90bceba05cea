"""Engines that are taken out by hand: one marker file each, seen by every worker of the host (reload.py)."""

from pathlib import Path

_OURS = "admin: "
_REASON_BYTES = 1024


class NotOurs(Exception):
    """The marker was put there by somebody else, whose reason this is."""


def why_drained(directory: Path, engine: str) -> str | None:
    """What its marker says, "" if it cannot be read; None if there is none."""
    try:
        with (directory / engine).open(errors="replace") as marker:
            return marker.read(_REASON_BYTES).strip()
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def mark_drained(directory: Path, engine: str, reason: str) -> None:
    """Take it out. A marker that is there already stays as it is. Raises OSError."""
    try:
        with (directory / engine).open("x") as marker:
            marker.write(f"{_OURS}{reason}\n")
    except FileExistsError:
        pass


def unmark_drained(directory: Path, engine: str) -> None:
    """Put it back, if `drain` took it out; one that is not drained is left alone. Raises NotOurs, OSError."""
    reason = why_drained(directory, engine)
    if reason is None:
        return
    if not reason.startswith(_OURS.strip()):
        raise NotOurs(reason)
    (directory / engine).unlink(missing_ok=True)
