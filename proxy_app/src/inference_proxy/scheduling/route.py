"""Fourth step: choose an engine.

The least loaded, or within a bound the one that has the text in its cache.
"""

import math
import random
from collections.abc import Sequence, Set

from inference_proxy.api.numbers import MOST_TOKENS
from inference_proxy.config import GENERATION, Config, Routing
from inference_proxy.engines.fleet import Engine
from inference_proxy.engines.rendezvous import score
from inference_proxy.request.job import Job

# An engine is an outlier if its load is more than this many times the median.
_UNEQUAL = 4


def cost_of(job: Job, routing: Routing) -> int:
    """The tokens, 1 or more, that the job counts as outstanding: its prompt and what it may generate.

    A cap that is not below the model's context counts like no cap.
    """
    tokens = job.asked.prompt_tokens
    if job.asked.endpoint.kind is GENERATION:
        choices, context = job.asked.choices, job.context_tokens
        cap = job.max_tokens
        generated = routing.assumed_tokens if cap is None or cap >= context else cap
        # A longer prompt is refused.
        tokens = min(tokens, context * choices) + generated * choices
    return min(max(1, tokens), MOST_TOKENS)


def pool_of(job: Job, config: Config) -> str | None:
    """The pool for a job of this size, or None."""
    for name, pool in config.routing.pools.items():
        long = pool.prompt_tokens is not None and job.asked.prompt_tokens >= pool.prompt_tokens
        if long or (pool.max_tokens is not None and (job.max_tokens or 0) >= pool.max_tokens):
            return name
    return None


def choose(
    engines: Sequence[Engine],
    cost: int,
    key: int | None,
    routing: Routing,
    failing: Set[Engine] = frozenset(),
) -> Engine:
    """Choose among one or more engines.

    With a key: the one with the highest score for it, among those that would have at most
    `affinity_free_tokens`, or `affinity_bound` times their fair share by weight of all outstanding tokens.
    Without a key, or if none is within that bound: the least loaded, at random among equals.

    The `failing` have no scores, and count as at least as loaded as the least loaded of the others: an engine
    that fails fast has little to do, and would otherwise get every request.
    """
    if len(engines) == 1:
        return engines[0]
    assumed = routing.assumed_tokens
    loads: list[float] = [engine.tokens + engine.others * assumed + cost for engine in engines]
    if failing:
        loads = _without_idle(loads, engines, failing)
    if key is not None:
        share = routing.affinity_bound * _fair_share(loads, engines, cost, routing)
        most = max(share, routing.affinity_free_tokens)
        near, largest = None, -math.inf
        for engine, load in zip(engines, loads, strict=True):
            weight = engine.weight
            if load > most * weight or engine in failing:
                continue
            if (claimed := score(key, engine.seed, weight)) > largest:
                near, largest = engine, claimed
        if near is not None:
            return near
    scores = [
        load / engine.weight * (1 if engine.gauges is None else engine.gauges.fullness)
        for engine, load in zip(engines, loads, strict=True)
    ]
    least = min(scores)
    equals = [engine for engine, score in zip(engines, scores, strict=True) if score == least]
    return equals[int(random.random() * len(equals))]


def _fair_share(loads: Sequence[float], engines: Sequence[Engine], cost: int, routing: Routing) -> float:
    """Outstanding tokens per weight including the new job (each load includes its cost), without outliers.

    A single request that counts millions of tokens would otherwise raise the bound for all others.
    """
    if max(loads) > _UNEQUAL * min(loads):
        pairs = list(zip(loads, engines, strict=True))
        middle = sorted([load / engine.weight for load, engine in pairs])[(len(pairs) - 1) // 2]
        most = _UNEQUAL * max(middle, routing.affinity_free_tokens)
        pairs = [(load, engine) for load, engine in pairs if load <= most * engine.weight]
        loads, engines = [load for load, _ in pairs], [engine for _, engine in pairs]
    total = sum(loads) - cost * (len(loads) - 1)
    return total / sum([engine.weight for engine in engines])


def _without_idle(loads: list[float], engines: Sequence[Engine], failing: Set[Engine]) -> list[float]:
    """Loads, in which a failing engine's is at least the lowest of the others', by weight."""
    pairs = list(zip(loads, engines, strict=True))
    least = min((load / engine.weight for load, engine in pairs if engine not in failing), default=0)
    return [max(load, least * engine.weight) if engine in failing else load for load, engine in pairs]
