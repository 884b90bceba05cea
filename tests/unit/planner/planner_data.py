"""Data of the planner's tests: models' configurations, and real starts of vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS: dict[str, dict[str, Any]] = {
    name.split("/")[-1]: config
    for name, config in json.loads((HERE / "models.json").read_text()).items()
    if name != "_read_me"
}
STARTS = [json.loads(line) for line in (HERE / "starts.jsonl").read_text().splitlines()]
