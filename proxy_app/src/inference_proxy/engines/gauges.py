"""An engine's load as it reports it: a few lines of its page at /metrics.

Names as in vLLM 0.32. Each line occurs once per data-parallel rank, which its labels identify.
"""

import math
import re
from dataclasses import dataclass, field

# With the largest value that is accepted: above it, a number cannot be a count of requests or a share of a
# cache.
_FIELDS = {
    b"\nvllm:num_requests_running": ("running", 1e6),
    b"\nvllm:num_requests_waiting": ("waiting", 1e6),
    b"\nvllm:kv_cache_usage_perc": ("kv_cache_usage", 1.0),
    b"\nvllm:iteration_tokens_total_sum": ("tokens", math.inf),
}
_REST = re.compile(rb"(\{.*\})? ([^ \n]+)")


@dataclass(slots=True)
class Rank:
    """The gauges of one data-parallel rank.

    Running and waiting requests, the used share (0 to 1) of the KV cache, and all tokens computed since the
    start, of prompts and answers.
    """

    running: float = 0
    waiting: float = 0
    kv_cache_usage: float = 0
    tokens: float = 0


@dataclass(slots=True)
class Gauges:
    """The gauges of all ranks (one or more), and values derived from them.

    The values are computed once, because each request needs them. `fullness` (1 to 2) multiplies an engine's
    load as its KV cache fills, because a full one soon preempts requests. It has steps of a tenth; otherwise
    a gauge's last digit would decide between idle engines.
    """

    ranks: dict[bytes | None, Rank]
    running: int = field(init=False)
    waiting: int = field(init=False)
    kv_cache_usage: float = field(init=False)
    fullness: float = field(init=False)

    def __post_init__(self) -> None:
        ranks = self.ranks.values()
        self.running = round(sum(rank.running for rank in ranks))
        self.waiting = round(sum(rank.waiting for rank in ranks))
        self.kv_cache_usage = max(rank.kv_cache_usage for rank in ranks)
        self.fullness = 1 + round(self.kv_cache_usage, 1)


def parse(page: bytes) -> Gauges | None:
    """The gauges on a page; None if it has none, because the engine was started without statistics.

    The page has a hundred kilobytes, nearly all of them histograms, so it is searched for the lines instead
    of parsed.
    """
    ranks: dict[bytes | None, Rank] = {}
    page = b"\n" + page
    for start, (field_name, most) in _FIELDS.items():
        at = page.find(start)
        while at >= 0:
            end = at + len(start)
            rest = _REST.match(page, end)
            if rest is not None and (number := _number(rest[2])) is not None:
                rank = ranks.setdefault(rest[1], Rank())
                setattr(rank, field_name, min(number, most))
            at = page.find(start, end)
    return Gauges(ranks) if ranks else None


def _number(text: bytes) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None
