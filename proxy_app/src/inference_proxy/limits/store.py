"""The interface between limits and the store that counts them."""

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

SLOT_MS = 5_000
"""A sliding minute is counted in slots of this length, so that a counter's size is bounded."""

SLOTS = 12
"""How many later slots it takes until a slot no longer counts.

Everything taken in it is then older than a minute. So no 60 seconds exceed the limit, and what was taken is
free again after 60 to 65 seconds.
"""


class Kind(enum.StrEnum):
    """How a counter counts.

    WINDOW: what was taken in the last minute. PERIOD: what was taken since the period's beginning, until its
    end. PLACES: the places that are occupied now.
    """

    WINDOW = "window"
    PERIOD = "period"
    PLACES = "places"


# Module-level names, as for endpoint classes in config/paths.py.
WINDOW, PERIOD, PLACES = Kind


class Claim(msgspec.Struct, frozen=True):
    """What one request takes from one counter: `cost` of `limit`.

    `ends_ms` is the end of a PERIOD, in milliseconds since 1970; the counter's name contains the period.
    """

    counter: str
    kind: Kind
    limit: int
    cost: int
    ends_ms: int = 0


class Standing(msgspec.Struct, frozen=True):
    """The state of a counter.

    `used` is the amount in use, including the claim if it was granted. `wait_ms` is the time until the claim
    would fit, 0 if it does. `reset_ms` is the time until nothing is in use, if nothing else is taken.
    """

    used: int
    wait_ms: int
    reset_ms: int


class Decision(msgspec.Struct, frozen=True):
    """The result of a reservation.

    `slot` is where the claims are counted, by the store's clock; there is one standing per claim.
    """

    granted: bool
    slot: int
    standings: Sequence[Standing]


class StoreAway(Exception):
    """The store does not answer, or not as it should. The message gives the reason for the log."""


class Store(Protocol):
    """A store of counters. A lease names a request's place among PLACES.

    A store also has `reserve`, which takes all claims, or none if one does not fit, and returns a Decision:
    LocalStore's at once, SharedStore's as an awaitable.
    """

    def settle(self, claims: Sequence[Claim], lease: str, slot: int, changes: Sequence[int]) -> None:
        """End a reservation: free its place, and apply `changes`, one per claim.

        A change is what was used beyond the claim, negative if less. Neither waits nor fails: without the
        store it has no effect.
        """
