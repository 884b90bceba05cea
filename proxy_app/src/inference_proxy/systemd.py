"""What systemd is told, if it is the one that started us (Type=notify; see sd_notify(3))."""

import contextlib
import os
import socket

# It reads what it is told at once, if it can at all.
_PATIENCE_S = 1.0


def notify(message: str) -> None:
    """Send one state, such as "READY=1". Does nothing where no service manager listens. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # An abstract socket is written with @ where its name has a zero byte.
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(_PATIENCE_S)
        channel.connect(name)
        channel.sendall(message.encode())


def notify_alive() -> None:
    """To be called well within the unit's WatchdogSec=, by what stops with the worker: its event loop."""
    if os.environ.get("WATCHDOG_USEC"):
        # The next time will do as well.
        with contextlib.suppress(OSError):
            notify("WATCHDOG=1")
