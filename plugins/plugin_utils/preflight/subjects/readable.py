"""Variables that cannot be templated."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..inventory import Inventory

_VAULT_HINT = (
    ". It comes from the vault: cp group_vars/vault.example.yml group_vars/proxy/vault.yml, put in your own keys, "
    "then ansible-vault encrypt group_vars/proxy/vault.yml"
)


def check_readable(inventory: Inventory) -> Iterator[str]:
    """Variables that another check could not read."""
    for name, error in sorted(inventory.unreadable.items()):
        hint = _VAULT_HINT if re.search(r"'vault_\w+' is undefined", error) else ""
        yield f"{name} cannot be read: {error}{hint}"
