"""What is removed from a host before an image is made of it, and what stays."""

from __future__ import annotations

from pathlib import Path

import clean_image
import pytest

GONE = [
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/vllm/fetch.env",
    "etc/systemd/system/vllm@.service",
    "home/admin/.ssh/authorized_keys",
    "home/admin/.bash_history",
    "home/admin/.aws/credentials",
    "root/.ssh/authorized_keys",
    "opt/vllm/releases/1/engines/x.env",
    "var/lib/cloud/data/instance-id",
    "var/lib/amazon/ssm/Vault/Store/RegistrationKey",
    "var/log/journal/0123/system.journal",
]
EMPTIED = ["etc/machine-id", "var/log/cloud-init.log", "var/log/apt/history.log"]
KEPT = [
    "etc/ssh/sshd_config",
    "home/admin/.ssh/config",
    "opt/vllm/venvs/1/bin/python",
    "opt/vllm/libexec/fetch_model.py",
    "var/lib/vllm/models/m@1/config.json",
    "var/lib/vllm/cache/x/torch_compile_cache/1",
    "etc/systemd/system/vllm-instance-store.service",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in [*GONE, *EMPTIED, *KEPT]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "opt/vllm/current").symlink_to("/opt/vllm/releases/1")
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "vllm@x.service").symlink_to("/etc/systemd/system/vllm@.service")
    return tmp_path


def text(root: Path, name: str) -> str | None:
    path = root / name
    return path.read_text() if path.exists() else None


def test_secrets_and_identity_go_and_what_was_prepared_stays(root: Path) -> None:
    assert len(clean_image.clean(root, dry_run=False)) > len(EMPTIED)
    assert {name: text(root, name) for name in GONE} == dict.fromkeys(GONE)
    assert {name: text(root, name) for name in EMPTIED} == dict.fromkeys(EMPTIED, "")
    assert {name: text(root, name) for name in KEPT} == dict.fromkeys(KEPT, "content")
    assert not (root / "opt/vllm/current").is_symlink()
    assert not (root / "etc/systemd/system/multi-user.target.wants/vllm@x.service").is_symlink()


def test_a_second_run_finds_nothing(root: Path) -> None:
    clean_image.clean(root, dry_run=False)
    assert clean_image.clean(root, dry_run=False) == []


def test_a_dry_run_says_the_same_and_removes_nothing(root: Path) -> None:
    before = sorted(root.rglob("*"))
    told = clean_image.clean(root, dry_run=True)
    assert sorted(root.rglob("*")) == before
    assert {name: text(root, name) for name in EMPTIED} == dict.fromkeys(EMPTIED, "content")
    assert told == clean_image.clean(root, dry_run=False)
