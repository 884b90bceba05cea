"""A fair queue for requests that wait for the same engines, in classes that share by weight."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Class(Generic[T]):
    share: int
    passed: float  # tokens of its turns so far, divided by its share
    waiting: deque[tuple[T, int]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """A queue: first come, first served within a class; stride scheduling (Waldspurger 1995) between classes.

    The next turn goes to the class that is furthest behind its share of the tokens. So while several classes
    wait, none gets less than its share, give or take one request's tokens, and none starves.

    The queue is full with `most` waiting. Then the class that is furthest above its share of the places loses
    its newest request: a flood in one class does not close the queue to another.
    """

    def __init__(self) -> None:
        self._classes: dict[str, _Class[T]] = {}
        self._passed = 0.0  # the current position of the turns; never decreases
        self.length = 0

    def add(self, item: T, name: str, share: int, tokens: int, most: int) -> T | None:
        """Join the queue. Returns the item that had to leave because of it, which may be the same item."""
        known = self._classes.get(name)
        if known is None:
            known = self._classes[name] = _Class(share, self._passed)
        elif not known.waiting:
            # A class saves up no turns while none of its requests wait.
            known.passed = max(known.passed, self._passed)
        known.share = share
        known.waiting.append((item, tokens))
        self.length += 1
        if self.length <= most:
            return None
        crowd = max(
            self._classes.values(), key=lambda other: (len(other.waiting) / other.share, other is known)
        )
        self.length -= 1
        return crowd.waiting.pop()[0]

    def head(self) -> T:
        return self._next().waiting[0][0]

    def take(self) -> T:
        """Remove the head, which counts as a turn of its class."""
        chosen = self._next()
        item, tokens = chosen.waiting[0]
        passed = chosen.passed + tokens / chosen.share
        # Nothing above has changed the queue, and nothing below can fail.
        chosen.waiting.popleft()
        self._passed, chosen.passed = chosen.passed, passed
        self.length -= 1
        return item

    def settle(self, name: str, tokens: int) -> None:
        """A turn of this class took this many tokens more (fewer if negative) than estimated.

        A refund makes the class the next one at best. If it put the class ahead of that, callers that ask for
        much and use little could save up turns.
        """
        known = self._classes[name]
        known.passed = max(known.passed + tokens / known.share, self._passed)

    def all(self) -> list[T]:
        """All waiting items."""
        return [item for known in self._classes.values() for item, _ in known.waiting]

    def leave(self, item: T, name: str) -> None:
        """Remove an item without a turn. Does nothing if it is no longer waiting."""
        known = self._classes[name]
        for position, (other, _) in enumerate(known.waiting):
            if other is item:
                del known.waiting[position]
                self.length -= 1
                return

    def ahead(self, name: str, share: int) -> float:
        """About how many tokens have their turn before a request that joined this class now."""
        waiting = {other: known for other, known in self._classes.items() if known.waiting}
        known = waiting.pop(name, None)
        own = sum(tokens for _, tokens in known.waiting) if known is not None else 0
        theirs = sum(
            min(own * other.share / share, sum(tokens for _, tokens in other.waiting))
            for other in waiting.values()
        )
        return own + theirs

    def counts(self) -> dict[str, int]:
        """How many items wait, by class."""
        return {name: len(known.waiting) for name, known in self._classes.items()}

    def _next(self) -> _Class[T]:
        waiting = (known for known in self._classes.values() if known.waiting)
        return min(waiting, key=lambda known: (known.passed, -known.share))
