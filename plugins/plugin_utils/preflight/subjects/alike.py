"""Variables that must have the same value on all hosts of a tier."""

from __future__ import annotations

from collections.abc import Iterator

from ..inventory import Inventory

# By group: a client would notice if these differed, because any of the hosts may get its request.
_ALIKE = {
    "proxy": (
        "proxy_api_versions",
        "proxy_custom_endpoints",
        "proxy_isolate_prefix_cache",
        "proxy_keys",
        "proxy_limits",
        "proxy_models",
        "proxy_priorities",
        "proxy_store_host",
        "proxy_store_password",
        "proxy_store_port",
        "proxy_store_url",
        "proxy_store_username",
    ),
    "nginx": (
        "nginx_certbot_acme_directory",
        "nginx_certbot_acme_staging",
        "nginx_certbot_allow_cidrs",
        "nginx_certbot_allow_files",
        "nginx_certbot_certificates",
        "nginx_certbot_client_ca_file",
        "nginx_certbot_client_certificates",
        "nginx_certbot_cors_origins",
        "nginx_certbot_deny_cidrs",
        "nginx_certbot_deny_files",
        "nginx_certbot_maintenance_s",
        "nginx_certbot_path_cidrs",
        "nginx_certbot_tls_profile",
    ),
}


def check_alike(inventory: Inventory) -> Iterator[str]:
    """All hosts of a tier answer a request in the same way. Values are not shown, because some are secrets."""
    for group, names in _ALIKE.items():
        hosts = inventory.group(group)
        for name in names:
            readable = [(host, inventory.get(host, name)) for host in hosts]
            readable = [(host, value) for host, value in readable if inventory.has_value(host, name)]
            others = [host for host, value in readable if value != readable[0][1]]
            if others:
                yield (
                    f"{name} of {', '.join(others)} is not that of {readable[0][0]}, so one request would be answered unlike another: "
                    f"set it once for the group {group}, and take it out of host_vars"
                )
