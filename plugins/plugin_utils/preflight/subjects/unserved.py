"""Models that no engine of today's inventory serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import display
from ..forms import as_dicts, as_list
from ..inventory import Inventory
from ..served import misspelt_model, models_of_limits, served_models


def notice_unserved_models(inventory: Inventory) -> Iterator[str]:
    """Other checks report misspelt names as problems. The engines of these models may just be stopped."""
    served = served_models(inventory)
    named = [model for host in inventory.group("proxy") for model in _named_models(inventory, host)]
    lacking = {str(model) for model in named if model not in served and not misspelt_model(model, served)}
    if lacking:
        # A key may have been written in a model's place.
        shown = ", ".join(display.quoted(model) for model in sorted(lacking))
        yield (
            f"proxy_keys, proxy_models or proxy_limits name {shown}, which no engine of this inventory serves "
            f"(they serve {', '.join(sorted(served)) or 'none'}): right only if its engines are stopped now"
        )


def _named_models(inventory: Inventory, host: str) -> list[Any]:
    """All models that the variables of a proxy name."""
    found = [model.get("name") for model in as_dicts(inventory.get(host, "proxy_models"))]
    found += models_of_limits(inventory.get(host, "proxy_limits"))
    for key in as_dicts(inventory.get(host, "proxy_keys")):
        found += as_list(key.get("models")) + models_of_limits(key.get("limits"))
    return [model for model in found if isinstance(model, str)]
