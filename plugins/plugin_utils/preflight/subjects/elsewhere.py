"""Variables in a directory that Ansible does not read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..directories import ROOT, beside_sources, read_directories
from ..inventory import Inventory

# What every deployment sets, and the group that needs it. If it is set elsewhere, other files of that name may be
# there on purpose.
_NEEDED = {"vllm_engines": "vllm", "proxy_keys": "proxy", "stack_domain": "nginx"}


def check_elsewhere(inventory: Inventory) -> Iterator[str]:
    """Variables that hosts lack are not in a group_vars beside the playbooks: Ansible reads the one beside the
    inventory."""
    lacking = [name for name, group in _NEEDED.items() if _is_lacking(inventory, group, name)]
    read = read_directories(inventory)
    parents = {ROOT, Path.cwd(), *(Path(playbook).parent for playbook in inventory.playbooks)}
    for directory in sorted({(parent / "group_vars").resolve() for parent in parents} - set(read)):
        if there := [name for name in lacking if _is_set(directory, name)]:
            beside = beside_sources(inventory)
            hint = (
                f"link or move it to {beside[0] / 'group_vars'}"
                if beside
                else "name an inventory file beside it with -i"
            )
            yield f"{directory} sets {', '.join(there)}, but is not read with this inventory: {hint}"


def _is_lacking(inventory: Inventory, group: str, name: str) -> bool:
    """Whether hosts of a group need a variable, and none has it."""
    hosts = inventory.hosts(group)
    return bool(hosts) and not any(name in inventory.names(host) for host in hosts)


def _is_set(directory: Path, name: str) -> bool:
    """Whether a file in a directory sets a variable. Encrypted and invalid files are searched as well."""
    line = re.compile(rf"^{name}\s*:", re.MULTILINE)
    files = (path for path in sorted(directory.rglob("*")) if path.suffix in (".yml", ".yaml") and path.is_file())
    return any(line.search(path.read_text(errors="replace")) for path in files)
