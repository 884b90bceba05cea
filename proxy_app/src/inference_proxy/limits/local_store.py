"""Counters in the memory of one process."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from inference_proxy.limits.store import (
    PERIOD,
    PLACES,
    SLOT_MS,
    SLOTS,
    WINDOW,
    Claim,
    Decision,
    Kind,
    Standing,
)

_SWEEP_MS = 60_000
# It is unknown when a running request will end.
PLACE_WAIT_MS = 1_000
# For a claim that is larger than the limit.
_NEVER_MS = (SLOTS + 1) * SLOT_MS


class _Counter(Protocol):
    """One counter.

    Times are in milliseconds: `now` of a monotonic clock, `today` since 1970. `slot` is the current one.
    """

    def take(self, claim: Claim, lease: str, slot: int, now: int, today: int) -> Standing | None:
        """Take the claim. Returns None if it does not fit; then nothing was taken."""

    def standing(self, claim: Claim, slot: int, now: int, today: int) -> Standing:
        """For a refusal: when would the claim fit?"""

    def settle(self, lease: str, taken_in: int, change: int, slot: int) -> None: ...

    def is_empty(self, slot: int, today: int) -> bool: ...


class _Window:
    """What was taken in each slot that still counts, oldest first, and their sum."""

    __slots__ = ("_all", "_seen", "_slots")

    def __init__(self, _: Claim) -> None:
        self._slots: dict[int, int] = {}
        self._all = 0
        self._seen = 0  # the slot of the latest call

    def take(self, claim: Claim, lease: str, slot: int, now: int, today: int) -> Standing | None:
        if slot != self._seen:
            self._forget(slot)
        used = self._all + claim.cost
        if used > claim.limit:
            return None
        self._all = used
        self._slots[slot] = self._slots.get(slot, 0) + claim.cost
        return Standing(used, 0, (slot + SLOTS + 1) * SLOT_MS - now)

    def standing(self, claim: Claim, slot: int, now: int, today: int) -> Standing:
        self._forget(slot)
        over = self._all + claim.cost - claim.limit
        wait = reset = 0
        for taken_in, taken in self._slots.items():
            if taken:
                # When that slot no longer counts.
                reset = (taken_in + SLOTS + 1) * SLOT_MS - now
                if over > 0:
                    wait, over = reset, over - taken
        return Standing(self._all, wait or (_NEVER_MS if over > 0 else 0), reset)

    def settle(self, lease: str, taken_in: int, change: int, slot: int) -> None:
        if change > 0:
            # Counts from now on, whenever it was reserved.
            self._add(slot, change)
        elif change and taken_in in self._slots:
            self._add(taken_in, max(change, -self._slots[taken_in]))

    def is_empty(self, slot: int, today: int) -> bool:
        self._forget(slot)
        return not self._slots

    def _forget(self, slot: int) -> None:
        """Drop slots that no longer count."""
        self._seen, slots = slot, self._slots
        while slots and (oldest := next(iter(slots))) < slot - SLOTS:
            self._all -= slots.pop(oldest)

    def _add(self, slot: int, change: int) -> None:
        self._slots[slot] = self._slots.get(slot, 0) + change
        self._all += change


class _Period:
    """What was taken since the period's beginning.

    The counter's name contains the period's end, so each period has its own counter.
    """

    __slots__ = ("_all", "_ends")

    def __init__(self, claim: Claim) -> None:
        self._all = 0
        self._ends = claim.ends_ms

    def take(self, claim: Claim, lease: str, slot: int, now: int, today: int) -> Standing | None:
        used = self._all + claim.cost
        if used > claim.limit:
            return None
        self._all = used
        return Standing(used, 0, max(self._ends - today, 1))

    def standing(self, claim: Claim, slot: int, now: int, today: int) -> Standing:
        rest = max(self._ends - today, 1)
        return Standing(self._all, rest if self._all + claim.cost > claim.limit else 0, rest)

    def settle(self, lease: str, taken_in: int, change: int, slot: int) -> None:
        self._all = max(self._all + change, 0)

    def is_empty(self, slot: int, today: int) -> bool:
        return self._ends <= today


class _Places:
    __slots__ = ("_leases",)

    def __init__(self, _: Claim) -> None:
        self._leases: set[str] = set()

    def take(self, claim: Claim, lease: str, slot: int, now: int, today: int) -> Standing | None:
        used = len(self._leases) + claim.cost
        if used > claim.limit:
            return None
        self._leases.add(lease)
        return Standing(used, 0, 0)

    def standing(self, claim: Claim, slot: int, now: int, today: int) -> Standing:
        used = len(self._leases)
        return Standing(used, PLACE_WAIT_MS if used + claim.cost > claim.limit else 0, 0)

    def settle(self, lease: str, taken_in: int, change: int, slot: int) -> None:
        self._leases.discard(lease)

    def is_empty(self, slot: int, today: int) -> bool:
        return not self._leases


_COUNTERS: dict[Kind, Callable[[Claim], _Counter]] = {WINDOW: _Window, PERIOD: _Period, PLACES: _Places}


class LocalStore:
    """A Store in memory: exact for one worker, and lost when the worker ends.

    It keeps a window for a minute after the window is back at zero, and a period's count until the period
    ends. `clock` returns seconds and never goes back; `calendar` returns seconds since 1970.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, calendar: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._calendar = calendar
        self._counters: dict[str, _Counter] = {}
        self._swept_ms = 0

    def reserve(self, claims: Sequence[Claim], lease: str) -> Decision:
        """Take all claims, or none if one does not fit."""
        now, today = int(self._clock() * 1000), int(self._calendar() * 1000)
        slot = now // SLOT_MS
        if now >= self._swept_ms + _SWEEP_MS:
            self._sweep(now, slot, today)
        known = self._counters
        standings: list[Standing] = []
        for claim in claims:
            standing = (known.get(claim.counter) or self._new(claim)).take(claim, lease, slot, now, today)
            if standing is None:
                taken = claims[: len(standings)]
                self.settle(taken, lease, slot, [-claim.cost for claim in taken])
                counters = [(claim, known.get(claim.counter) or self._new(claim)) for claim in claims]
                standings = [counter.standing(claim, slot, now, today) for claim, counter in counters]
                return Decision(False, slot, standings)
            standings.append(standing)
        return Decision(True, slot, standings)

    def settle(self, claims: Sequence[Claim], lease: str, slot: int, changes: Sequence[int]) -> None:
        now = int(self._clock() * 1000) // SLOT_MS
        for claim, change in zip(claims, changes, strict=True):
            if change or claim.kind is PLACES:
                counter = self._counters.get(claim.counter)
                # If the counter was removed, the claim no longer counts. What was used in addition counts
                # from now on.
                (counter or self._new(claim)).settle(lease, slot, change, now)

    def __len__(self) -> int:
        """How many counters are in memory."""
        return len(self._counters)

    def _new(self, claim: Claim) -> _Counter:
        counter = self._counters[claim.counter] = _COUNTERS[claim.kind](claim)
        return counter

    def _sweep(self, now: int, slot: int, today: int) -> None:
        self._swept_ms = now
        self._counters = {
            name: counter for name, counter in self._counters.items() if not counter.is_empty(slot, today)
        }
