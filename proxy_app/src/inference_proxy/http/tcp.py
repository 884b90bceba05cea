"""TCP keep-alive: probes on connections that are silent, as during a long answer that is not streamed."""

import socket
import sys

# EC2 and its load balancers forget a connection that is silent for 350 s, and neither side is told.
_IDLE_S = 120
_INTERVAL_S = 30
_PROBES = 4


def probe_when_silent(connection: socket.socket) -> None:
    """Keep a silent connection known on its way, and notice a peer that is gone.

    Connections that a listening socket accepts inherit it.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
