"""Counters of one process."""

import math
import time
from collections.abc import Callable, Sequence

from .store import SLOT_MS, SLOTS, Claim, Decision, Kind, Standing

_SWEEP_MS = 60_000
# Nobody knows when a running request ends.
PLACE_WAIT_MS = 1_000


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
        self._windows: dict[str, dict[int, int]] = {}
        self._periods: dict[str, tuple[int, int]] = {}  # used, end
        self._places: dict[str, set[str]] = {}
        self._swept_ms = 0

    async def reserve(self, claims: Sequence[Claim], lease: str) -> Decision:
        now = int(self._clock() * 1000)
        slot = now // SLOT_MS
        if now >= self._swept_ms + _SWEEP_MS:
            self._sweep(now, slot)
        before = [self._look(claim, now, slot) for claim in claims]
        if any(standing.wait_ms for standing in before):
            return Decision(False, slot, before)
        for claim in claims:
            self._take(claim, lease, slot)
        return Decision(True, slot, [self._look(claim, now, slot) for claim in claims])

    def settle(self, claims: Sequence[Claim], lease: str, slot: int, changes: Sequence[int]) -> None:
        now = int(self._clock() * 1000) // SLOT_MS
        for claim, change in zip(claims, changes, strict=True):
            name = claim.counter
            if claim.kind is Kind.PLACES:
                self._places.get(name, set()).discard(lease)
            elif claim.kind is Kind.PERIOD:
                used, ends = self._periods.get(name, (0, claim.ends_ms))
                self._periods[name] = max(used + change, 0), ends
            elif change > 0:
                # Used now, whenever it was reserved.
                slots = self._windows.setdefault(name, {})
                slots[now] = slots.get(now, 0) + change
            elif slot in (slots := self._windows.get(name, {})):
                slots[slot] = max(slots[slot] + change, 0)

    def __len__(self) -> int:
        """Counters that take room."""
        return len(self._windows) + len(self._periods) + len(self._places)

    def _look(self, claim: Claim, now: int, slot: int) -> Standing:
        if claim.kind is Kind.PLACES:
            used = len(self._places.get(claim.counter, ()))
            return Standing(used, PLACE_WAIT_MS if used + claim.cost > claim.limit else 0, 0)
        if claim.kind is Kind.PERIOD:
            used, _ = self._periods.get(claim.counter, (0, 0))
            rest = max(claim.ends_ms - math.floor(self._calendar() * 1000), 1)
            return Standing(used, rest if used + claim.cost > claim.limit else 0, rest)
        return look_at_window(self._slots(claim.counter, slot), claim, now)

    def _take(self, claim: Claim, lease: str, slot: int) -> None:
        if claim.kind is Kind.PLACES:
            self._places.setdefault(claim.counter, set()).add(lease)
        elif claim.kind is Kind.PERIOD:
            used, _ = self._periods.get(claim.counter, (0, 0))
            self._periods[claim.counter] = used + claim.cost, claim.ends_ms
        else:
            slots = self._windows.setdefault(claim.counter, {})
            slots[slot] = slots.get(slot, 0) + claim.cost

    def _slots(self, name: str, slot: int) -> dict[int, int]:
        slots = self._windows.get(name, {})
        for old in [known for known in slots if known < slot - SLOTS]:
            del slots[old]
        return slots

    def _sweep(self, now: int, slot: int) -> None:
        self._swept_ms = now
        self._windows = {name: slots for name in self._windows if (slots := self._slots(name, slot))}
        self._places = {name: leases for name, leases in self._places.items() if leases}
        today = self._calendar() * 1000
        self._periods = {name: period for name, period in self._periods.items() if period[1] > today}


def look_at_window(slots: dict[int, int], claim: Claim, now: int) -> Standing:
    """`slots` holds what was taken in each slot that still counts."""
    used = sum(slots.values())
    over = used + claim.cost - claim.limit
    wait = reset = 0
    for slot, taken in sorted(slots.items()):
        if not taken:
            continue
        reset = (slot + SLOTS + 1) * SLOT_MS - now
        if over > 0:
            wait, over = reset, over - taken
    return Standing(used, wait or (_NEVER_MS if over > 0 else 0), reset)


# A claim that is larger than the limit.
_NEVER_MS = (SLOTS + 1) * SLOT_MS
