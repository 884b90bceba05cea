"""Finds a request a place at an engine: at once if there is room, otherwise after a bounded wait in a queue.

A refusal here means a lack of capacity: 503, with the queue's expected wait as Retry-After.
"""

import asyncio
import math
from dataclasses import dataclass, field

import msgspec

from inference_proxy.api.errors import ApiError, Unavailable
from inference_proxy.config import Config
from inference_proxy.engines.fleet import Engine, Fleet
from inference_proxy.faults import Faults
from inference_proxy.request.job import Job
from inference_proxy.scheduling import affinity, route
from inference_proxy.scheduling.fair_queue import FairQueue

# The most that a Retry-After says: waiting requests may end sooner than their size suggests.
_LONGEST_WAIT_S = 600


class QueueView(msgspec.Struct, frozen=True):
    """A snapshot of a queue.

    `waiting` is by priority class; `expected_wait_s` is that of a new request in `default`.
    """

    model: str
    pool: str | None
    waiting: dict[str, int]
    expected_wait_s: float


class Place:
    """Counts a request at its engine from the choice on, so that the next choice sees it.

    Must be left with leave().

    `turn` is the queue in which the request waited, and its class there.
    """

    __slots__ = ("_cost", "_fleet", "_turn", "engine")

    def __init__(
        self, fleet: Fleet, engine: Engine, cost: int, turn: "tuple[FairQueue[_Waiter], str] | None" = None
    ) -> None:
        self._fleet = fleet
        self._cost = cost
        self._turn = turn
        self._take(engine)

    def _take(self, engine: Engine) -> None:
        self.engine = engine
        engine.in_flight += 1
        engine.tokens += self._cost

    def leave(self) -> None:
        self.engine.in_flight -= 1
        self.engine.tokens -= self._cost
        self._fleet.freed()

    def move(self, engine: Engine) -> None:
        self.leave()
        self._take(engine)

    def settle(self, used: int, most: int) -> None:
        """At the end of the request: charge its class in the queue with the tokens that were really used.

        More than `most`, which is all that the model could do for it, is a mistake of the engine's and is not
        charged.
        """
        if self._turn is not None:
            queue, priority = self._turn
            queue.settle(priority, min(used, max(most, self._cost)) - self._cost)


class _Request(msgspec.Struct, frozen=True, eq=False):
    """A request's needs and cost at an engine."""

    job: Job
    config: Config
    pool: str | None
    cost: int
    key: int | None

    @classmethod
    def of(cls, job: Job, config: Config) -> "_Request":
        cost = route.cost_of(job, config.routing)
        return cls(job, config, route.pool_of(job, config), cost, affinity.key_of(job.asked, config))


@dataclass(slots=True, eq=False)
class _Waiter:
    request: _Request
    turn: asyncio.Future[None]
    place: Place | None = None
    refusal: ApiError | None = None

    def wake(self) -> None:
        if not self.turn.done():
            self.turn.set_result(None)


@dataclass(slots=True)
class _Queue:
    """A queue and its rate.

    All requests in it can use the same engines, so the first never blocks one that could run.
    """

    since: float
    waiting: FairQueue[_Waiter] = field(default_factory=FairQueue)
    served: int = 0  # tokens

    def expected_wait_s(self, now: float, priority: str, config: Config) -> float:
        """Expected wait at the queue's rate so far; max_wait_s while that is unknown."""
        if not self.served or now <= self.since:
            return config.queue.max_wait_s
        return (
            self.waiting.ahead(priority, config.priorities[priority].share) * (now - self.since) / self.served
        )


class Queues:
    """A worker's queues: one for each model (and pool) that requests are waiting for."""

    def __init__(self, fleet: Fleet, faults: Faults) -> None:
        self._fleet = fleet
        self._faults = faults
        self._queues: dict[tuple[str, str | None], _Queue] = {}
        fleet.when_freed(self.wake)

    async def enter(self, job: Job, config: Config) -> Place:
        """Wait for a place, which the caller must leave(). A cancelled caller leaves the queue at once.

        Raises Unavailable: `model_unavailable` (no engine serves the model), `queue_full`, `queue_timeout`.
        """
        request = _Request.of(job, config)
        if (job.model, request.pool) not in self._queues:
            engine = self._room_for(request)
            if engine is not None:
                return Place(self._fleet, engine, request.cost)
        return await self._wait(request)

    def elsewhere(self, job: Job, config: Config, tried: Engine, *, room: bool) -> Engine | None:
        """Another engine for a job that has already had its turn.

        None if no other is in service, or has room if `room` is set.
        """
        request = _Request.of(job, config)
        now = self._fleet.now()
        try:
            serving = self._fleet.serving(job.model, request.pool)
        except Unavailable:
            return None
        engines = [engine for engine in serving if engine is not tried and (not room or engine.has_room(now))]
        return self._choose(engines, request)

    def wake(self) -> None:
        """Engines may have room again: let the next requests in.

        A failure here concerns only the queue, not the request that happens to call this: the queue's
        requests are refused, and a new queue begins.
        """
        served = bool(self._queues)
        while served:
            served = False
            for name, queue in list(self._queues.items()):
                try:
                    advanced = self._serve_head(queue)
                except Exception:
                    self._faults.note(f"the queue of model {name[0]!r} failed")
                    self._close(name, queue)
                    continue
                if advanced:
                    served = True
                    # Queues take turns at engines that they share.
                    del self._queues[name]
                    if queue.waiting.length:
                        self._queues[name] = queue

    def _close(self, name: tuple[str, str | None], queue: _Queue) -> None:
        del self._queues[name]
        for waiter in queue.waiting.all():
            waiter.refusal = ApiError(500, "internal_error", "The proxy failed to handle this request.")
            waiter.wake()

    def snapshot(self, config: Config) -> list[QueueView]:
        now = self._fleet.now()
        return [
            QueueView(model, pool, queue.waiting.counts(), queue.expected_wait_s(now, "default", config))
            for (model, pool), queue in self._queues.items()
        ]

    def _room_for(self, request: _Request) -> Engine | None:
        now = self._fleet.now()
        engines = self._fleet.serving(request.job.model, request.pool)
        return self._choose([engine for engine in engines if engine.has_room(now)], request)

    def _choose(self, engines: list[Engine], request: _Request) -> Engine | None:
        if not engines:
            return None
        return route.choose(engines, request.cost, request.key, request.config.routing, self._fleet.failing)

    def _serve_head(self, queue: _Queue) -> bool:
        request = queue.waiting.head().request
        try:
            engine = self._room_for(request)
        except Unavailable as error:
            waiter = queue.waiting.take()
            waiter.refusal = error
        else:
            if engine is None:
                return False
            # Take the turn first: if that fails, no place has been taken that would never be left.
            waiter = queue.waiting.take()
            waiter.place = Place(
                self._fleet, engine, request.cost, (queue.waiting, request.job.asked.key.priority)
            )
            queue.served += request.cost
        waiter.wake()
        return True

    async def _wait(self, request: _Request) -> Place:
        job, config = request.job, request.config
        name, priority = (job.model, request.pool), job.asked.key.priority
        share, limits = config.priorities[priority].share, config.queue
        queue = self._queues.setdefault(name, _Queue(self._fleet.now()))
        waiter = _Waiter(request, asyncio.get_running_loop().create_future())
        try:
            crowded_out = queue.waiting.add(waiter, priority, share, request.cost, limits.max_waiting)
            if crowded_out is not None:
                what = f"Too many requests wait for '{crowded_out.request.job.model}' already."
                crowded_out.refusal = self._refuse("queue_full", what, queue, crowded_out.request)
                crowded_out.wake()
            async with asyncio.timeout(limits.max_wait_s):
                await waiter.turn
        except TimeoutError:
            what = f"No engine had room for '{job.model}' within {limits.max_wait_s:g} s."
            waiter.refusal = self._refuse("queue_timeout", what, queue, request)
        except asyncio.CancelledError:
            if waiter.place is not None:
                waiter.place.leave()
                waiter.place.settle(0, 0)
            raise
        finally:
            queue.waiting.leave(waiter, priority)
            if not queue.waiting.length and self._queues.get(name) is queue:
                del self._queues[name]
        if waiter.place is not None:
            return waiter.place
        assert waiter.refusal is not None, "whoever is woken has a place or is refused"
        raise waiter.refusal

    def _refuse(self, code: str, message: str, queue: _Queue, request: _Request) -> Unavailable:
        priority = request.job.asked.key.priority
        wait_s = queue.expected_wait_s(self._fleet.now(), priority, request.config)
        return Unavailable(code, message, retry_after_s=max(1, math.ceil(min(wait_s, _LONGEST_WAIT_S))))
