"""What tasks of the role vllm have found before it renders the engines' files, for tests that evaluate its expressions."""

from __future__ import annotations

import json
from typing import Any

from stack_preflight import load


def found(engines: list[dict[str, Any]], directories: dict[str, str]) -> dict[str, Any]:
    """Complete entries, and neither parsers nor options of the planner; `directories` are the models' by the engine's name."""
    entries = load("engine_entries")
    completed = entries.completed(engines)
    return {
        "__vllm_completed": {"engines": completed, "adapters": entries.adapters_of(completed)},
        "__vllm_parsers": {"stdout": json.dumps({directory: {} for directory in directories.values()})},
        "__vllm_planned": {"flags": {}, "plans": {}, "gpus": {}},
        "__vllm_model_sizes": {"results": []},
        "__vllm_model_paths": directories,
    }
