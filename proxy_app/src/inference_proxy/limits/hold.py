"""A request's way through the limits of its caller: taken before it runs, settled when it has ended."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import msgspec

from ..account import Exchange
from ..config import LimitsConfig, StoreConfig
from ..errors import ApiError, Header, Unavailable
from ..outgoing import Job
from .claims import Plan, Taken, changes, used_tokens
from .local import LocalStore
from .shared import SharedStore
from .store import PLACES, Claim, Decision, Standing, Store, StoreAway

# Keys, each with a model, whose limits can be looked at.
_MOST_SEEN = 100
# By whether tokens are counted, or requests.
_NAMES = {
    tokens: (b"x-ratelimit-limit-" + what, b"x-ratelimit-remaining-" + what, b"x-ratelimit-reset-" + what)
    for tokens, what in ((False, b"requests"), (True, b"tokens"))
}


class Limits:
    """The limits of one worker's requests, as `async with`: counted here, or in the configured store."""

    def __init__(self, config: Callable[[], LimitsConfig]) -> None:
        self._config = config
        self._plan = Plan()
        self._local = LocalStore()
        self._shared: SharedStore | None = None
        self._follows: StoreConfig | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._leases = itertools.count(1)

    async def __aenter__(self) -> "Limits":
        self.follow()
        if self._shared is not None:
            # So that the first requests are counted where all the others will be.
            await self._shared.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shared is not None:
            await self._shared.close()
        await asyncio.gather(*self._closing)

    @property
    def store_away(self) -> bool:
        """Whether a store is configured and does not answer."""
        return self._shared is not None and self._shared.away

    def follow(self) -> None:
        """Take over another store, if the configuration names one. What the old one still has to settle is
        lost: places there expire, and reservations stay as they are."""
        config = self._config().store
        if config == self._follows:
            return
        if self._shared is not None:
            task = asyncio.create_task(self._shared.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._follows = config
        self._shared = SharedStore(config) if config is not None else None

    def hold(self, job: Job, exchange: Exchange) -> "Hold":
        return Hold(self, job, exchange)

    async def reserve(self, job: Job) -> "Reservation | None":
        """None for a caller without limits. Raises ApiError 429; Unavailable when the store is away and the
        configuration does not let requests pass without it."""
        config = self._config()
        taken = self._plan.claims(job, config, datetime.now(UTC))
        if not taken:
            return None
        lease = str(next(self._leases))
        if self._shared is None:
            return await self._take(self._local, job, taken, lease)
        try:
            return await self._take(self._shared, job, taken, lease)
        except StoreAway:
            assert config.store is not None, "a shared store is a configured one"
            if not config.store.fail_open:
                raise Unavailable(
                    "limits_unavailable", "The service cannot count requests at the moment.", retry_after_s=1
                ) from None
            return await self._take(self._local, job, _part(taken, config.store.workers), lease)

    def rows(self) -> list[dict[str, Any]]:
        """How limits stood when this worker's latest requests came, the latest key first. What all workers
        have used is in it where they share a store."""
        now = time.monotonic()
        rows: dict[
            str, dict[str, Any]
        ] = {}  # by counter: a request of another model had the same ones, earlier
        for (key, _), seen in reversed(self._seen.items()):
            for one, standing in zip(seen.taken, seen.standings, strict=True):
                row = {
                    "key": key,
                    "model": one.model,
                    "limit": one.field,
                    "used": standing.used,
                    "of": one.claim.limit,
                    "seconds_ago": round(now - seen.at),
                }
                rows.setdefault(one.claim.counter, row)
        return list(rows.values())

    async def _take(self, store: Store, job: Job, taken: Sequence[Taken], lease: str) -> "Reservation":
        claims = [one.claim for one in taken]
        decision = await store.reserve(claims, lease)
        who = job.asked.key.name, job.model
        self._seen.pop(who, None)
        self._seen[who] = _Seen(time.monotonic(), taken, decision.standings)
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        if not decision.granted:
            raise Refused(taken, decision.standings)
        return Reservation(store, taken, claims, lease, decision)


class _Seen(msgspec.Struct, frozen=True):
    at: float
    taken: Sequence[Taken]
    standings: Sequence[Standing]


class Hold:
    """One request's place under its caller's limits, as `async with`. Raises what Limits.reserve does."""

    __slots__ = ("_exchange", "_job", "_limits", "_reservation")

    def __init__(self, limits: Limits, job: Job, exchange: Exchange) -> None:
        self._limits = limits
        self._job = job
        self._exchange = exchange
        self._reservation: Reservation | None = None

    async def __aenter__(self) -> None:
        try:
            self._reservation = await self._limits.reserve(self._job)
        except Refused as refused:
            self._exchange.notices += refused.standing
            raise
        if self._reservation is not None:
            self._exchange.notices += self._reservation.headers

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not of its caller's limits alone: what they count is what the usage by day has.
        self._exchange.used = used_tokens(self._job, self._exchange, error)
        if self._reservation is not None:
            self._reservation.settle(self._exchange, error)


class Reservation(msgspec.Struct, frozen=True):
    store: Store
    taken: Sequence[Taken]
    claims: Sequence[Claim]
    lease: str
    decision: Decision

    @property
    def headers(self) -> tuple[Header, ...]:
        return _headers(self.taken, self.decision.standings)

    def settle(self, exchange: Exchange, error: BaseException | None) -> None:
        by = changes(self.taken, exchange, error)
        self.store.settle(self.claims, self.lease, self.decision.slot, by)


class Refused(ApiError):
    """429: a limit of the caller's. `standing` are the headers that tell how all of them stand."""

    def __init__(self, taken: Sequence[Taken], standings: Sequence[Standing]) -> None:
        self.standing = _headers(taken, standings)
        over = [(one, at) for one, at in zip(taken, standings, strict=True) if at.wait_ms]
        one, _ = max(over, key=lambda pair: pair[1].wait_ms)
        never = next((large for large, _ in over if large.claim.cost > large.claim.limit), None)
        one = never or one
        what, of = one.field.replace("_", " "), f" of model '{one.model}'" if one.model else ""
        seconds = _seconds(max(at.wait_ms for _, at in over))
        headers: list[Header] = [(b"retry-after", b"%d" % seconds)]
        if never is not None:
            code = "request_exceeds_limit"
            message = (
                f"This request may take {one.claim.cost} tokens, more than your key's limit of "
                f"{one.claim.limit} {what}{of}: shorten the prompt or ask for fewer tokens."
            )
            # Clients of OpenAI's heed it: no waiting makes this one fit.
            headers.append((b"x-should-retry", b"false"))
        else:
            code = f"{one.field}_exceeded"
            message = (
                f"Your key's limit of {one.claim.limit} {what}{of} is reached: try again in {seconds} s."
            )
        super().__init__(429, code, message, kind="rate_limit_error", headers=headers)


def _part(taken: Sequence[Taken], workers: int) -> list[Taken]:
    """One worker's part of each limit; what is larger than that takes all of it, rather than never run."""
    parts = []
    for one in taken:
        limit = max(one.claim.limit // workers, 1)
        cost = min(one.claim.cost, limit) if one.claim.cost <= one.claim.limit else one.claim.cost
        claim = msgspec.structs.replace(one.claim, limit=limit, cost=cost)
        parts.append(msgspec.structs.replace(one, claim=claim))
    return parts


def _headers(taken: Sequence[Taken], standings: Sequence[Standing]) -> tuple[Header, ...]:
    """OpenAI's headers, of the tightest limit of requests and the tightest of tokens; resets in seconds."""
    tightest: dict[bool, tuple[int, int, int]] = {}
    for one, at in zip(taken, standings, strict=True):
        claim = one.claim
        if claim.kind is not PLACES:
            left = claim.limit - at.used
            known = tightest.get(one.tokens)
            if known is None or left < known[0]:
                tightest[one.tokens] = left, claim.limit, at.reset_ms
    headers: list[Header] = []
    for tokens, (remaining, limit, reset_ms) in tightest.items():
        of_limit, of_remaining, of_reset = _NAMES[tokens]
        headers += [
            (of_limit, b"%d" % limit),
            (of_remaining, b"%d" % (remaining if remaining > 0 else 0)),
            (of_reset, b"%ds" % _seconds(reset_ms)),
        ]
    return tuple(headers)


def _seconds(milliseconds: int) -> int:
    return math.ceil(milliseconds / 1000)
