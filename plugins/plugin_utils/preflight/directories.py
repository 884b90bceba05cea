"""Finds the directories that have files of variables, and the examples of such files."""

from __future__ import annotations

from pathlib import Path

from .inventory import Inventory
from .roles import ROLES_DIRECTORY

# The repository, or the installed collection.
ROOT = ROLES_DIRECTORY.parent


def read_directories(inventory: Inventory) -> dict[Path, str]:
    """The directories of variables beside the inventory and the playbook, with links resolved, and their kinds."""
    parents = {
        Path(str(found))
        for host in inventory.hosts()
        for found in (inventory.get(host, "inventory_dir"), inventory.get(host, "playbook_dir"))
        if found
    }
    parents |= set(beside_sources(inventory))
    return {
        (parent / kind).resolve(): kind
        for parent in parents
        for kind in ("group_vars", "host_vars")
        if (parent / kind).is_dir()
    }


def beside_sources(inventory: Inventory) -> list[Path]:
    """The directories of all inventory sources. (A host's inventory_dir is only the directory of the first source
    that names it.)"""
    paths = [Path(source) for source in inventory.sources]
    return [path if path.is_dir() else path.parent for path in paths if path.exists()]


def see_example(name: str, role: str) -> str:
    """Where to see an example: in the repository, or in the role's README, as an installed collection has no group_vars."""
    return f"see {name if (ROOT / name).exists() else ROLES_DIRECTORY / role / 'README.md'} for an example"
