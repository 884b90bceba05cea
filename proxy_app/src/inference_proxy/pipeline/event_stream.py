"""Passes a stream of events on event by event, however the engine's bytes are split."""

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.http.sse import end_of_events

# A longer event is passed on in pieces instead of being buffered.
_EVENT_LIMIT = 256 * 1024
# Longer than the line at the beginning of an event that names it.
_EVENT_NAME_BYTES = 64


class EventStream:
    """One stream.

    `held` is the beginning of an incomplete event. `is_open`: an event has been passed on in part, and the
    next bytes belong to it.
    """

    __slots__ = ("_exchange", "_in_pieces", "_opened", "held", "is_open")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._in_pieces = False  # an event too long to buffer is being passed on
        self._opened = b""  # the beginning of the last such event
        self.held = b""
        self.is_open = False

    def is_complete(self) -> bool:
        """Whether the stream has reached its API's regular end."""
        return not self._in_pieces and self._exchange.dialect.is_complete(self.end(self.held))

    def end(self, rest: bytes) -> bytes:
        """The last bytes that were passed on, followed by `rest`, which was not."""
        return b"".join((self._opened, *self._exchange.tail, rest))

    def whole(self, chunk: bytes) -> bytes:
        """The complete events in what was held and `chunk`. The beginning of an incomplete one is held.

        So an error event never lands in the middle of another event, where no client could parse it. Engines
        write whole events: an incomplete one is rare.
        """
        data = self.held + chunk if self.held else chunk
        self.held = b""
        if data.endswith(b"\n\n") and not self._in_pieces:
            self.is_open = False
            return data
        cut = end_of_events(data)
        if self._in_pieces and not cut:
            # A line end may be half of the empty line that ends the event.
            cut = len(data.rstrip(b"\r\n"))
            self._exchange.find_usage(data[:cut])
        elif len(data) - cut > _EVENT_LIMIT:
            self._in_pieces = True
            self._opened = data[cut : cut + _EVENT_NAME_BYTES]
            cut = len(data)
            self._exchange.find_usage(data)
        elif self._in_pieces:
            self._in_pieces = False
            self._exchange.find_usage(data[:cut])
        self.held = data[cut:]
        self.is_open = self._in_pieces or bool(self.held)
        return data[:cut]
