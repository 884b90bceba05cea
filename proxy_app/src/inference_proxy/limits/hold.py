"""Takes a request through its caller's limits: reserves before it runs, settles when it has ended."""

import asyncio
import functools
import itertools
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import msgspec

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.api.errors import ApiError, Unavailable
from inference_proxy.config import LimitsConfig, StoreConfig
from inference_proxy.http.message import Header
from inference_proxy.limits.claims import Plan, Plans, changes, reserved_tokens
from inference_proxy.limits.local_store import LocalStore
from inference_proxy.limits.shared_store import SharedStore
from inference_proxy.limits.store import Claim, Store, StoreAway
from inference_proxy.request.job import Job
from inference_proxy.settings import Settings

# For how many keys, each with a model, limits can be inspected.
_MOST_SEEN = 100


class Limits:
    """The limits of one worker's requests, used as `async with`: counted here, or in the configured store."""

    def __init__(self) -> None:
        self._config = LimitsConfig()
        self._entered = False
        self._plans = Plans()
        self._local = LocalStore()
        self._shared: SharedStore | None = None
        self._follows: StoreConfig | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._leases = itertools.count(1)

    async def __aenter__(self) -> "Limits":
        self._entered = True
        self._choose_store()
        if self._shared is not None:
            # Wait for the store, so that the first requests are counted there like all others.
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
        """Whether a store is configured but does not answer."""
        return self._shared is not None and self._shared.away

    def reconfigure(self, settings: Settings) -> None:
        self._config = settings.config.limits
        if self._entered:
            self._choose_store()

    def _choose_store(self) -> None:
        """Change to another store if the configuration names one.

        What was still to be settled in the old one is lost: places there expire, and reservations stay as
        they are.
        """
        config = self._config.store
        if config == self._follows:
            return
        if self._shared is not None:
            task = asyncio.create_task(self._shared.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._follows = config
        self._shared = SharedStore(config) if config is not None else None

    async def hold(self, job: Job, exchange: Exchange) -> "Hold | None":
        """Reserve what the request may use, until it is settled; None for a caller without limits.

        The answer gets headers with the state of the limits. Raises Refused, and Unavailable if the store
        does not answer and the configuration does not let requests pass without it.
        """
        config = self._config
        plan = self._plans.of(job, config, time.time())
        if not plan.limits:
            return None
        claims = plan.claim(*reserved_tokens(job, config))
        lease = str(next(self._leases))
        store: Store = self._local
        if self._shared is None:
            decision = self._local.reserve(claims, lease)
        else:
            try:
                decision, store = await self._shared.reserve(claims, lease), self._shared
            except StoreAway:
                assert config.store is not None, "a shared store is a configured one"
                if not config.store.fail_open:
                    raise Unavailable(
                        "limits_unavailable",
                        "The service cannot count requests at the moment.",
                        retry_after_s=1,
                    ) from None
                claims = _part(claims, config.store.workers)
                decision = self._local.reserve(claims, lease)
        plan.seen, plan.claims, plan.standings = time.monotonic(), claims, decision.standings
        exchange.notices += _headers(plan)
        if not decision.granted:
            raise Refused(plan)
        return Hold(store, plan, claims, lease, decision.slot)

    def rows(self) -> list[dict[str, Any]]:
        """How limits stood at this worker's latest requests, the latest key first.

        If workers share a store, this includes what all of them have used.
        """
        now = time.monotonic()
        # By counter: plans for different models share some of them, and the latest one counts.
        rows: dict[str, dict[str, Any]] = {}
        for plan in sorted(self._plans, key=lambda plan: plan.seen, reverse=True)[:_MOST_SEEN]:
            for limit, claim, standing in zip(plan.limits, plan.claims, plan.standings, strict=True):
                row = {
                    "key": plan.key,
                    "model": limit.model,
                    "limit": limit.field,
                    "used": standing.used,
                    "of": claim.limit,
                    "seconds_ago": round(now - plan.seen),
                }
                rows.setdefault(claim.counter, row)
        return list(rows.values())


class Hold(msgspec.Struct, frozen=True, eq=False):
    """What one request has reserved of its caller's limits."""

    store: Store
    plan: Plan
    claims: Sequence[Claim]
    lease: str
    slot: int

    def settle(self, exchange: Exchange, error: BaseException | None) -> None:
        """At the end of the request: return what was not used, or charge what was used in addition."""
        by = changes(self.plan, self.claims, exchange, error)
        self.store.settle(self.claims, self.lease, self.slot, by)


class Refused(ApiError):
    """429: one of the caller's limits is exceeded, as the plan's standings show."""

    def __init__(self, plan: Plan) -> None:
        over = [
            (limit, claim, at)
            for limit, claim, at in zip(plan.limits, plan.claims, plan.standings, strict=True)
            if at.wait_ms
        ]
        never = next(((limit, claim) for limit, claim, _ in over if claim.cost > claim.limit), None)
        limit, claim = never or max(over, key=lambda one: one[2].wait_ms)[:2]
        what, of = limit.field.replace("_", " "), f" of model '{limit.model}'" if limit.model else ""
        seconds = _seconds(max(at.wait_ms for _, _, at in over))
        headers: list[Header] = [(b"retry-after", b"%d" % seconds)]
        if never is not None:
            code = "request_exceeds_limit"
            message = (
                f"This request may take {claim.cost} tokens, more than your key's limit of "
                f"{claim.limit} {what}{of}: shorten the prompt or ask for fewer tokens."
            )
            # OpenAI's clients respect it: this request will never fit, however long they wait.
            headers.append((b"x-should-retry", b"false"))
        else:
            code = f"{limit.field}_exceeded"
            message = f"Your key's limit of {claim.limit} {what}{of} is reached: try again in {seconds} s."
        super().__init__(429, code, message, kind="rate_limit_error", headers=headers)


def _part(claims: Sequence[Claim], workers: int) -> list[Claim]:
    """One worker's share of each limit.

    A claim larger than the share takes all of it, so that it can run at all.
    """
    parts = []
    for claim in claims:
        limit = max(claim.limit // workers, 1)
        cost = min(claim.cost, limit) if claim.cost <= claim.limit else claim.cost
        parts.append(msgspec.structs.replace(claim, limit=limit, cost=cost))
    return parts


def _headers(plan: Plan) -> tuple[Header, ...]:
    """OpenAI's headers, for the tightest limit of requests and the tightest of tokens.

    Resets are in seconds.
    """
    claims, standings = plan.claims, plan.standings
    headers: list[Header] = []
    for (limit, remaining, reset), members in plan.reported:
        left, at = min([(claims[at].limit - standings[at].used, at) for at in members])
        headers += (
            (limit, _digits(claims[at].limit)),
            (remaining, b"%d" % (left if left > 0 else 0)),
            (reset, b"%ds" % _seconds(standings[at].reset_ms)),
        )
    return tuple(headers)


@functools.lru_cache(maxsize=1024)
def _digits(number: int) -> bytes:
    return b"%d" % number


def _seconds(milliseconds: int) -> int:
    """Whole seconds, rounded up."""
    return -(-milliseconds // 1000)
