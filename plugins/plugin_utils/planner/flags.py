"""vLLM's options that decide how much memory an engine needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# As vLLM reads lengths: 8k is 8,000 and 8K is 8,192.
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgKMG]?)")
_LARGEST = 2**40
FP8_CACHES = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla")
CACHES = ("auto", "bfloat16", "float16", *FP8_CACHES)
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")


class PlanError(ValueError):
    """The plan cannot be made. `problems` says why, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Flags:
    """The options that were given; None where vLLM or the planner decides. Memory in bytes, lengths in tokens."""

    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    data_parallel: int = 1
    nodes: int = 1
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    dtype: str = "auto"
    quantization: str | None = None
    enforce_eager: bool = False
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    no_media: bool = False


def read_flags(args: Mapping[str, Any]) -> Flags:
    """Read options by their long names without dashes, spelt with `-` or `_`; ignore those that need no memory. Raises PlanError."""
    problems: list[str] = []
    given = by_name(args, problems)
    numbers = {name: _number(name, given.get(name), problems) for name in _INTEGERS}
    if numbers["max-model-len"] == -1:  # vLLM finds the longest that fits
        numbers["max-model-len"] = None
    fraction = _fraction(given.get("gpu-memory-utilization"), problems)
    words = {name: _word(name, given.get(name), allowed, problems) for name, allowed in _WORDS.items()}
    switches = {name: _switch(name, given.get(name, False), problems) for name in ("enforce-eager", "enable-lora")}
    limits = _limits(given.get("limit-mm-per-prompt"), problems)
    if problems:
        raise PlanError(problems)
    return Flags(
        tensor_parallel=numbers["tensor-parallel-size"],
        pipeline_parallel=numbers["pipeline-parallel-size"],
        data_parallel=numbers["data-parallel-size"] or 1,
        nodes=numbers["nnodes"] or 1,
        max_model_len=numbers["max-model-len"],
        max_num_seqs=numbers["max-num-seqs"],
        max_num_batched_tokens=numbers["max-num-batched-tokens"],
        gpu_memory_utilization=fraction,
        kv_cache_dtype=words["kv-cache-dtype"] or "auto",
        kv_cache_memory_bytes=numbers["kv-cache-memory-bytes"],
        dtype=words["dtype"] or "auto",
        quantization=str(given["quantization"]) if given.get("quantization") else None,
        enforce_eager=switches["enforce-eager"],
        enable_lora=switches["enable-lora"],
        max_loras=numbers["max-loras"] or 1,
        max_lora_rank=numbers["max-lora-rank"] or 16,
        no_media=bool(limits) and not any(_count(limit) for limit in limits.values()),
    )


# Short names of vLLM's, and options that begin with no-.
_SHORT = {"tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "dp": "data-parallel-size", "q": "quantization"}
_NEGATED = {f"no-{name}": name for name in ("enforce-eager", "enable-lora")}


def by_name(args: Any, problems: list[str]) -> dict[str, Any]:
    """Options by their long names with dashes. Of two spellings vLLM would take one, so two values are a problem."""
    if not isinstance(args, Mapping):
        problems.append(f"the options are {_shown(args)}: write a mapping such as {{max-model-len: 8192}}")
        return {}
    found: dict[str, Any] = {}
    for name, value in args.items():
        key = str(name).lstrip("-").replace("_", "-")
        key = _SHORT.get(key, key)
        if key in _NEGATED:
            key, value = _NEGATED[key], not _switch(key, value, problems)
        if key in found and found[key] != value:
            problems.append(f"{key} is given twice, as {_shown(found[key])} and {_shown(value)}: leave one out")
        found[key] = value
    return found


def _limits(value: Any, problems: list[str]) -> Mapping[str, Any]:
    """How many inputs of each kind a prompt may have; empty if no option says so."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            problems.append(f"limit-mm-per-prompt is {_shown(value)}: write a mapping such as {{image: 0}}")
            return {}
    return value if isinstance(value, Mapping) else {}


# Options whose value is a whole number, with the smallest that vLLM takes.
_INTEGERS = {
    "tensor-parallel-size": 1,
    "pipeline-parallel-size": 1,
    "data-parallel-size": 1,
    "nnodes": 1,
    "max-model-len": 1,
    "max-num-seqs": 1,
    "max-num-batched-tokens": 1,
    "kv-cache-memory-bytes": 1,
    "max-loras": 1,
    "max-lora-rank": 1,
}
_WORDS = {"kv-cache-dtype": CACHES, "dtype": DTYPES}


def _number(name: str, value: Any, problems: list[str]) -> int | None:
    if value is None or (name == "max-model-len" and str(value).strip() in ("auto", "-1")):
        return None if value is None else -1
    found = _NUMBER.fullmatch(str(value).strip()) if not isinstance(value, bool) and len(str(value)) < 40 else None
    number = float(found[1]) * _UNITS.get(found[2], 1) if found else -1
    if not found or not _INTEGERS[name] <= number <= _LARGEST or number != int(number):
        problems.append(f"{name} is {_shown(value)}: write a whole number from {_INTEGERS[name]}, such as 8192 or 8K")
        return None
    return int(number)


def _fraction(value: Any, problems: list[str]) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if isinstance(value, bool) or not 0 < number <= 1:
        problems.append(f"gpu-memory-utilization is {_shown(value)}: write a share of the GPU's memory, such as 0.9")
        return None
    return number


def _word(name: str, value: Any, allowed: tuple[str, ...], problems: list[str]) -> str | None:
    if value is None:
        return None
    if str(value) not in allowed:
        problems.append(f"{name} is {_shown(value)}: choose one of {', '.join(allowed)}")
        return None
    return str(value)


def _switch(name: str, value: Any, problems: list[str]) -> bool:
    if value is None:  # as on a command line: the option without a value
        return True
    if str(value).lower() not in ("true", "false"):
        problems.append(f"{name} is {_shown(value)}: write true or false")
        return False
    return str(value).lower() == "true"


def _count(limit: Any) -> Any:
    return limit.get("count", 1) if isinstance(limit, Mapping) else limit


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
