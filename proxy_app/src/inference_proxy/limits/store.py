"""What a store of counters can do: all that there is between limits and where they are counted."""

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

SLOT_MS = 5_000
"""A sliding minute is counted in slots of this length, so that a counter takes a bounded room."""

SLOTS = 12
"""A slot counts until this many others have followed it: what was taken in it then is older than a minute.
So no 60 seconds see more than the limit, and what was taken is free again after 60 to 65."""


class Kind(enum.StrEnum):
    """WINDOW: what was taken in the last minute. PERIOD: what was taken since its beginning, until its end.
    PLACES: those that are occupied now."""

    WINDOW = "window"
    PERIOD = "period"
    PLACES = "places"


# As config/paths.py has it for endpoints' classes.
WINDOW, PERIOD, PLACES = Kind


class Claim(msgspec.Struct, frozen=True):
    """What one request takes from one counter: `cost` of `limit`. `ends_ms` is the end of a PERIOD, in
    milliseconds since 1970; the name of its counter has the period in it."""

    counter: str
    kind: Kind
    limit: int
    cost: int
    ends_ms: int = 0


class Standing(msgspec.Struct, frozen=True):
    """How a counter stands: `used` now, with the claim in it if that was granted; `wait_ms` until the claim
    would fit, 0 if it does; `reset_ms` until nothing is used, if nothing is taken any more."""

    used: int
    wait_ms: int
    reset_ms: int


class Decision(msgspec.Struct, frozen=True):
    """`slot` is where the claims are counted, by the store's own clock; one standing for each claim."""

    granted: bool
    slot: int
    standings: Sequence[Standing]


class StoreAway(Exception):
    """The store does not answer, or not as it should; the message says why, for the log."""


class Store(Protocol):
    """It also has `reserve`, which takes all claims, or none if one does not fit, and whose answer is a
    Decision: LocalStore's at once, SharedStore's to be awaited. A lease names a request's place among PLACES.
    """

    def settle(self, claims: Sequence[Claim], lease: str, slot: int, changes: Sequence[int]) -> None:
        """End a reservation: its place is free, and `changes`, one for each claim, is what was taken more
        (or less, if negative) than claimed. Does not wait, nor fail: without the store it has no effect."""
