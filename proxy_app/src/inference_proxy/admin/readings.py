"""The worker's state that is read at each scrape and shown on the status page."""

from collections.abc import Callable
from typing import Any

from inference_proxy.accounting.metrics import Values
from inference_proxy.state import State

View = Callable[[], list[dict[str, Any]]]
"""Rows for the admin API and the status page: flat JSON objects, all with the same fields."""


class Readings:
    """Adds the state's numbers to its metrics. `views` are the tables that the admin API shows, by name."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.views: dict[str, View] = {"queues": self._queue_rows, "limits": state.limits.rows}
        fleet = state.fleet
        watch = state.metrics.watch
        watch("ready", "1 where requests can be served.", (), lambda: [((), state.ready())])
        watch(
            "faults", "Errors in what requests share, since the start.", (), lambda: [((), state.faults.seen)]
        )
        watch(
            "config_refused",
            "1 while a file on disk cannot be used and an older one is.",
            (),
            lambda: [((), state.config_error is not None)],
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
            lambda: [((), state.limits.store_away)],
        )
        watch("queue_waiting", "Requests that wait in a queue.", ("model", "pool", "priority"), self._waiting)
        # Also while none waits: to an Auto Scaling group that follows it, a missing value is a broken agent.
        watch("waiting_requests", "Requests that wait in queues.", (), lambda: [((), self._waiting_in_all())])
        watch("retry_budget", "Retries that may be made at once.", (), lambda: [((), state.retries.saved)])

    def _waiting(self) -> Values:
        for queue in self._state.queues.snapshot(self._state.settings.config):
            for priority, number in queue.waiting.items():
                yield (queue.model, queue.pool or "", priority), number

    def _waiting_in_all(self) -> float:
        return sum(number for _, number in self._waiting())

    def _queue_rows(self) -> list[dict[str, Any]]:
        """Queues in which requests wait, with a column per priority class."""
        config = self._state.settings.config
        return [
            {"model": queue.model, "pool": queue.pool}
            | {name: queue.waiting.get(name, 0) for name in config.priorities}
            | {"expected_wait_s": round(queue.expected_wait_s, 1)}
            for queue in self._state.queues.snapshot(config)
        ]
