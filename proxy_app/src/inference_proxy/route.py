"""Third step: which engine? And what is known about each of them."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .authenticate import Key
from .config import EngineConfig
from .errors import ApiError, Unavailable


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

    def serving(self, model: str, key: Key) -> list[Engine]:
        """Engines that can take a request for `model` now. Raises ApiError 404, 503."""
        # A model that the key may not use does not exist for it: the answer tells nothing about the others.
        engines = [engine for engine in self.engines if model in engine.models] if key.may_use(model) else []
        if not engines:
            raise ApiError(
                404,
                "model_not_found",
                f"The model '{model[:256]}' does not exist, or your key may not use it: see GET /v1/models.",
                param="model",
            )
        if serving := [engine for engine in engines if engine.state == "serving"]:
            return serving
        raise Unavailable(
            "model_unavailable", f"No engine is serving '{model}' at the moment.", retry_after_s=5
        )


def choose(engines: Sequence[Engine], tried: Engine | None) -> Engine:
    """The engine with the fewest requests in flight, at random among equals; `tried` only if it is alone."""
    untried = [engine for engine in engines if engine is not tried] or engines
    least = min(engine.in_flight for engine in untried)
    return random.choice([engine for engine in untried if engine.in_flight == least])
