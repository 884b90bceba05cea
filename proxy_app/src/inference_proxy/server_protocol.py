"""uvicorn's HTTP protocol, with a way by which a chunk of a stream need not wait for a task's turn."""

from collections.abc import Callable

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

ChunkWriter = Callable[[bytes], bool]
"""Writes a piece of the body to the client as `send()` would, but at once and without `await`.

False means that it did not, and that the piece is for `send()`: the client reads too slowly or has left, or
the body is not chunked. Not to be called while a `send()` is under way, nor with b"", which ends a body.
"""

_EXTENSION = "inference_proxy.chunk_writer"


class Protocol(HttpToolsProtocol):
    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # The task that runs the application begins later, so it finds this in its scope.
        self.scope["extensions"] = {_EXTENSION: {"cycle": self.cycle}}


def chunk_writer(scope: Scope) -> ChunkWriter | None:
    """None under a server that does not run this protocol: then everything goes by `send()`."""
    extension = scope.get("extensions", {}).get(_EXTENSION)
    if extension is None:
        return None
    cycle: RequestResponseCycle = extension["cycle"]
    flow, transport = cycle.flow, cycle.transport

    def write(piece: bytes) -> bool:
        if flow.write_paused or not cycle.chunked_encoding or cycle.disconnected:
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    return write
