"""Whether an engine makes progress: whether its token counts rise."""

from inference_proxy.engines.gauges import Gauges


class Progress:
    """Distinguishes a hung engine from a busy one.

    During a long generation, the token count of its rank rises with every step of the engine. In a hung
    engine it stops, while /health still returns 200. All times are of one clock, in seconds.
    """

    def __init__(self, now: float) -> None:
        self.generated_at = now  # last sign of generation there; also set by others who see one
        self._seen_at = now
        # By rank: its tokens, and since when their number has not changed.
        self._seen: dict[bytes | None, tuple[float, float]] = {}

    def see(self, gauges: Gauges, now: float) -> None:
        """Record a scrape. A lower count means a restart, which counts as progress."""
        seen = {}
        for name, rank in gauges.ranks.items():
            tokens, since = self._seen.get(name, (None, now))
            moved = tokens is not None and tokens != rank.tokens
            if moved:
                self.generated_at = now
            seen[name] = rank.tokens, now if moved or not rank.running else since
        self._seen, self._seen_at = seen, now

    def stalled_s(self) -> float:
        """For how long some rank had running requests without computing a token, at the last scrape.

        Later times do not count: an engine whose metrics cannot be read may be idle.
        """
        return max((self._seen_at - since for _, since in self._seen.values()), default=0)
