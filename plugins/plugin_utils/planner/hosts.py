"""The GPUs of a host, from its EC2 instance type or from the output of nvidia-smi."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .flags import PlanError
from .memory import Card

# The share of the memory printed by nvidia-smi that PyTorch can use, for cards without a published figure: lower than all published ones.
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


def host_of_gpus(listed: str, table: Mapping[str, Mapping[str, Any]]) -> Host | None:
    """The GPUs that `nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits` lists, in MiB; None without any.

    Raises PlanError for GPUs of several kinds, because no model is divided among different GPUs.
    """
    lines = [line.rpartition(",") for line in listed.splitlines() if line.rpartition(",")[2].strip().isdigit()]
    gpus = [(name.strip(), int(memory_mib)) for name, _, memory_mib in lines]
    if not gpus:
        return None
    if len({name for name, _ in gpus}) > 1:
        raise PlanError(
            [
                f"it has GPUs of several kinds ({', '.join(sorted({name for name, _ in gpus}))}): engines cannot be planned for it"
            ]
        )
    name, memory_mib = gpus[0]
    rows = [
        row
        for kind, row in table.items()
        if not kind.startswith("_") and row["gpu"].endswith(name.removeprefix("NVIDIA "))
    ]
    known = next(
        (
            row["torch_total_gib"]
            for row in rows
            if row["torch_total_gib"] and abs(row["memory_mib"] - memory_mib) < 1024
        ),
        None,
    )
    card = Card(
        name=name,
        total_gib=known or memory_mib / 1024 * _SEEN_BY_TORCH,
        # A card without a row of its own is planned as the oldest generation that supports everything vLLM needs.
        compute_capability=rows[0]["compute_capability"] if rows else 8.0,
        nvlink=len(gpus) > 1 and any(row["nvlink"] for row in rows),
        exact=known is not None,
    )
    return Host(f"{len(gpus)} x {name}", len(gpus), card)


def all_hosts(table: Mapping[str, Mapping[str, Any]]) -> list[Host]:
    """All types of the table, the cheapest first; those without a price last."""
    hosts = [host_of_type(name, table) for name in table if not name.startswith("_")]
    return sorted(hosts, key=lambda host: (host.usd_per_hour is None, host.usd_per_hour or 0.0, host.name))
