"""A stream of events on its way: passed on event by event, whatever pieces it comes in."""

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.http.sse import end_of_events

# An event that is longer than this is passed on in pieces rather than kept.
_EVENT_LIMIT = 256 * 1024
# The line that names an event, with which it begins, is not longer.
_EVENT_NAME_BYTES = 64


class EventStream:
    """`held` is the beginning of an event whose end has not come; `is_open` says that an event has begun, of
    which what comes next is a part."""

    __slots__ = ("_exchange", "_in_pieces", "_opened", "held", "is_open")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._in_pieces = False  # an event that is too long to be kept is on its way
        self._opened = b""  # the beginning of the last such event
        self.held = b""
        self.is_open = False

    def is_complete(self) -> bool:
        """Whether the stream has come to an end that the engine meant."""
        return not self._in_pieces and self._exchange.dialect.is_complete(self.end(self.held))

    def end(self, rest: bytes) -> bytes:
        """The last that was passed on, with the `rest` that was not."""
        return b"".join((self._opened, *self._exchange.tail, rest))

    def whole(self, chunk: bytes) -> bytes:
        """The whole events of what was held and `chunk`. The beginning of an unfinished one is held: no
        error event then lands in the middle of another, where no client could read it. Engines write event by
        event: this is rare."""
        data = self.held + chunk if self.held else chunk
        self.held = b""
        if data.endswith(b"\n\n") and not self._in_pieces:
            self.is_open = False
            return data
        cut = end_of_events(data)
        if self._in_pieces and not cut:
            # The end of a line may be half of the event's end.
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
