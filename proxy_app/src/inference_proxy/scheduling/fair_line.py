"""Who is next? Requests that wait for the same engines, in classes that share by weight."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Class(Generic[T]):
    share: int
    passed: float  # tokens of its turns so far, over its share
    waiting: deque[tuple[T, int]] = field(default_factory=deque)


class Line(Generic[T]):
    """Within a class first come, first served; between classes stride scheduling (Waldspurger 1995): the next
    turn goes to the class that is the furthest behind its share of the tokens. So while several wait, none
    gets less than that, but for one request's tokens, and none starves.

    It is full with `most` waiting. Then whoever is the furthest above their share of the places gives way,
    with its youngest request: a flood in one class does not close the line for another.
    """

    def __init__(self) -> None:
        self._classes: dict[str, _Class[T]] = {}
        self._passed = 0.0  # where the turns have come to; never goes back
        self.length = 0

    def add(self, item: T, name: str, share: int, tokens: int, most: int) -> T | None:
        """Join. Returns who had to leave for it, which may be the item itself."""
        known = self._classes.get(name)
        if known is None:
            known = self._classes[name] = _Class(share, self._passed)
        elif not known.waiting:
            # Turns are not saved up while nobody wants them.
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
        """The head leaves, and its class has had a turn."""
        chosen = self._next()
        item, tokens = chosen.waiting[0]
        passed = chosen.passed + tokens / chosen.share
        # Nothing above has changed anything, and nothing below can fail.
        chosen.waiting.popleft()
        self._passed, chosen.passed = chosen.passed, passed
        self.length -= 1
        return item

    def settle(self, name: str, tokens: int) -> None:
        """A turn of this class took so many tokens more (if negative, fewer) than it was counted with.

        What is given back makes the class the next one at best. Were it put ahead of the others, then whoever
        asks for much and uses little would save up turns.
        """
        known = self._classes[name]
        known.passed = max(known.passed + tokens / known.share, self._passed)

    def all(self) -> list[T]:
        """Everybody who waits."""
        return [item for known in self._classes.values() for item, _ in known.waiting]

    def leave(self, item: T, name: str) -> None:
        """It goes without a turn. One that is not there any more has left already."""
        known = self._classes[name]
        for position, (other, _) in enumerate(known.waiting):
            if other is item:
                del known.waiting[position]
                self.length -= 1
                return

    def ahead(self, name: str, share: int) -> float:
        """Tokens that have their turn before a request that joined this class now, about."""
        waiting = {other: known for other, known in self._classes.items() if known.waiting}
        known = waiting.pop(name, None)
        own = sum(tokens for _, tokens in known.waiting) if known is not None else 0
        theirs = sum(
            min(own * other.share / share, sum(tokens for _, tokens in other.waiting))
            for other in waiting.values()
        )
        return own + theirs

    def counts(self) -> dict[str, int]:
        """How many wait, by class."""
        return {name: len(known.waiting) for name, known in self._classes.items()}

    def _next(self) -> _Class[T]:
        waiting = (known for known in self._classes.values() if known.waiting)
        return min(waiting, key=lambda known: (known.passed, -known.share))
