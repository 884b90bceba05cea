"""Words that both sides of HTTP share."""

from collections.abc import Mapping, Sequence

HeaderFields = Mapping[bytes, bytes]
"""Header fields of a client's request by their names in lower case; of two of one name the first."""


def fields_of(headers: Sequence[tuple[bytes, bytes]]) -> HeaderFields:
    return dict(reversed(headers))


def frame(piece: bytes) -> bytes:
    """A piece of a body as a chunk of HTTP/1.1; an empty one would end the body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


Header = tuple[bytes, bytes]
