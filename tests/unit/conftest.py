"""The collection's plugins and the lab's package are importable by the unit tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for directory in (
    "lab",
    "plugins/action",
    "plugins/vars",
    "lab/engine",
    "roles/vllm/files/helpers",
    "roles/vllm/files/engine",
):
    sys.path.insert(0, str(ROOT / directory))
