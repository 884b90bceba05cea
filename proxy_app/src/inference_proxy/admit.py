"""Third step: may it run, and when? 429 for a limit of the caller's, 503 for what is our capacity."""

import time
from types import TracebackType

from .account import Exchange
from .config import Config
from .limits import Hold, Limits
from .outgoing import Job
from .queue import Place, Queues


class Admission:
    """Leave for one request to run, as `async with`, at the engine of the place that it gives.

    Entering holds the request against its caller's limits, then waits in line for the place: raises ApiError
    429 and Unavailable. Leaving gives the place back and settles what was held: by then `exchange.usage()`
    tells what the engine counted, or None where the request did not come that far.
    """

    __slots__ = ("_config", "_exchange", "_hold", "_job", "_place", "_queues")

    def __init__(self, hold: Hold, queues: Queues, job: Job, exchange: Exchange, config: Config) -> None:
        self._hold = hold
        self._queues = queues
        self._job = job
        self._exchange = exchange
        self._config = config

    async def __aenter__(self) -> Place:
        await self._hold.__aenter__()
        came = time.perf_counter()
        try:
            self._place = await self._queues.enter(self._job, self._config)
        except BaseException as error:
            await self._hold.__aexit__(type(error), error, error.__traceback__)
            raise
        finally:
            self._exchange.queue_s = (self._exchange.queue_s or 0.0) + time.perf_counter() - came
        return self._place

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.leave()
        await self._hold.__aexit__(kind, error, trace)


class Gate:
    """Hands out admissions. One for all requests of a worker: limits and queues stand behind it."""

    def __init__(self, limits: Limits, queues: Queues) -> None:
        self._limits = limits
        self._queues = queues

    def admit(self, job: Job, exchange: Exchange, config: Config) -> Admission:
        return Admission(self._limits.hold(job, exchange), self._queues, job, exchange, config)
