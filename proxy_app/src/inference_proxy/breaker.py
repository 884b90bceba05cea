"""A circuit breaker: closed (in use), open (ejected), half-open (ejected, and being tried)."""

import enum


class Phase(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# For what runs in each request: see config/paths.py.
CLOSED = Phase.CLOSED


class Breaker:
    """One an engine. When to open is for the fleet to say, which knows how many others are out."""

    def __init__(self) -> None:
        self.phase = Phase.CLOSED
        self.failures = 0  # in succession
        self.reason = ""
        self._opened_at = 0.0

    def open(self, reason: str, now: float) -> None:
        self.phase, self.reason, self._opened_at = Phase.OPEN, reason, now

    def has_cooled(self, now: float, cool_down_s: float) -> bool:
        return self.phase is Phase.OPEN and now - self._opened_at >= cool_down_s

    def close(self) -> None:
        self.phase, self.failures, self.reason = Phase.CLOSED, 0, ""
