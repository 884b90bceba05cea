"""Fourth step: which engine? And what is known about each of them."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .config import EngineConfig
from .errors import Unavailable
from .outgoing import Job


class Engine:
    """One vLLM server. Lives as long as its id and address stay in the configuration, across reloads."""

    def __init__(self, config: EngineConfig) -> None:
        self.id = config.id
        self.url = config.url
        self.models = frozenset(config.models)
        self.drained = False
        self.reachable = False  # until the poller has met it
        self.in_flight = 0
        self.cards: dict[str, dict[str, Any]] = {}

    @property
    def state(self) -> str:
        if self.drained:
            return "drained"
        return "serving" if self.reachable else "down"

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Counts a request from the moment of the choice, so that the next choice sees it."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class Fleet:
    """The engines of the current configuration."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []

    def configure(self, configs: Sequence[EngineConfig]) -> None:
        """Take over a new list. Engines that are in both keep their counts and what is known of them."""
        known = {(engine.id, engine.url): engine for engine in self.engines}
        engines = []
        for config in configs:
            engine = known.get((config.id, config.url)) or Engine(config)
            engine.models = frozenset(config.models)
            engines.append(engine)
        self.engines = engines

    def set_drained(self, ids: frozenset[str]) -> None:
        for engine in self.engines:
            engine.drained = engine.id in ids

    def models(self) -> list[str]:
        return sorted({model for engine in self.engines for model in engine.models})

    def serving(self, job: Job) -> list[Engine]:
        """Engines that can take the job now. Raises Unavailable."""
        engines = [
            engine for engine in self.engines if job.model in engine.models and engine.state == "serving"
        ]
        if not engines:
            raise Unavailable(
                "model_unavailable", f"No engine is serving '{job.model}' at the moment.", retry_after_s=5
            )
        return engines


def choose(engines: Sequence[Engine], tried: Engine | None) -> Engine:
    """The engine with the fewest requests in flight, at random among equals; `tried` only if it is alone."""
    untried = [engine for engine in engines if engine is not tried] or engines
    least = min(engine.in_flight for engine in untried)
    return random.choice([engine for engine in untried if engine.in_flight == least])
