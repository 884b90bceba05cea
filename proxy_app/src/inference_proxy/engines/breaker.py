"""A circuit breaker: closed (in use), open (ejected), half-open (ejected, and being probed)."""

import enum


class Phase(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# Module-level, because each request uses it: see config/paths.py.
CLOSED = Phase.CLOSED

# How much of a failure one complete answer cancels. So failures add up if they are more than a third of the
# answers.
_MAKES_UP_FOR = 0.5
# How much of the earlier counts is kept at each answer.
_REMEMBERED = 0.99
# A cool-down doubles with each relapse, up to 2 ** 5 times its length.
_DOUBLINGS = 5


class Breaker:
    """One engine's breaker.

    The fleet decides when to open it, because it knows how the other engines perform.

    `failures` are broken answers that complete ones have not yet cancelled. `keys` are the API keys of those
    requests, until all failures are cancelled; a key's value is True if another engine has answered that key
    since. `relapses` is how often failures have opened the breaker in that time.
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
        """Count a broken answer. `failures` stops at `most`, so that a repaired engine can recover."""
        self._count(1, 0)
        self.failures = min(most, self.failures + 1)
        self.keys.setdefault(key, False)

    def succeeded(self) -> None:
        """Count a complete answer."""
        self._count(0, 1)
        self.failures = max(0.0, self.failures - _MAKES_UP_FOR)
        if not self.failures:
            self.keys.clear()
            self.relapses = 0

    @property
    def broken_share(self) -> float:
        """The share of broken answers among the last hundred or so.

        Somewhat too low while there are few answers.
        """
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
        """Put the engine back into service.

        At most `failures` stay counted, so an engine that they ejected is on probation.
        """
        self.phase, self.reason = Phase.CLOSED, ""
        self.failures = min(self.failures, failures)

    def reset(self) -> None:
        """Start again for a new engine process."""
        self.close(0)
        self.keys.clear()
        self.relapses = 0
        self._broken = self._complete = 0.0
