"""One Debian 12 host with all three tiers: the same playbook, variables and service."""

from __future__ import annotations

from service import ServiceTests

testinfra_hosts = ["ssh://all1"]


class TestService(ServiceTests):
    engine_host = "all1"
