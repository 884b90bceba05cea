"""The service's public name."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from preflight_inventory import problems


def test_a_domain_that_leads_elsewhere(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["web1"]["stack_address"] = "10.9.9.9"
    (problem,) = problems(inventory)
    assert "domain localhost resolves to" in problem
    assert "nginx_certbot_public_addresses" in problem


def test_a_domain_behind_a_load_balancer_that_is_named(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["web1"].update(stack_address="10.9.9.9", nginx_certbot_public_addresses=["127.0.0.1", "::1"])
    assert problems(inventory) == []


def test_a_public_address_may_be_written_in_any_form(
    inventory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("2001:db8::1", 443, 0, 0))])
    inventory["hostvars"]["web1"].update(nginx_certbot_public_addresses=["2001:0DB8:0:0::1"])
    assert problems(inventory) == []


def test_a_domain_that_does_not_resolve(inventory: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    assert "domain localhost does not resolve" in problems(inventory)[0]
