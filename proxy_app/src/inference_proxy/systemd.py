"""What systemd is told, if it is the one that started us (Type=notify; see sd_notify(3))."""

import os
import socket


def notify(message: str) -> None:
    """Send one state, such as "READY=1". Does nothing where no service manager listens. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # An abstract socket is written with @ where its name has a zero byte.
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(name)
        channel.sendall(message.encode())
