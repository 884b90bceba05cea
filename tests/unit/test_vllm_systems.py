"""Which file of the role vllm says what is installed on which system."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[2] / "roles" / "vllm"


@pytest.mark.parametrize(
    ("distribution", "family", "major", "chosen"),
    [
        ("Rocky", "RedHat", "9", "redhat-9.yml"),
        ("AlmaLinux", "RedHat", "9", "redhat-9.yml"),
        ("RedHat", "RedHat", "9", "redhat-9.yml"),
        ("Amazon", "RedHat", "2023", "amazon-2023.yml"),
        ("Debian", "Debian", "13", "debian.yml"),
        ("Ubuntu", "Debian", "24", "ubuntu-24.yml"),
        ("Ubuntu", "Debian", "20", None),
        ("Rocky", "RedHat", "8", None),
        ("Fedora", "RedHat", "42", None),
    ],
)
def test_a_system_has_its_own_packages(distribution: str, family: str, major: str, chosen: str | None) -> None:
    told = {"distribution": distribution, "os_family": family, "distribution_major_version": major}
    known = DataLoader().load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    templar = Templar(loader=DataLoader(), variables=known | {"ansible_facts": told})
    expression = "{{ __vllm_os_files | select('in', __vllm_known_os) | first | default(none) }}"
    assert templar.template(trust_as_template(expression)) == chosen
    assert {path.name for path in (ROLE / "vars").glob("*.yml")} == {*known["__vllm_known_os"], "main.yml"}
