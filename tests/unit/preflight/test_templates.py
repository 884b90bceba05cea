"""Values with templates: those that can be filled in now, and those that only a role can fill in."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.template import trust_as_template
from preflight_inventory import GOOD, OPTIONS, SECRET, checks, inventory_module
from stack_preflight import load

DEFAULTS = load("roles").role_defaults(OPTIONS)
NAMES = {name for variables in OPTIONS.values() for name in variables}


class Hostvars(dict[str, Any]):
    """As Ansible's, of which only the raw values are used."""

    def raw_get(self, host: str) -> Any:
        return self[host]


def trusted(value: Any) -> Any:
    """A value whose templates Ansible fills in, as it does those of files."""
    if isinstance(value, dict):
        return {name: trusted(item) for name, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def said_of_each(variables: dict[str, Any]) -> list[str]:
    """The problems of the good inventory with these variables, by host."""
    hostvars = {host: {**its, **variables.get(host, {}), "ansible_facts": {}} for host, its in GOOD["hostvars"].items()}
    templated = load("templates").TemplatedHostvars(Hostvars(hostvars), DataLoader(), DEFAULTS, NAMES)
    found: list[str] = checks.all_problems(inventory_module.Inventory(GOOD["groups"], templated, OPTIONS))
    return found


def said(*hosts: str, **variables: Any) -> list[str]:
    """The problems of the good inventory with these variables for these hosts, by default for all."""
    return said_of_each({host: trusted(variables) for host in hosts or GOOD["hostvars"]})


@pytest.mark.parametrize(
    "variables",
    [
        {"proxy_store_url": "redis://{{ hostvars['api1'].stack_address }}:6379/0"},
        {"proxy_admin_port": "{{ proxy_port + 1000 }}"},
        {"nginx_certbot_domains": ["{{ vars['service'] }}"], "service": "localhost"},
        # Of facts, of a role, of a play, of a role's default that is itself a template.
        {"nvidia_drivers_kernel_headers": ["linux-headers-{{ ansible_facts['kernel'] }}"]},
        {"proxy_workers": "{{ ansible_facts['processor_vcpus'] }}"},
        {"proxy_workers": "{{ ansible_processor_vcpus }}"},
        {"vllm_requirements": "{{ role_path }}/files/requirements-cpu.txt"},
        {"vllm_environment": {"X": "{{ ansible_play_hosts | length }}"}},
        {
            "nginx_certbot_public_addresses": ["{{ ours }}"],
            "ours": "{{ hostvars['web1'].ansible_default_ipv4.address }}",
        },
        {"stack_domain": "{{ ansible_facts['fqdn'] }}"},
    ],
)
def test_what_a_role_can_fill_in_is_no_problem(variables: dict[str, Any]) -> None:
    assert said(**variables) == []


def test_what_is_filled_in_is_checked() -> None:
    assert "proxy_port is 80, but must be" in said(proxy_port="{{ hostvars['web1'].port_of_web }}", port_of_web=80)[0]


def test_an_address_that_others_need_cannot_wait_for_facts() -> None:
    (line,) = said("engine1", stack_address="{{ ansible_facts['default_ipv4']['address'] }}")
    assert line.startswith("host engine1: stack_address is made of facts")


@pytest.mark.parametrize(
    ("value", "said_of_it"),
    [
        ("{{ nothing }}", "'nothing' is undefined: set it, or correct the name"),
        ("{{ omit }}", "omit has no meaning for a whole variable"),
    ],
)
def test_what_no_role_can_fill_in_is_said(value: str, said_of_it: str) -> None:
    (line,) = said(proxy_admin_key=value)
    assert line.startswith("proxy_admin_key of api1 cannot be read: ")
    assert said_of_it in line


def test_of_addresses_that_cannot_be_read_the_domain_is_not_said_to_lead_elsewhere() -> None:
    (line,) = said("web1", stack_address="10.9.9.9", nginx_certbot_public_addresses=["{{ nothing }}"])
    assert "'nothing' is undefined" in line


@pytest.mark.parametrize("tier", ["proxy", "vllm", "nginx"])
def test_a_value_is_asked_for_where_it_is_read(tier: str) -> None:
    """It may be set for all hosts, and made of a variable that only the hosts of one tier have."""
    (host,) = GOOD["groups"][tier]
    name = {"proxy": "proxy_admin_key", "vllm": "vllm_models_dir", "nginx": "nginx_certbot_email"}[tier]
    value = {"proxy": SECRET[::-1], "vllm": "/srv/models", "nginx": "ops@example.com"}[tier]
    variables = {name: "{{ of_the_vault }}"}
    (line,) = said(**variables)
    assert line.startswith(f"{name} of {host} cannot be read: 'of_the_vault' is undefined")
    hostvars = {other: trusted(variables) for other in GOOD["hostvars"]}
    hostvars[host]["of_the_vault"] = value
    assert said_of_each(hostvars) == []


def test_an_encrypted_value_without_a_password() -> None:
    secret = VaultLib([("default", VaultSecret(b"right"))]).encrypt(SECRET[::-1]).decode()
    text = "proxy_admin_key: !vault |\n" + "".join(f"  {line}\n" for line in secret.splitlines())
    (line,) = said("api1", **DataLoader().load(text))
    assert line.startswith("proxy_admin_key of api1 cannot be read: it is encrypted, and no vault password was given")


def test_an_encrypted_value_with_another_password() -> None:
    """Ansible's own words, since a test cannot give a password and take it back."""
    error = RuntimeError("Error rendering template")
    error.__cause__ = ValueError("Decryption failed (no vault secrets were found that could decrypt).")
    assert "with another vault password than" in load("templates").why_unreadable("proxy_keys", "api1", error)
