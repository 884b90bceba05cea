#!/usr/bin/env python3
"""Remove an engine's compile cache after its third crash in a row: it may be damaged, and would be read at each start.

    drop_cache.py NAME      called by the unit before each start, after crash_pause.py, with the engine's environment

The next start compiles anew, which takes minutes. This is done once in a row of crashes: if the engine also crashes without a
cache, something else is wrong. A cache outside of the role's directory belongs to the operator and is kept. A second engine
(NAME.beside) uses the cache of an engine that runs, so it keeps it, too.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

RUN = Path("/run")
CACHES = Path("/var/lib/vllm/cache")
# As many restarts as crash_pause.py makes at once.
CRASHES = 3


def crashes(record: Path) -> int:
    """How often the engine crashed in a row before this start."""
    try:
        return int(json.loads(record.read_text())["crashes"])
    except (OSError, ValueError, KeyError):
        return 0


def main(arguments: list[str]) -> int:
    (name,) = arguments
    cache = Path(os.environ.get("VLLM_CACHE_ROOT", ""))
    if name.endswith(".beside"):
        return 0
    if crashes(RUN / f"vllm-{name}" / "crashes.json") != CRASHES or cache.parent != CACHES or not cache.is_dir():
        return 0
    print(f"crashed {CRASHES} times in a row; removing its compile cache {cache}, which may be damaged", flush=True)
    shutil.rmtree(cache)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
