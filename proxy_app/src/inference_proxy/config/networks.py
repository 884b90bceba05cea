"""IP networks in the configuration: where a key may be used from, and which proxies are trusted."""

import ipaddress
from typing import Annotated

from pydantic import BeforeValidator

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(value: object) -> IpNetwork:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"write a network such as 10.0.0.0/8, or one address: {error}") from error


Network = Annotated[IpNetwork, BeforeValidator(_network)]
