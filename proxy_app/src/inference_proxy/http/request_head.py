"""Writes the head of a request to an engine: the only place where text becomes HTTP."""

import re
from collections.abc import Mapping
from functools import lru_cache

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TARGET = re.compile(r"/[!-~]*")
# RFC 9110, 5.5, without obsolete line folding: a control character could end the header and begin another.
_VALUES = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# These frame the message or control its connection, which is the HTTP client's business alone.
_OWN = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-connection",
     "te", "trailer", "transfer-encoding", "upgrade", "user-agent"}
)  # fmt: skip
_BODILESS = frozenset({"GET", "HEAD"})


def request_head(
    method: str, host: str, target: str, headers: Mapping[str, str], length: int, *, close: bool = False
) -> bytes:
    """Request line and headers for a body of `length` bytes, including the empty line at the end.

    `target` is path and query as sent. Header names may have any case. Raises ValueError for anything that
    could be read as more than one request, or as a request of another length: nothing is repaired.
    """
    head = [_beginning(method, host, target)]
    for name, value in headers.items():
        head += (_field(name), value, "\r\n")
    if not _VALUES.fullmatch("".join(headers.values())):
        bad = next(name for name, value in headers.items() if not _VALUES.fullmatch(value))
        raise ValueError(f"header {bad!r}: its value holds control characters, or others beyond latin-1")
    if length or method not in _BODILESS:
        head.append(f"content-length: {length}\r\n")
    if close:
        head.append("connection: close\r\n")
    head.append("\r\n")
    return "".join(head).encode("latin-1")


# The parts that all requests share are built once for each engine and path, and once for each header name.
@lru_cache(maxsize=1024)
def _beginning(method: str, host: str, target: str) -> str:
    if not _TOKEN.fullmatch(method):
        raise ValueError(f"method {method!r}: letters only, such as POST")
    if not _TARGET.fullmatch(target):
        raise ValueError(
            f"path {target!r}: it must begin with / and hold neither spaces nor control characters"
        )
    # An answer's bytes are passed on unchanged, so the engine must not compress them.
    return (
        f"{method} {target} HTTP/1.1\r\nhost: {host}\r\naccept-encoding: identity\r\n"
        "user-agent: ec2-inference-proxy\r\n"
    )


@lru_cache(maxsize=256)
def _field(name: str) -> str:
    if not _TOKEN.fullmatch(name) or name.lower() in _OWN:
        raise ValueError(f"header {name!r}: not a name that a request to an engine may carry")
    return f"{name}: "
