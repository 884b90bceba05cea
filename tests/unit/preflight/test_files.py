"""What is said of the files of variables: those that Ansible does not read, and secrets in clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from preflight_inventory import GOOD, ROOT, found, seen
from stack_preflight import load

files = load("subjects.files")

EMAIL = "nginx_certbot_email: ops@example.com\n"
SECRET = "$ANSIBLE_VAULT;1.1;AES256\n6162\n"


def said(directory: Path, *written: tuple[str, str]) -> list[str]:
    """Of the good inventory with these files beside it; without the directory's own path."""
    for name, text in written:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [line.replace(f"{directory}/", "") for line in found(inventory_dir=str(directory))]


@pytest.mark.parametrize(
    ("written", "unread"),
    [
        (
            {"group_vars/nginx.yml": "", "group_vars/nginx/a.yml": ""},
            "nginx.yml is not read, since group_vars/nginx/ exists: move it there",
        ),
        (
            {"group_vars/nginx.yml": "", "group_vars/nginx.yaml": ""},
            "nginx.yaml is not read, since group_vars/nginx.yml exists: move what it says",
        ),
        (
            {"group_vars/all.json": "", "group_vars/all": ""},
            "all.json is not read, since group_vars/all exists: move what it says",
        ),
        (
            {"host_vars/web1.yml": SECRET, "host_vars/web1/a.yml": ""},
            "web1.yml is not read, since host_vars/web1/ exists: move it there",
        ),
        ({"group_vars/nginx/v1.0/a.yml": ""}, "a.yml is not read: move it to group_vars/nginx/"),
        ({"group_vars/ngnix.yml": EMAIL}, "no group ngnix, but it sets nginx_certbot_email: did you mean nginx?"),
        ({"group_vars/ngnix/main.yml": EMAIL}, "no group ngnix, but it sets nginx_certbot_email: did you mean nginx?"),
        ({"host_vars/web01.yml": EMAIL}, "no host web01, but it sets nginx_certbot_email: did you mean web1?"),
        ({"host_vars/nginx.yml": EMAIL}, "no host nginx, but it sets nginx_certbot_email: move it to group_vars"),
        ({"group_vars/web1.yml": "stack_domain: a.b"}, "no group web1, but it sets stack_domain: move it to host_vars"),
        ({"group_vars/nginx.yml.txt": EMAIL}, "since its name ends in .txt: rename it to group_vars/nginx.yml"),
        ({"group_vars/nginx/web.YML": EMAIL}, "since its name ends in .YML: rename it to group_vars/nginx/web.yml"),
        ({"group_vars/nginx.ymal": EMAIL}, "since its name ends in .ymal: rename it to group_vars/nginx.yml"),
    ],
)
def test_a_file_that_is_not_read_is_said_once(tmp_path: Path, written: dict[str, str], unread: str) -> None:
    (line,) = said(tmp_path, *written.items())
    assert "_vars/" in line
    assert unread in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("group_vars/nginx.yml", EMAIL),
        ("group_vars/nginx/deep/er.json", "{}"),
        ("group_vars/all", EMAIL),
        ("host_vars/web1/main.yaml", EMAIL),
        ("host_vars/localhost.yml", EMAIL),
        ("group_vars/env_staging.yml", EMAIL),
        # One that is stopped today, and a group without a host today.
        ("host_vars/web2.yml", EMAIL),
        ("host_vars/engine2.yml", EMAIL),
        ("host_vars/web-a.yml", EMAIL),
        ("group_vars/env_preprod.yml", EMAIL),
        ("group_vars/gpu_large.yml", EMAIL),
        ("group_vars/others.yml", "their_variable: 1\n"),
        ("group_vars/others/vault.yml", SECRET),
        ("group_vars/vault.example.yml", "vault_proxy_keys: []\n"),
        ("group_vars/nginx.yml.bak", EMAIL),
        ("group_vars/nginx.yml~", EMAIL),
        ("group_vars/.nginx.yml", EMAIL),
        ("group_vars/README.md", EMAIL),
        ("group_vars/notes.txt", "to: do\n"),
        ("group_vars/broken.txt", "a: [\n"),
        ("group_vars/hashicorp_vault.yml", "hashicorp_vault_address: https://vault.example.com\n"),
    ],
)
def test_a_file_that_is_read_or_need_not_be_is_nothing(tmp_path: Path, name: str, text: str) -> None:
    assert said(tmp_path, (name, text)) == []


def test_a_name_whose_likeness_has_a_file_of_its_own_is_no_slip(tmp_path: Path) -> None:
    """Such as the one of a host that is stopped today."""
    assert said(tmp_path, ("host_vars/web01.yml", EMAIL), ("host_vars/web1.yml", EMAIL)) == []
    assert said(tmp_path, ("group_vars/ngnix.yml", EMAIL), ("group_vars/nginx/main.yml", EMAIL)) == []


@pytest.mark.parametrize(
    "name",
    [
        "group_vars/proxy/vault.yml",
        "group_vars/proxy/vault/keys.yml",
        "host_vars/api1/vault.yml",
        "group_vars/proxy/keys_vault.yml",
    ],
)
def test_a_vault_in_clear_is_found(tmp_path: Path, name: str) -> None:
    (line,) = said(tmp_path, (name, "vault_proxy_keys: [{name: a, key: k}]\n"))
    assert line == f"{name} is not encrypted: run ansible-vault encrypt {name}"
    assert said(tmp_path, (name, SECRET)) == []


VAULTED = '!vault "$ANSIBLE_VAULT;1.1;AES256\\n6162\\n"'


@pytest.mark.parametrize(
    "text",
    [
        f"vault_a_token: {VAULTED}\nvault_b_token: clear\n",
        "# as !vault does\nvault_smtp_password: clear\n",
        "vault_smtp: {user: u, password: clear}\n",
        "vault_api_keys: {alice: clear}\n",
        "vault_api_keys: [clear]\n",
        "vault_pin_secret: 1234\n",
    ],
)
def test_a_secret_in_clear_is_found_beside_others(tmp_path: Path, text: str) -> None:
    (line,) = said(tmp_path, ("group_vars/proxy/vault.yml", text))
    assert "is not encrypted" in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vault.yml", "---\n# the keys come from AWX\n"),
        ("vault.yml", "vault_proxy_keys: []\nvault_hf_token: ''\nvault_secret:\n"),
        ("vault.yml", "vault_proxy_keys: \"{{ lookup('amazon.aws.aws_secret', 'keys') | from_json }}\"\n"),
        ("vault.yml", "vault_proxy_keys: [{name: a, key: \"{{ lookup('env', 'KEY') }}\"}, {name: b, sha256: '00'}]\n"),
        ("vault.yml", f"vault_hf_token: {VAULTED}\n"),
        ("vault.yml", "vault_ssh_public_key: ssh-ed25519 AAAA\nvault_tls_key: /etc/ssl/private/a.key\n"),
        ("hashicorp_vault.yml", "vault_addr: https://vault.example.com\nvault_role: x\n"),
        *(
            (name, "vault_hf_token: change-me\n")
            for name in ("vault/README.md", "vault.yml.sample", "vault.yml.dist", "vault.template.yml")
        ),
    ],
)
def test_a_vault_without_a_secret_in_clear_is_nothing(tmp_path: Path, name: str, text: str) -> None:
    assert said(tmp_path, (f"group_vars/proxy/{name}", text)) == []


def test_a_vault_is_told_once_though_two_ways_lead_to_it(tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "group_vars").symlink_to("../variables")
    (tmp_path / "group_vars").symlink_to("variables")
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "vault.yml").write_text("vault_password: a\n")
    assert len(found(inventory_dir=str(tmp_path / "inventory"), playbook_dir=str(tmp_path))) == 1


def test_files_beside_each_source_of_the_inventory_are_looked_at(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "group_vars").mkdir(parents=True)
        (tmp_path / name / "group_vars" / "ngnix.yml").write_text(EMAIL)
        (tmp_path / name / "hosts.yml").touch()
    sources = (str(tmp_path / "one"), str(tmp_path / "two" / "hosts.yml"), "localhost,")
    lines = list(files.check_files(seen(GOOD, sources)))
    assert [line.partition("/group_vars")[0] for line in lines] == [str(tmp_path / "one"), str(tmp_path / "two")]


@pytest.mark.parametrize("directory", [ROOT, ROOT / "lab"])
def test_the_files_that_are_shipped_are_all_read(directory: Path) -> None:
    assert found(inventory_dir=str(directory)) == []
