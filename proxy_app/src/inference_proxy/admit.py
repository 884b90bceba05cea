"""Third step: may it run, and when? Limits (429) and the queue (503) have their place here."""

from types import TracebackType

from .account import Exchange
from .limits import Hold, Limits
from .outgoing import Job


class Admission:
    """Leave for one request to run, as `async with`.

    Entering waits until it may run: raises ApiError 429 for what is the caller's limit, Unavailable (503) for
    what is our capacity. Leaving gives the place back and settles what was reserved: by then
    `exchange.usage()` tells what the engine counted, or None where the request did not come that far.
    """

    __slots__ = ("_exchange", "_hold", "_job")

    def __init__(self, hold: Hold, job: Job, exchange: Exchange) -> None:
        self._hold = hold
        self._job = job
        self._exchange = exchange

    async def __aenter__(self) -> "Admission":
        await self._hold.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._hold.__aexit__(kind, error, trace)


class Gate:
    """Hands out admissions. One for all requests of a worker: limits and queues live in it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def admit(self, job: Job, exchange: Exchange) -> Admission:
        return Admission(self._limits.hold(job, exchange), job, exchange)
