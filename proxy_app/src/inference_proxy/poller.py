"""Keeps asking every engine for its models: that tells whether it is there, and fills the merged list."""

import asyncio
import logging
from typing import Any

import msgspec

from .route import Engine, Fleet
from .upstream import EngineLost, Upstream

_INTERVAL_S = 2.0
_TIMEOUT_S = 2.0
# A busy engine may answer late; one that refuses connections is gone. So only silence gets several chances.
_SILENCES = 3

log = logging.getLogger(__name__)


class _Models(msgspec.Struct):
    data: list[dict[str, Any]]


class Poller:
    def __init__(self, fleet: Fleet, upstream: Upstream) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._tasks: dict[Engine, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Meet every engine once, so that the first request finds them, then go on in the background."""
        await asyncio.gather(*(self._ask(engine, 0) for engine in self._fleet.engines))
        self.follow()

    def follow(self) -> None:
        """Begin with engines that are new in the fleet, leave those that are no longer in it."""
        for engine in self._tasks.keys() - set(self._fleet.engines):
            self._tasks.pop(engine).cancel()
        for engine in self._fleet.engines:
            if engine not in self._tasks:
                self._tasks[engine] = asyncio.create_task(self._poll(engine))

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _poll(self, engine: Engine) -> None:
        silences = 0
        while True:
            silences = await self._ask(engine, silences)
            await asyncio.sleep(_INTERVAL_S)

    async def _ask(self, engine: Engine, silences: int) -> int:
        """Ask once. Returns how many times in succession there was no answer in time."""
        before = engine.reachable
        why = ""
        try:
            status, body = await self._upstream.get(f"{engine.url}/v1/models", timeout_s=_TIMEOUT_S)
            if status != 200:
                raise ValueError(f"GET /v1/models answered {status}")
            cards = msgspec.json.decode(body, type=_Models).data
            engine.cards = {str(card.get("id")): card for card in cards}
            engine.reachable, silences = True, 0
        except TimeoutError:
            silences += 1
            engine.reachable = engine.reachable and silences < _SILENCES
            why = f"no answer within {_TIMEOUT_S} s, {silences} times"
        except (EngineLost, ValueError, msgspec.MsgspecError) as error:
            engine.reachable = False
            why = f"{type(error).__name__}: {error}"
        if engine.reachable != before:
            log.log(
                logging.INFO if engine.reachable else logging.WARNING,
                "engine %s at %s is %s%s",
                engine.id,
                engine.url,
                "reachable" if engine.reachable else "unreachable",
                f": {why}" if why else "",
            )
        return silences
