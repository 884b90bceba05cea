"""Bounds of numbers from outside: beyond them arithmetic, JSON or a store of counters could fail."""

from typing import Any

MOST = 2**63 - 1
"""The largest whole number of a request. An engine's own messages hold no larger one."""

MOST_CHOICES = 128
"""Answers to one prompt: OpenAI's bound for `n`, and what role vllm sets as VLLM_MAX_N_SEQUENCES."""

MOST_CONTEXT_TOKENS = 1 << 21
"""No model has a longer context; it counts until an engine has told its own."""

MOST_TOKENS = 1 << 40
"""What one request can count for. Sums of it stay exact in a store's floating-point numbers."""


def whole(value: Any, least: int, most: int) -> int | None:
    """A whole number within these bounds, such as JSON or YAML have it; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    return None
