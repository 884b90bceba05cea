"""Counters in Redis or Valkey, shared by the workers of all hosts."""

import asyncio
import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

from inference_proxy.config import StoreConfig
from inference_proxy.limits.redis import Argument, RedisClient, Reply
from inference_proxy.limits.scripts import RENEW, RESERVE, SETTLE
from inference_proxy.limits.store import PLACES, WINDOW, Claim, Decision, Standing, StoreAway

# How long after a worker has died its places are free again. A live worker renews them in time.
_LEASE_S = 30.0
_RENEWALS = 3


# Its counter is used by nothing else, and the claim takes nothing from it.
_TRIAL: tuple[Argument, ...] = (1, "inference-proxy:trial", "trial", 1, WINDOW, 1, 0, 0)


class SharedStore:
    """A Store for many workers. Must be closed."""

    def __init__(self, config: StoreConfig) -> None:
        self._client = RedisClient(config, (RESERVE, SETTLE, RENEW), _TRIAL)
        self._name = f"{socket.gethostname()}-{os.getpid()}-"
        self._leases: dict[str, list[str]] = {}
        self._renewing = asyncio.create_task(self._renew())

    @property
    def away(self) -> bool:
        return not self._client.connected

    async def ready(self) -> None:
        """Wait until it is known whether the store answers."""
        await self._client.first_attempt()

    async def close(self) -> None:
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)
        await self._client.close()

    async def reserve(self, claims: Sequence[Claim], lease: str) -> Decision:
        """Take all claims, or none if one does not fit. Raises StoreAway."""
        arguments: list[Argument] = [self._name + lease, int(_LEASE_S * 1000)]
        for claim in claims:
            arguments += (claim.kind, claim.limit, claim.cost, claim.ends_ms)
        reply = self._client.call(RESERVE, [claim.counter for claim in claims], arguments)
        try:
            decision = _decision(await asyncio.shield(reply), claims)
        except asyncio.CancelledError:
            # The caller leaves, but the store may have granted the claims.
            reply.add_done_callback(lambda reply: self._give_back(claims, lease, reply))
            raise
        places = [claim.counter for claim in claims if claim.kind is PLACES]
        if decision.granted and places:
            self._leases[lease] = places
        return decision

    def settle(self, claims: Sequence[Claim], lease: str, slot: int, changes: Sequence[int]) -> None:
        self._leases.pop(lease, None)
        arguments: list[Argument] = [self._name + lease, slot]
        counters = []
        for claim, change in zip(claims, changes, strict=True):
            if change or claim.kind is PLACES:
                counters.append(claim.counter)
                arguments += (claim.kind, change, claim.ends_ms)
        if counters:
            self._tell(SETTLE, counters, arguments)

    def _give_back(self, claims: Sequence[Claim], lease: str, reply: "asyncio.Future[Reply]") -> None:
        if reply.cancelled() or reply.exception() is not None:
            return
        decision = _decision(reply.result(), claims)
        if decision.granted:
            self.settle(claims, lease, decision.slot, [-claim.cost for claim in claims])

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / _RENEWALS)
            leases: dict[str, list[str]] = defaultdict(list)
            for lease, counters in self._leases.items():
                for counter in counters:
                    leases[counter].append(self._name + lease)
            for counter, names in leases.items():
                self._tell(RENEW, [counter], [int(_LEASE_S * 1000), *names])

    def _tell(self, script: str, counters: Sequence[str], arguments: Sequence[Argument]) -> None:
        with contextlib.suppress(StoreAway):
            # The Redis client logs when the store is away. The reply is not awaited, so its failure is not an
            # error here.
            self._client.call(script, counters, arguments).add_done_callback(_forget)


def _forget(reply: "asyncio.Future[Reply]") -> None:
    if not reply.cancelled():
        reply.exception()


def _decision(reply: Reply, claims: Sequence[Claim]) -> Decision:
    """Parse the reply. Raises StoreAway if our script cannot have sent it."""
    try:
        granted, slot, *numbers = cast(list[int], reply)
        standings = [Standing(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
    except (TypeError, ValueError):
        standings = []
    if len(standings) != len(claims):
        raise StoreAway("its answer is not one of the script's")
    return Decision(bool(granted), slot, standings)
