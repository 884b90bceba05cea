"""Bounds for numbers from outside: beyond them arithmetic, JSON or the store of counters could fail."""

from typing import Any

MOST = 2**63 - 1
"""The largest whole number accepted in a request. An engine's own messages contain none larger."""

MOST_CHOICES = 128
"""The most answers to one prompt: OpenAI's bound for `n`, and role vllm's value for VLLM_MAX_N_SEQUENCES."""

MOST_CONTEXT_TOKENS = 1 << 21
"""Longer than any model's context; used until an engine has reported its own."""

MOST_TOKENS = 1 << 40
"""The most tokens that one request can count. Their sums stay exact in a store's floating-point numbers."""


def whole(value: Any, least: int, most: int) -> int | None:
    """A whole number within these bounds, as read from JSON or YAML; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    return None
