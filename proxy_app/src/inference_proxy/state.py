"""What the proxy knows at this moment. Requests take one `settings` and keep it to their end."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_proxy.account import Accounts
from inference_proxy.accounting.metrics import Metrics, Values
from inference_proxy.accounting.tracing import Tracing
from inference_proxy.accounting.usage_store import UsageStore
from inference_proxy.api.endpoints import Endpoints
from inference_proxy.config import Config, ConfigError, KeyConfig, list_drained, load_config, load_keys
from inference_proxy.engines.drain_markers import why_drained
from inference_proxy.engines.fleet import Fleet
from inference_proxy.faults import Faults
from inference_proxy.keys.authenticate import KeyRing
from inference_proxy.limits import Limits
from inference_proxy.request.catalogue import Catalogue
from inference_proxy.request.guard import Guards, Reason
from inference_proxy.scheduling.queues import Queues
from inference_proxy.scheduling.retry_budget import RetryBudget

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    config: Config
    keys: KeyRing
    endpoints: Endpoints
    catalogue: Catalogue

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read config.yml and its keys file. Raises ConfigError."""
        config = load_config(path)
        keys = load_keys(config.keys_file)
        _check_priorities(config, keys)
        return cls(config, KeyRing(keys), Endpoints(config), Catalogue(config))


def _check_priorities(config: Config, keys: tuple[KeyConfig, ...]) -> None:
    """Only here are both files known. Raises ConfigError."""
    if strays := [key for key in keys if key.priority not in config.priorities]:
        where = f"{config.keys_file}: {{}}: priority {{!r}} is not one of the configuration's"
        raise ConfigError([where.format(key.name, key.priority) for key in strays])


View = Callable[[], list[dict[str, Any]]]
"""Rows for the admin API and the status page: flat, of JSON's values, all with the same names."""


class State:
    """`worker` is the port by which a worker of a host is known. What has rows to show (queues, limits) is in
    `views`, by the name that it has in the admin API."""

    def __init__(self, settings: Settings, worker: int = 0) -> None:
        self.worker = worker
        self.fleet = Fleet()
        self.faults = Faults()
        self.queues = Queues(self.fleet, self.faults)
        self.limits = Limits(lambda: self.settings.config.limits)
        self.retries = RetryBudget(settings.config.retries)
        self.guards = Guards(self.faults)
        self.metrics = Metrics()
        self.usage = UsageStore(str(worker))
        self.tracing = Tracing()
        self.accounts = Accounts(self.metrics, self.usage, self.faults)
        self.views: dict[str, View] = {"queues": self._lines, "limits": self.limits.rows}
        self.stopping = False
        self.config_error: str | None = None
        self._publish()
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        self.settings = settings
        config = settings.config
        self.fleet.configure(config)
        self.usage.follow(config.usage)
        self.tracing.follow(config.traces)
        self.metrics.keep(
            settings.keys.owners(), config.model_names(), frozenset(e.id for e in config.engines)
        )
        self.look_for_drained()
        if config.end_revoked:
            for guard in self.guards:
                if guard.key is not None and not settings.keys.knows(guard.key):
                    guard.interrupt(Reason.KEY_REVOKED)

    def look_for_drained(self) -> None:
        directory = self.settings.config.drained_dir
        for engine in self.fleet.set_drained(list_drained(directory)):
            if engine.drained:
                because = why_drained(directory, engine.id)
                log.info("engine %s at %s is drained: %s", engine.id, engine.url, because)
            else:
                log.info("engine %s at %s is no longer drained", engine.id, engine.url)

    def interrupt_all(self) -> None:
        """End what is still running, each request with an answer that says so."""
        for guard in self.guards:
            guard.interrupt(Reason.SHUTDOWN)

    def ready(self) -> bool:
        if self.stopping or self.faults.reason is not None:
            return False
        return any(engine.serves for engine in self.fleet.engines)

    def _publish(self) -> None:
        """What is to be read from here at each scrape."""
        watch, fleet = self.metrics.watch, self.fleet
        watch("ready", "1 where requests can be served.", (), lambda: [((), self.ready())])
        watch(
            "faults", "Errors in what requests share, since the start.", (), lambda: [((), self.faults.seen)]
        )
        watch(
            "config_refused",
            "1 while a file on disk cannot be used and an older one is.",
            (),
            lambda: [((), self.config_error is not None)],
        )
        watch(
            "engine_requests_in_flight",
            "Requests that an engine has from this worker.",
            ("engine",),
            lambda: [((engine.id,), engine.in_flight) for engine in fleet.engines],
        )
        watch(
            "engine_state",
            "1 for the state an engine is in.",
            ("engine", "state"),
            lambda: [((engine.id, engine.state), 1) for engine in fleet.engines],
        )
        watch(
            "engine_breaker",
            "1 for the state an engine's circuit breaker is in.",
            ("engine", "state"),
            lambda: [((engine.id, engine.breaker.phase.value), 1) for engine in fleet.engines],
        )
        watch(
            "limits_store_away",
            "1 while a store of limits is configured and does not answer.",
            (),
            lambda: [((), self.limits.store_away)],
        )
        watch("queue_waiting", "Requests in line.", ("model", "pool", "priority"), self._waiting)
        watch(
            "retry_budget",
            "Retries that may be made at once.",
            (),
            lambda: [((), self.retries.saved)],
        )

    def _waiting(self) -> Values:
        for line in self.queues.snapshot(self.settings.config):
            for priority, number in line.waiting.items():
                yield (line.model, line.pool or "", priority), number

    def _lines(self) -> list[dict[str, Any]]:
        """Lines in which somebody waits, with a column for each class."""
        config = self.settings.config
        return [
            {"model": line.model, "pool": line.pool}
            | {name: line.waiting.get(name, 0) for name in config.priorities}
            | {"expected_wait_s": round(line.expected_wait_s, 1)}
            for line in self.queues.snapshot(config)
        ]
