"""Forward progress of an engine: whether its tokens move."""

from inference_proxy.engines.gauges import Gauges


class Progress:
    """Tells hung from busy. A long generation moves its rank's count of tokens with every step of the engine;
    /health stays 200 while that count stands still. All times are of one clock, in seconds."""

    def __init__(self, now: float) -> None:
        self.generated_at = now  # last sign that anything was generated there; to be set by whoever sees one
        self._seen: dict[
            bytes | None, tuple[float, float]
        ] = {}  # by rank: tokens, and since when they stand there

    def see(self, gauges: Gauges, now: float) -> None:
        """Take over a scrape. A count that has fallen is a restart: that, too, is a change."""
        seen = {}
        for name, rank in gauges.ranks.items():
            tokens, since = self._seen.get(name, (None, now))
            moved = tokens is not None and tokens != rank.tokens
            if moved:
                self.generated_at = now
            seen[name] = rank.tokens, now if moved or not rank.running else since
        self._seen = seen

    def stalled_s(self, now: float) -> float:
        """For how long some rank has had running requests and no token."""
        return max((now - since for _, since in self._seen.values()), default=0)
