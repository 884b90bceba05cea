"""EC2 instances: what the inventory plugin stack_ec2 found to be mended, and the one environment that is managed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..forms import as_dict, as_list
from ..inventory import Inventory


def check_instances(inventory: Inventory) -> Iterator[str]:
    """No running instance of the stack is in no tier or in no environment."""
    yield from _said(inventory, "aws_problems")


def check_environment(inventory: Inventory) -> Iterator[str]:
    """stack_environment says which instances were chosen. In group_vars it would come too late for that."""
    for host in sorted(inventory.everyone()):
        tags = {name.lower(): value for name, value in as_dict(inventory.get(host, "aws_tags")).items()}
        wanted = inventory.get(host, "stack_environment")
        if tags and wanted is not None and str(wanted) != str(tags.get("environment", "")).strip():
            yield (
                f"host {host}: stack_environment is {wanted}, but its instance has Environment={tags.get('environment', '')}: the environment "
                "is chosen when the inventory is read, so name it with -e or STACK_ENVIRONMENT, not in group_vars"
            )


def notice_names(inventory: Inventory) -> Iterator[str]:
    """Hosts that are not called as their instances are."""
    yield from _said(inventory, "aws_notices")


def _said(inventory: Inventory, variable: str) -> Iterator[Any]:
    """The sentences of the inventory plugin, which all hosts have."""
    for host in sorted(inventory.everyone())[:1]:
        yield from as_list(inventory.get(host, variable))
