"""GPUs of engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..forms import as_dict
from ..inventory import Inventory
from ..served import serve_args

# The product of these options is the number of GPUs over which an engine spreads; of the last two the last one wins.
_PARALLEL = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "data-parallel-size-local")
# How much memory of a GPU an engine takes: as a share, or as bytes of the cache for keys and values, which win over the share.
_SHARE, _BYTES = "gpu-memory-utilization", "kv-cache-memory-bytes"
# The share that vLLM takes by default.
_SHARE_DEFAULT = 0.92
# More than any host has.
_GPUS_MAX = 1024


def check_gpus(inventory: Inventory) -> Iterator[str]:
    """Engines of a host do not share a GPU by mistake, and have as many as they spread over."""
    for host in inventory.hosts("vllm"):
        users: dict[int, list[Mapping[str, Any]]] = {}
        for engine in inventory.engines(host):
            where = f"host {host}: engine {engine.get('name')!r}"
            args, gpus = serve_args(inventory, host, engine), engine.get("gpus")
            yield from _gpu_problems(where, args, gpus)
            yield from _no_room_beside(where, engine, args)
            own = _environment(inventory, host, engine).get("CUDA_VISIBLE_DEVICES")
            if own is not None and gpus is not None:
                yield f"{where} has gpus, over which CUDA_VISIBLE_DEVICES of its environment would win: leave one of them out"
            # Without gpus an engine gets those that the planner finds on its host, or says why there are too few.
            for gpu in sorted(set(gpus or ())):
                users.setdefault(gpu, []).append(engine)
        for gpu, sharing in sorted(users.items()):
            shares = [_share(engine, serve_args(inventory, host, engine)) for engine in sharing]
            if len(sharing) > 1 and not (None not in shares and sum(share or 0 for share in shares) <= 1):
                yield (
                    f"host {host}: GPU {gpu} is given to {' and '.join(str(engine.get('name')) for engine in sharing)}: give each engine "
                    f"GPUs of its own, or set {_SHARE} in their args, together at most 1, or {_BYTES}"
                )


def _gpu_problems(where: str, args: Mapping[str, Any], gpus: Any) -> Iterator[str]:
    share = _number(args.get(_SHARE))
    if args.get(_SHARE) is not None and (share is None or not 0 < share <= 1):
        yield f"{where}: {_SHARE} of its args must be a number, more than 0 and at most 1"
    for name in _PARALLEL:
        if args.get(name) is not None and not _whole(args[name]):
            yield f"{where}: {name} of its args must be a whole number, at least 1"
    if isinstance(gpus, list):
        if len(set(gpus)) < len(gpus):
            yield f"{where} has a GPU twice in gpus: name each once"
        if gpus and _spread(args) > len(set(gpus)):
            over = " and ".join(f"{name} {args[name]}" for name in _PARALLEL if _whole(args.get(name)))
            yield f"{where} spreads over {_spread(args)} GPUs ({over}), but has {len(set(gpus))} in gpus: name more, or lower the size"


def _spread(args: Mapping[str, Any]) -> int:
    """The number of GPUs of the host over which an engine spreads."""
    tensor, pipeline, data, here = (_whole(args.get(name)) or 1 for name in _PARALLEL)
    copies = here if args.get(_PARALLEL[-1]) is not None else data
    # One that spreads over several hosts has its part of them here.
    hosts = _whole(args.get("nnodes")) or 1
    return min(-(-tensor * pipeline * copies // hosts), _GPUS_MAX)


def _no_room_beside(where: str, engine: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[str]:
    """What to say of an engine whose GPUs have no room for the one that serves while a roll replaces it.

    The planner says it of engines without `gpus`: only with the host's GPUs is it known whether there are any.
    """
    if "beside_port" not in engine or not engine.get("gpus"):
        return
    share = _number(args.get(_SHARE))
    if share is None or share > 0.5:
        own = f"{_SHARE_DEFAULT} (vLLM's default)" if args.get(_SHARE) is None else f"{args[_SHARE]}"
        yield (
            f"{where} has beside_port, so two such engines run while a roll replaces it, and each takes {_SHARE} {own} of its GPUs' memory, "
            f"together more than 1: set {_SHARE} in its args to 0.45, or take beside_port out"
        )


def _share(engine: Mapping[str, Any], args: Mapping[str, Any]) -> float | None:
    """The share of a GPU's memory that an engine takes at most; 0 if it is given in bytes, None if neither is said."""
    if "beside_port" in engine:
        # Whatever the cache is given in bytes, vLLM starts only where its share is free.
        return 2 * (_number(args.get(_SHARE)) or _SHARE_DEFAULT)
    return 0 if args.get(_BYTES) is not None else _number(args.get(_SHARE))


def _environment(inventory: Inventory, host: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    return {**as_dict(inventory.get(host, "vllm_environment")), **as_dict(engine.get("environment"))}


def _number(value: Any) -> float | None:
    """An option's value as a number, even if it is a text; None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1 <= number <= _GPUS_MAX and number == int(number) else None
