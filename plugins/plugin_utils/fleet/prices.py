"""What things cost in us-east-1 on demand; other regions differ, most of them by less than a third."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRICES: dict[str, Any] = json.loads((Path(__file__).parent / "prices.json").read_text())
HOURS_OF_A_MONTH = 730


def usd_per_hour_of_type(instance_type: str, with_gpus: Mapping[str, Any]) -> float | None:
    """The price of an instance type; None if it is not known. `with_gpus` is the planner's table."""
    if instance_type in with_gpus and not instance_type.startswith("_"):
        price: float | None = with_gpus[instance_type]["usd_per_hour"]
        return price
    listed: dict[str, float] = PRICES["instance_hour"]
    return listed.get(instance_type)


def usd_per_hour_of_disk(size_gb: int) -> float:
    """The price of a gp3 volume."""
    return float(size_gb * PRICES["gp3_gb_month"] / HOURS_OF_A_MONTH)


PUBLIC_IPV4: float = PRICES["public_ipv4_hour"]
LOAD_BALANCER: float = PRICES["network_load_balancer_hour"]
