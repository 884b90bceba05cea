"""Counters of one process."""

import math
import time
from collections.abc import Callable, Sequence

from .store import PERIOD, PLACES, SLOT_MS, SLOTS, WINDOW, Claim, Decision, Standing

_SWEEP_MS = 60_000
# Nobody knows when a running request ends.
PLACE_WAIT_MS = 1_000


class _Window:
    """What was taken in each slot that still counts, the oldest first, and in all of them."""

    __slots__ = ("slots", "used")

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.used = 0

    def add(self, slot: int, change: int) -> None:
        self.slots[slot] = self.slots.get(slot, 0) + change
        self.used += change

    def forget(self, slot: int) -> None:
        """All that is too old to count in `slot`."""
        while self.slots and (oldest := next(iter(self.slots))) < slot - SLOTS:
            self.used -= self.slots.pop(oldest)


class LocalStore:
    """A Store in memory: exact for one worker, gone with it. It holds nothing of a counter that is back at
    zero for more than a minute.

    `clock` gives seconds that never go back; `calendar` seconds since 1970.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, calendar: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._calendar = calendar
        self._windows: dict[str, _Window] = {}
        self._periods: dict[str, tuple[int, int]] = {}  # used, end
        self._places: dict[str, set[str]] = {}
        self._swept_ms = 0

    async def reserve(self, claims: Sequence[Claim], lease: str) -> Decision:
        now = int(self._clock() * 1000)
        slot = now // SLOT_MS
        if now >= self._swept_ms + _SWEEP_MS:
            self._sweep(now, slot)
        for claim in claims:
            if self._used(claim, slot) + claim.cost > claim.limit:
                return Decision(False, slot, [self._look(claim, now, slot) for claim in claims])
        today = math.floor(self._calendar() * 1000)
        return Decision(True, slot, [self._take(claim, lease, now, slot, today) for claim in claims])

    def settle(self, claims: Sequence[Claim], lease: str, slot: int, changes: Sequence[int]) -> None:
        now = int(self._clock() * 1000) // SLOT_MS
        for claim, change in zip(claims, changes, strict=True):
            name = claim.counter
            if claim.kind is PLACES:
                self._places.get(name, set()).discard(lease)
            elif not change:
                continue
            elif claim.kind is PERIOD:
                used, ends = self._periods.get(name, (0, claim.ends_ms))
                self._periods[name] = max(used + change, 0), ends
            elif change > 0:
                # Used now, whenever it was reserved.
                self._windows.setdefault(name, _Window()).add(now, change)
            elif (window := self._windows.get(name)) is not None and slot in window.slots:
                window.add(slot, max(change, -window.slots[slot]))

    def __len__(self) -> int:
        """Counters that take room."""
        return len(self._windows) + len(self._periods) + len(self._places)

    def _used(self, claim: Claim, slot: int) -> int:
        if claim.kind is WINDOW:
            window = self._windows.get(claim.counter)
            if window is None:
                return 0
            window.forget(slot)
            return window.used
        if claim.kind is PERIOD:
            return self._periods.get(claim.counter, (0, 0))[0]
        return len(self._places.get(claim.counter, ()))

    def _look(self, claim: Claim, now: int, slot: int) -> Standing:
        """For a refusal: when would it fit?"""
        used = self._used(claim, slot)
        over = used + claim.cost - claim.limit
        if claim.kind is PLACES:
            return Standing(used, PLACE_WAIT_MS if over > 0 else 0, 0)
        if claim.kind is PERIOD:
            rest = _rest_ms(claim, math.floor(self._calendar() * 1000))
            return Standing(used, rest if over > 0 else 0, rest)
        wait = reset = 0
        window = self._windows.get(claim.counter)
        for taken_in, taken in window.slots.items() if window is not None else ():
            if taken:
                reset = _reset_ms(taken_in, now)
                if over > 0:
                    wait, over = reset, over - taken
        return Standing(used, wait or (_NEVER_MS if over > 0 else 0), reset)

    def _take(self, claim: Claim, lease: str, now: int, slot: int, today: int) -> Standing:
        if claim.kind is PLACES:
            places = self._places.setdefault(claim.counter, set())
            places.add(lease)
            return Standing(len(places), 0, 0)
        if claim.kind is PERIOD:
            used = self._periods.get(claim.counter, (0, 0))[0] + claim.cost
            self._periods[claim.counter] = used, claim.ends_ms
            return Standing(used, 0, _rest_ms(claim, today))
        window = self._windows.get(claim.counter)
        if window is None:
            window = self._windows[claim.counter] = _Window()
        window.add(slot, claim.cost)
        return Standing(window.used, 0, _reset_ms(slot, now))

    def _sweep(self, now: int, slot: int) -> None:
        self._swept_ms = now
        for window in self._windows.values():
            window.forget(slot)
        self._windows = {name: window for name, window in self._windows.items() if window.slots}
        self._places = {name: leases for name, leases in self._places.items() if leases}
        today = self._calendar() * 1000
        self._periods = {name: period for name, period in self._periods.items() if period[1] > today}


def _reset_ms(slot: int, now: int) -> int:
    """Until what was taken in the slot no longer counts."""
    return (slot + SLOTS + 1) * SLOT_MS - now


def _rest_ms(claim: Claim, today: int) -> int:
    return max(claim.ends_ms - today, 1)


# A claim that is larger than the limit.
_NEVER_MS = (SLOTS + 1) * SLOT_MS
