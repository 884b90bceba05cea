"""Which GPUs of a host its engines get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .flags import PlanError, by_name

# Options that say how much of a GPU an engine takes: as a share, or as bytes of the KV cache, which win over the share.
SHARE, BYTES = "gpu-memory-utilization", "kv-cache-memory-bytes"
# Shares are decimal fractions, whose sum may be off by the last digits.
_WHOLE = 1 + 1e-9


def place(
    engines: Sequence[Mapping[str, Any]], number: int, needed: Callable[[Mapping[str, Any], int], int]
) -> tuple[dict[str, list[int]], list[str]]:
    """The GPUs of each engine by its name, and the problems of those for which too few are left.

    An entry with `gpus` has those. The others follow in their order, each with the lowest numbers that are left, as many as `needed` says
    of it and of how many are left. So an entry that is added at the end, and names no GPU, moves no other. A GPU belongs to one engine,
    unless the operator gives each of several a share of its memory.
    """
    taken = [0.0] * number
    found: dict[str, list[int]] = {}
    problems: list[str] = []
    for engine in engines:
        if engine.get("gpus"):
            found[engine["name"]] = list(engine["gpus"])
            for index in {gpu for gpu in engine["gpus"] if 0 <= gpu < number}:
                taken[index] += held(engine)
    for engine in engines:
        if engine.get("gpus"):
            continue
        name, own = engine["name"], held(engine)
        if engine.get("beside_port") and own > _WHOLE:
            problems.append(f"engine {name} {no_room_beside(own / 2)}")
            continue
        left = [index for index in range(number) if taken[index] + own <= _WHOLE]
        count = needed(engine, len(left))
        if not 0 < count <= len(left):
            problems.append(_too_few(name, count, left, number, found))
            continue
        found[name] = left[:count]
        for index in found[name]:
            taken[index] += own
    return found, problems


def held(engine: Mapping[str, Any]) -> float:
    """The share of a GPU's memory that an engine takes at most: with `beside_port` it runs twice while a roll replaces it."""
    if not engine.get("beside_port"):
        return share(engine)
    # Whatever the cache is given in bytes, vLLM starts only where its share is free.
    args = {name: value for name, value in by_name(engine.get("args") or {}, []).items() if name != BYTES}
    return 2 * share({"args": args})


def share(engine: Mapping[str, Any]) -> float:
    """The share of a GPU's memory that an engine takes: all of it, unless its args say a part. Bytes count as nothing."""
    args = by_name(engine.get("args") or {}, [])
    if args.get(BYTES) is not None:
        return 0.0
    try:
        part = float(args.get(SHARE) or 1)
    except (TypeError, ValueError):
        return 1.0
    # What is no part of a whole (-1, NaN) makes no room for another engine; vLLM refuses it later.
    return part if 0 < part <= 1 else 1.0


def no_room_beside(own: float) -> str:
    """What to say of an engine with `beside_port` that takes this share of a GPU's memory."""
    said = "all of a GPU's memory" if own == 1 else f"{own:g} of a GPU's memory"
    return (
        f"has beside_port, so two such engines run while a roll replaces it, and each takes {said} ({SHARE}), together more than 1: "
        f"set {SHARE} in its args to 0.45, or take beside_port out"
    )


def _too_few(name: str, count: int, left: list[int], number: int, found: Mapping[str, list[int]]) -> str:
    others = ", ".join(f"{other} has {' and '.join(map(str, gpus))}" for other, gpus in found.items())
    return (
        f"engine {name} needs {max(count, 1)} of the host's {number} GPUs, and {len(left) or 'none'} of them "
        f"{'is' if len(left) < 2 else 'are'} left ({others or 'no other engine has one'}): lower its parallel sizes or its context_tokens, "
        f"move an engine to another host, or let engines share a GPU by {SHARE} in the args of each, together at most 1"
    )


_SIZES = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def is_spread(args: Mapping[str, Any]) -> bool:
    """Whether an engine's own options say over how many GPUs it spreads."""
    return any(name in _SIZES for name in by_name(args, []))


def spread(args: Mapping[str, Any]) -> int:
    """The GPUs of one host over which an engine spreads by its own options."""
    given = by_name(args, [])

    def size(name: str) -> int:
        try:
            return max(1, int(given.get(name) or 1))
        except (TypeError, ValueError) as error:
            raise PlanError([f"{name} is {str(given[name])[:40]!r}: write a whole number from 1"]) from error

    copies = size("data-parallel-size-local") if "data-parallel-size-local" in given else size("data-parallel-size")
    return -(-size("tensor-parallel-size") * size("pipeline-parallel-size") * copies // size("nnodes"))
