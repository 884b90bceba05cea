"""A circuit breaker: closed (in use), open (ejected), half-open (ejected, and being tried)."""

import enum


class Phase(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# For what runs in each request: see config/paths.py.
CLOSED = Phase.CLOSED

# What a complete answer makes up for, of a broken one: so failures add up where they are more than a third.
_MAKES_UP_FOR = 0.5
# Of what was counted before, at each answer.
_REMEMBERED = 0.99
# A cool-down doubles with each relapse, up to 2 ** 5 times its length.
_DOUBLINGS = 5


class Breaker:
    """One per engine. When to open is for the fleet to say, which knows how the other engines do.

    `failures` is how many broken answers the complete ones have not made up for. `keys` are the API keys
    whose requests they were, until all is made up for: True where another engine has answered that key since.
    `relapses` is how often failures have opened it in that time.
    """

    def __init__(self) -> None:
        self.phase = Phase.CLOSED
        self.failures = 0.0
        self.keys: dict[str | None, bool] = {}
        self._broken = self._complete = 0.0
        self.relapses = 0
        self.reason = ""
        self._opened_at = 0.0

    def failed(self, key: str | None, most: float) -> None:
        """A broken answer. Beyond `most` they are not added up: an engine that was mended shall recover."""
        self._count(1, 0)
        self.failures = min(most, self.failures + 1)
        self.keys.setdefault(key, False)

    def succeeded(self) -> None:
        """A complete answer."""
        self._count(0, 1)
        self.failures = max(0.0, self.failures - _MAKES_UP_FOR)
        if not self.failures:
            self.keys.clear()
            self.relapses = 0

    @property
    def broken_share(self) -> float:
        """Of its last hundred answers or so, and somewhat less than that while they are few."""
        return self._broken / (self._broken + self._complete + 1)

    def _count(self, broken: int, complete: int) -> None:
        self._broken = self._broken * _REMEMBERED + broken
        self._complete = self._complete * _REMEMBERED + complete

    def open(self, reason: str, now: float) -> None:
        self.phase, self.reason, self._opened_at = Phase.OPEN, reason, now

    def has_cooled(self, now: float, cool_down_s: float) -> bool:
        wait_s = cool_down_s * 2 ** min(max(self.relapses - 1, 0), _DOUBLINGS)
        return self.phase is Phase.OPEN and now - self._opened_at >= wait_s

    def close(self, failures: float) -> None:
        """Put the engine back. At most `failures` stay counted: it is on probation if they ejected it."""
        self.phase, self.reason = Phase.CLOSED, ""
        self.failures = min(self.failures, failures)

    def reset(self) -> None:
        """What is there now is another process."""
        self.close(0)
        self.keys.clear()
        self.relapses = 0
        self._broken = self._complete = 0.0
