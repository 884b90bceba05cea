"""Where a request comes from: the peer's address, or what a trusted proxy says of its own peer."""

import ipaddress
from collections.abc import Iterable, Sequence

from starlette.types import Scope

from inference_proxy.config import IpAddress, IpNetwork


def client_address(scope: Scope, trusted: Sequence[IpNetwork]) -> IpAddress | None:
    """The client's address; None when nobody who is believed tells one.

    Only a peer in `trusted` is believed: anybody else could write any address into a header. Of
    X-Forwarded-For the last entry counts that is not itself a trusted proxy's, since each proxy appends what
    it saw and clients write what they like before it; without that header X-Real-IP.
    """
    peer = _parse((scope.get("client") or ("", 0))[0])
    if peer is None or not within(peer, trusted):
        return peer
    told = _header(scope, b"x-forwarded-for") or _header(scope, b"x-real-ip")
    for entry in reversed(told.split(",")):
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
    # An IPv4 client of a socket that listens on both.
    return getattr(address, "ipv4_mapped", None) or address


def _header(scope: Scope, name: bytes) -> str:
    values = [value.decode("latin-1") for known, value in scope["headers"] if known == name]
    return ",".join(values)
