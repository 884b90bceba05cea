"""Types and helpers for HTTP messages that both sides use."""

from collections.abc import Mapping, Sequence

HeaderFields = Mapping[bytes, bytes]
"""A client's header fields by lower-case name; where a name occurs twice, the first."""


def fields_of(headers: Sequence[tuple[bytes, bytes]]) -> HeaderFields:
    return dict(reversed(headers))


def frame(piece: bytes) -> bytes:
    """A piece of a body as an HTTP/1.1 chunk. It must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


Header = tuple[bytes, bytes]
