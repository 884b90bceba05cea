"""The service's public name."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

from ..forms import as_address, as_list
from ..inventory import Inventory


def check_domain(inventory: Inventory) -> Iterator[str]:
    """The public name resolves to the web tier."""
    hosts = inventory.group("nginx")
    expected = {
        as_address(inventory.get(host, name))
        for host in hosts
        for name in ("stack_address", "ansible_host", "aws_public_ip_address")
    }
    domains: set[str] = set()
    for host in hosts:
        expected |= {as_address(address) for address in as_list(inventory.get(host, "nginx_certbot_public_addresses"))}
        value = inventory.get(host, "nginx_certbot_domains") or [inventory.get(host, "stack_domain")]
        domains |= {str(domain) for domain in value if domain}
        for certificate in as_list(inventory.get(host, "nginx_certbot_certificates")):
            if isinstance(certificate, Mapping):
                domains |= {str(domain) for domain in as_list(certificate.get("domains"))}
    if hosts and not domains:
        yield "stack_domain is not set: name the service's public host name in group_vars/all.yml"
    for domain in sorted(domains) if hosts else []:
        try:
            found = {as_address(entry[4][0]) for entry in socket.getaddrinfo(domain, 443, proto=socket.IPPROTO_TCP)}
        except (OSError, UnicodeError) as error:
            yield f"domain {domain} does not resolve ({getattr(error, 'strerror', error)}): point its DNS record at the web tier ({', '.join(hosts)})"
            continue
        is_known = all(inventory.has_value(host, "nginx_certbot_public_addresses") for host in hosts)
        if is_known and not found & (expected - {""}):
            yield (
                f"domain {domain} resolves to {', '.join(sorted(found))}, none of which is an address of the web tier ({', '.join(hosts)}): "
                "correct the DNS record, or name the load balancer's addresses in nginx_certbot_public_addresses"
            )
