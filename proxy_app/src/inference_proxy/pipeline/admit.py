"""Third step: may it run, and when? 429 for a limit of the caller's, 503 for what is our capacity."""

import time
from types import TracebackType

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.config import Config
from inference_proxy.faults import Faults
from inference_proxy.limits import Limits, used_tokens
from inference_proxy.request.job import Job
from inference_proxy.scheduling.queues import Place, Queues


class Admission:
    """Leave for one request to run, as `async with`, at the engine of the place that it gives.

    Entering holds the request against its caller's limits, then waits in line for the place: raises ApiError
    429 and Unavailable. Leaving gives the place back and settles what was held: by then `exchange.usage()`
    tells what the engine counted, or None where the request did not come that far.
    """

    __slots__ = ("_config", "_exchange", "_faults", "_hold", "_job", "_limits", "_place", "_queues")

    def __init__(
        self,
        limits: Limits,
        queues: Queues,
        faults: Faults,
        job: Job,
        exchange: Exchange,
        config: Config,
    ) -> None:
        self._limits = limits
        self._queues = queues
        self._faults = faults
        self._job = job
        self._exchange = exchange
        self._config = config

    async def __aenter__(self) -> Place:
        exchange = self._exchange
        self._hold = await self._limits.hold(self._job, exchange)
        came = time.perf_counter()
        try:
            self._place = await self._queues.enter(self._job, self._config)
        except BaseException as error:
            self._settle(error)
            raise
        finally:
            exchange.queue_s = (exchange.queue_s or 0.0) + time.perf_counter() - came
        return self._place

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        place, job, exchange = self._place, self._job, self._exchange
        # Each of them, whatever the others do.
        try:
            place.leave()
        except Exception:
            self._faults.note_damage()
        self._settle(error)
        try:
            place.settle(sum(exchange.used), job.context_tokens * job.asked.choices)
        except Exception:
            self._faults.note_damage()

    def _settle(self, error: BaseException | None) -> None:
        try:
            # Not for its caller's limits alone: what they count is what the usage by day has.
            self._exchange.used = used_tokens(self._job, self._exchange, error)
        except Exception:
            self._faults.note_damage()
        if self._hold is not None:
            try:
                self._hold.settle(self._exchange, error)
            except Exception:
                self._faults.note_damage()
