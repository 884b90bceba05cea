"""Variables that cannot be templated."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..directories import ROOT, see_example
from ..inventory import Inventory


def check_readable(inventory: Inventory) -> Iterator[str]:
    """Reports the variables that other checks could not read."""
    for name, error in sorted(inventory.unreadable.items()):
        hint = _vault_hint() if re.search(r"'vault_\w+' is undefined", error) else ""
        yield f"{name} cannot be read: {error}{hint}"


def _vault_hint() -> str:
    """How to create the vault file. Only a checkout has an example to copy."""
    example, vault = "group_vars/vault.example.yml", "group_vars/proxy/vault.yml"
    if (ROOT / example).exists():
        return (
            f". It comes from the vault: cp {example} {vault}, put in your own keys, then ansible-vault encrypt {vault}"
        )
    return f". It comes from the vault: write {vault} beside the inventory ({see_example(example, 'proxy')}), then ansible-vault encrypt it"
