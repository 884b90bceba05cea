"""What an engine tells of its load: a few lines of the page at /metrics.

Names as in vLLM 0.32; each line stands once a data-parallel rank, told apart by its labels.
"""

import re
from dataclasses import dataclass, field

_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|iteration_tokens_total_sum)"
    rb"(\{.*\})? ([^ \n]+)",
    re.MULTILINE,
)


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
    ranks: dict[bytes, Rank] = field(default_factory=dict)

    @property
    def running(self) -> int:
        return round(sum(rank.running for rank in self.ranks.values()))

    @property
    def waiting(self) -> int:
        return round(sum(rank.waiting for rank in self.ranks.values()))

    @property
    def kv_cache_usage(self) -> float:
        return max(rank.kv_cache_usage for rank in self.ranks.values())


_FIELDS = {
    b"num_requests_running": "running",
    b"num_requests_waiting": "waiting",
    b"kv_cache_usage_perc": "kv_cache_usage",
    b"iteration_tokens_total_sum": "tokens",
}


def parse(page: bytes) -> Gauges | None:
    """None where the page has none of them: an engine that was told to keep no statistics."""
    gauges = Gauges()
    for name, labels, value in _SAMPLE.findall(page):
        try:
            number = float(value)
        except ValueError:
            continue
        if 0 <= number < float("inf"):
            setattr(gauges.ranks.setdefault(labels, Rank()), _FIELDS[name], number)
    return gauges if gauges.ranks else None
