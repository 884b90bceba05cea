"""The GPUs of a host: by its EC2 instance type, or as nvidia-smi tells them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .flags import PlanError
from .memory import Card

# What PyTorch sees of the memory that nvidia-smi prints, where nobody has published it: less than on any card where somebody has.
_SEEN_BY_TORCH = 0.96


@dataclass(frozen=True)
class Host:
    """GPUs of one kind, and what the host costs on demand in US dollars per hour, if known."""

    name: str
    gpus: int
    card: Card
    usd_per_hour: float | None = None


def host_of_type(instance_type: str, table: Mapping[str, Mapping[str, Any]]) -> Host:
    """The GPUs of an EC2 instance type. Raises PlanError for one that has none, or is not in the table."""
    row = table.get(instance_type)
    if row is None or instance_type.startswith("_"):
        near = difflib.get_close_matches(str(instance_type), [name for name in table if not name.startswith("_")], n=1)
        hint = f"did you mean {near[0]}?" if near else "see plugins/plugin_utils/planner/instances.json"
        raise PlanError([f"{instance_type} is no EC2 type with NVIDIA GPUs that is known here: {hint}"])
    total, exact = row["torch_total_gib"], row["torch_total_gib"] is not None
    card = Card(
        name=row["gpu"],
        total_gib=total if exact else row["memory_mib"] / 1024 * _SEEN_BY_TORCH,
        compute_capability=row["compute_capability"],
        nvlink=row["nvlink"],
        exact=exact,
    )
    return Host(instance_type, row["gpus"], card, row["usd_per_hour"])


def all_hosts(table: Mapping[str, Mapping[str, Any]]) -> list[Host]:
    """All types of the table, the cheapest first; those without a price last."""
    hosts = [host_of_type(name, table) for name in table if not name.startswith("_")]
    return sorted(hosts, key=lambda host: (host.usd_per_hour is None, host.usd_per_hour or 0.0, host.name))
