"""What an engine tells of its load: a few lines of the page at /metrics.

Names as in vLLM 0.32; each line stands once a data-parallel rank, told apart by its labels.
"""

import math
import re
from dataclasses import dataclass, field

# With the most that is believed: more is no count of requests, and no share of a cache.
_FIELDS = {
    b"\nvllm:num_requests_running": ("running", 1e6),
    b"\nvllm:num_requests_waiting": ("waiting", 1e6),
    b"\nvllm:kv_cache_usage_perc": ("kv_cache_usage", 1.0),
    b"\nvllm:iteration_tokens_total_sum": ("tokens", math.inf),
}
_REST = re.compile(rb"(\{.*\})? ([^ \n]+)")


@dataclass(slots=True)
class Rank:
    """Requests that run and that wait, the used share (0 to 1) of the KV cache, and all tokens, of prompts
    and answers, that were computed since the start."""

    running: float = 0
    waiting: float = 0
    kv_cache_usage: float = 0
    tokens: float = 0


@dataclass(slots=True)
class Gauges:
    """All ranks, one or more, and what each request asks about them: worked out once.

    `fullness` (1 to 2) is what a full KV cache multiplies an engine's load by, for it soon preempts requests.
    In steps of a tenth, or else the last digit of a gauge would decide between idle engines.
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
    """None where the page has none of them: an engine that was told to keep no statistics.

    The page has a hundred kilobytes, of which nearly all are histograms: lines are searched for, not read.
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
