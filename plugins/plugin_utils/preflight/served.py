"""The models that engines serve, and what to say of one that none serves."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from . import schema
from .forms import as_dict
from .inventory import Inventory


def served_models(inventory: Inventory) -> set[str]:
    """The names of all models that engines serve."""
    return {
        str(engine.get("served_model_name")) for host in inventory.group("vllm") for engine in inventory.engines(host)
    }


def unserved(model: Any, served: set[str]) -> str:
    """A model that no engine serves, and a hint. Unless it resembles a served one, it may be a key in the wrong place."""
    text = str(model)
    shown = repr(text) if difflib.get_close_matches(text, served, n=1) else schema.quoted(text)
    return f"{shown}, which no engine serves: {hint(text, served)}"


def hint(wanted: str, served: set[str]) -> str:
    """The served model that was probably meant, or all of them."""
    close = difflib.get_close_matches(wanted, served, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the engines serve {', '.join(sorted(served)) or 'none'}"


def limits_of_unserved(where: str, limits: Any, served: set[str]) -> Iterator[str]:
    """Models under `models` of a dictionary of limits that no engine serves."""
    for model in as_dict(as_dict(limits).get("models")):
        if model not in served:
            yield f"{where} names model {unserved(model, served)}"
