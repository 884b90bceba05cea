"""Where a request comes from: the peer's address, or the one that a trusted proxy reports."""

import ipaddress
from collections.abc import Iterable, Sequence

from starlette.types import Scope

from inference_proxy.config import IpAddress, IpNetwork


def client_address(scope: Scope, trusted: Sequence[IpNetwork]) -> IpAddress | None:
    """The client's address; None if no trusted source gives one.

    Only a peer in `trusted` may report another address, because anyone can write one into a header. In
    X-Forwarded-For, the last entry counts that is not itself a trusted proxy: each proxy appends what it saw,
    after whatever the client wrote. Without that header, X-Real-IP counts.
    """
    peer = _parse((scope.get("client") or ("", 0))[0])
    if peer is None or not within(peer, trusted):
        return peer
    reported = _header(scope, b"x-forwarded-for") or _header(scope, b"x-real-ip")
    for entry in reversed(reported.split(",")):
        address = _parse(entry.strip())
        if address is None or not within(address, trusted):
            return address
    return peer


def within(address: IpAddress, networks: Iterable[IpNetwork]) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> IpAddress | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # An IPv4 client of a dual-stack socket.
    return getattr(address, "ipv4_mapped", None) or address


def _header(scope: Scope, name: bytes) -> str:
    values = [value.decode("latin-1") for known, value in scope["headers"] if known == name]
    return ",".join(values)
