"""Third step: whether a request may run, and when.

429 for the caller's limits, 503 for a lack of capacity.
"""

import time
from types import TracebackType

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.config import Config
from inference_proxy.faults import Faults
from inference_proxy.limits import Limits, used_tokens
from inference_proxy.request.job import Job
from inference_proxy.scheduling.queues import Place, Queues


class Admission:
    """Permission for one request to run, used as `async with`; it yields a place at an engine.

    Entering charges the request against its caller's limits, then waits in the queue for a place. Raises
    ApiError 429 and Unavailable. Leaving frees the place and settles the charge: by then `exchange.usage()`
    returns what the engine counted, or None if the request did not get that far.
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
        # Do each of these steps even if another one fails.
        try:
            place.leave()
        except Exception:
            self._faults.note_wrong_counts()
        self._settle(error)
        try:
            place.settle(sum(exchange.used), job.context_tokens * job.asked.choices)
        except Exception:
            self._faults.note_wrong_counts()

    def _settle(self, error: BaseException | None) -> None:
        try:
            # Needed without limits, too: usage by day has the same numbers.
            self._exchange.used = used_tokens(self._job, self._exchange, error)
        except Exception:
            self._faults.note_wrong_counts()
        if self._hold is not None:
            try:
                self._hold.settle(self._exchange, error)
            except Exception:
                self._faults.note_wrong_counts()
