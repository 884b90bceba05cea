"""The state of a worker. Each request takes the current `settings` and keeps them to its end."""

import logging

from inference_proxy.accounting.accounts import Accounts
from inference_proxy.accounting.metrics import Metrics
from inference_proxy.accounting.tracing import Tracing
from inference_proxy.accounting.usage_store import UsageStore
from inference_proxy.config import list_drained
from inference_proxy.engines.drain_markers import start_s, why_drained
from inference_proxy.engines.fleet import Fleet
from inference_proxy.faults import Faults
from inference_proxy.limits import Limits
from inference_proxy.request.guard import Guards, Reason
from inference_proxy.scheduling.queues import Queues
from inference_proxy.scheduling.retry_budget import RetryBudget
from inference_proxy.settings import Part, Settings

log = logging.getLogger(__name__)


class State:
    """Holds a worker's parts. `worker` is its port, which identifies it among the workers of a host."""

    def __init__(self, settings: Settings, worker: int = 0) -> None:
        self.worker = worker
        self.faults = Faults()
        self.fleet = Fleet()
        self.queues = Queues(self.fleet, self.faults)
        self.limits = Limits()
        self.retries = RetryBudget(settings.config.retries)
        self.guards = Guards(self.faults)
        self.metrics = Metrics()
        self.usage = UsageStore(str(worker))
        self.tracing = Tracing()
        self.accounts = Accounts(self.metrics, self.usage, self.faults)
        self.parts: list[Part] = [self.fleet, self.limits, self.usage, self.tracing, self.metrics]
        self.stopping = False
        self.config_error: str | None = None
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        """Take over a configuration: first for new requests, then in each part in order."""
        self.settings = settings
        for part in self.parts:
            part.reconfigure(settings)
        self.look_for_drained()
        if settings.config.end_revoked:
            self._end_revoked()

    def _end_revoked(self) -> None:
        for guard in self.guards:
            if guard.key is not None and not self.settings.keys.knows(guard.key):
                guard.interrupt(Reason.KEY_REVOKED)

    def look_for_drained(self) -> None:
        directory = self.settings.config.drained_dir
        drained = self.fleet.set_drained(
            list_drained(directory), lambda engine_id: start_s(why_drained(directory, engine_id))
        )
        for engine in drained:
            if engine.drained:
                because = why_drained(directory, engine.id)
                log.info("engine %s at %s is drained: %s", engine.id, engine.url, because)
            else:
                log.info("engine %s at %s is no longer drained", engine.id, engine.url)

    def interrupt_all(self) -> None:
        """End what is still running; each request gets an answer that says so."""
        for guard in self.guards:
            guard.interrupt(Reason.SHUTDOWN)

    def ready(self) -> bool:
        if self.stopping or self.faults.reason is not None:
            return False
        now = self.fleet.now()
        return any(engine.serves or engine.is_last_resort(now) for engine in self.fleet.engines)
