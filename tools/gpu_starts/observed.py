#!/usr/bin/env python3
"""Append what a start of vLLM logged to a file, as a line of tests/unit/planner/starts.jsonl, and print the line.

Usage: ``observed.py FILE``, with {"start": …, "gpu": [name, GiB], "journal": …} on standard input.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What vLLM logs, by the fields of a start. Of several ranks the first counts.
_LOGGED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "vllm": (r"vLLM API server version (\S+)", str),
    "weights_gib": (r"Model loading took ([\d.]+) GiB", float),
    "available_kv_gib": (r"Available KV cache memory: ([\d.]+) GiB", float),
    "kv_tokens": (r"KV cache size: ([\d,]+) tokens", lambda text: int(text.replace(",", ""))),
    "max_concurrency": (r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", float),
}


def observed(start: dict[str, Any], gpu: list[Any], journal: str) -> dict[str, Any]:
    """A start's line. Figures that were not logged are None."""
    # A unit that was started before has earlier lines.
    lines = journal[journal.rfind("Starting vllm@") :] if "Starting vllm@" in journal else journal
    found = {name: re.search(pattern, lines) for name, (pattern, _) in _LOGGED.items()}
    logged = {name: read(match[1]) if (match := found[name]) else None for name, (_, read) in _LOGGED.items()}
    args = start["args"]
    return {
        "model": start["shape"].rpartition("/")[2],
        "gpu": gpu[0],
        "gpu_total_gib": gpu[1],
        "tp": args.get("tensor-parallel-size", 1),
        "pp": args.get("pipeline-parallel-size", 1),
        "kv_cache_dtype": args.get("kv-cache-dtype", "auto"),
        "quantization": args.get("quantization"),
        "max_model_len": args["max-model-len"],
        "max_num_batched_tokens": args.get("max-num-batched-tokens"),
        "max_num_seqs": args["max-num-seqs"],
        "gpu_memory_utilization": args.get("gpu-memory-utilization", 0.92),
        "enforce_eager": args.get("enforce-eager", False),
        **logged,
        "url": "tools/gpu_starts",
    }


def main() -> int:
    line = json.dumps(observed(**json.load(sys.stdin)))
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{line}\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
