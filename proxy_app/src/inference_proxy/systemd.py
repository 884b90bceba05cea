"""Notifies systemd if it started this process (Type=notify; see sd_notify(3))."""

import contextlib
import os
import socket

# systemd reads notifications at once, if it can read them at all.
_PATIENCE_S = 1.0


def notify(message: str) -> None:
    """Send one state, such as "READY=1". Does nothing if no service manager listens. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # The name of an abstract socket is written with @ for its leading zero byte.
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(_PATIENCE_S)
        channel.connect(name)
        channel.sendall(message.encode())


def notify_alive() -> None:
    """Tell systemd that the worker is alive.

    Call this well within the unit's WatchdogSec=, from the worker's event loop, so that it stops when the
    loop does.
    """
    if os.environ.get("WATCHDOG_USEC"):
        # A failed notification is repeated soon.
        with contextlib.suppress(OSError):
            notify("WATCHDOG=1")
