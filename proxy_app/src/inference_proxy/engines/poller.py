"""Polls every engine: whether it is there, what it serves, how busy it is, and whether it works."""

import asyncio
import logging
import random
from typing import Any

import msgspec

from inference_proxy.engines import gauges, notice
from inference_proxy.engines.breaker import Phase
from inference_proxy.engines.fleet import Engine, Fleet
from inference_proxy.engines.probe import probe
from inference_proxy.http.answer import EngineLost
from inference_proxy.http.client import EngineClient
from inference_proxy.settings import Settings

_INTERVAL_S = 2.0
_TIMEOUT_S = 2.0
# A busy engine may answer late, but one that refuses connections is gone. So only silence gets several
# chances.
_SILENCES = 3

log = logging.getLogger(__name__)


class _Models(msgspec.Struct):
    data: list[dict[str, Any]]


class Poller:
    def __init__(self, fleet: Fleet, client: EngineClient) -> None:
        self._fleet = fleet
        self._client = client
        self._tasks: dict[Engine, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Poll every engine once, so that the first request finds them, then continue in the background."""
        polls = [_EnginePoller(self._fleet, self._client, engine).poll() for engine in self._fleet.engines]
        # A failed poll is soon repeated, and logged then: no engine can keep the worker from starting.
        await asyncio.gather(*polls, return_exceptions=True)
        self._follow()

    def reconfigure(self, _: Settings) -> None:
        self._follow()

    def _follow(self) -> None:
        """Start polling engines that are new in the fleet, and stop for those that have left it."""
        for engine in self._tasks.keys() - set(self._fleet.engines):
            # While it has requests of ours, polling continues, and ends by itself afterwards.
            if not engine.guards:
                self._tasks.pop(engine).cancel()
        for engine in self._fleet.engines:
            if engine not in self._tasks:
                engine_poller = _EnginePoller(self._fleet, self._client, engine)
                self._tasks[engine] = asyncio.create_task(engine_poller.run())

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


class _EnginePoller:
    """Polls one engine. Probes run beside the polls, one at a time."""

    def __init__(self, fleet: Fleet, client: EngineClient, engine: Engine) -> None:
        self._fleet = fleet
        self._client = client
        self._engine = engine
        self._silences = 0
        self._probing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        # The random start spreads engines over time, because each poll delays streams, and spreads the
        # workers' polls as well.
        pause_s = random.uniform(0, _INTERVAL_S)
        try:
            while self._engine in self._fleet.engines or self._engine.guards:
                try:
                    await self.poll()
                    self._judge()
                except Exception:
                    # Whatever failed, the next poll must happen: otherwise the engine's state would never
                    # change again.
                    log.exception("polling engine %s failed", self._engine.id)
                await asyncio.sleep(pause_s)
                pause_s = _INTERVAL_S
        finally:
            if self._probing is not None:
                self._probing.cancel()
                await asyncio.gather(self._probing, return_exceptions=True)

    async def poll(self) -> None:
        """Find out whether the engine is there, and how busy it is."""
        await self._meet()
        if self._engine.reachable:
            await self._scrape()
            self._fleet.freed()

    async def _meet(self) -> None:
        engine, before, why = self._engine, self._engine.reachable, ""
        try:
            status, body, headers = await self._client.get(f"{engine.url}/v1/models", timeout_s=_TIMEOUT_S)
            if status != 200:
                raise ValueError(f"GET /v1/models answered {status}")
            self._fleet.take_notice(engine, notice.read(headers.get(notice.HEADER), self._fleet.now()))
            cards = msgspec.json.decode(body, type=_Models).data
            self._fleet.update_cards(engine, {str(card.get("id")): card for card in cards})
            engine.reachable, self._silences = True, 0
        except TimeoutError:
            self._silences += 1
            engine.reachable = engine.reachable and self._silences < _SILENCES
            why = f"no answer within {_TIMEOUT_S} s, {self._silences} times"
        except (EngineLost, ValueError, msgspec.MsgspecError, RecursionError) as error:
            engine.reachable = False
            why = f"{type(error).__name__}: {error}"
        if engine.reachable != before:
            log.log(
                logging.INFO if engine.reachable or engine.optional else logging.WARNING,
                "engine %s at %s is %s%s",
                engine.id,
                engine.url,
                "reachable" if engine.reachable else "unreachable",
                f": {why}" if why else "",
            )
        if engine.reachable and not before:
            engine.met = True
            self._fleet.restarted(engine)

    async def _scrape(self) -> None:
        """Gauges are optional: an engine that provides none is judged by its answers alone."""
        engine = self._engine
        try:
            status, page, _ = await self._client.get(f"{engine.url}/metrics", timeout_s=_TIMEOUT_S)
        except (TimeoutError, EngineLost):
            return
        engine.update_gauges(gauges.parse(page) if status == 200 else None, self._fleet.now())

    def _judge(self) -> None:
        fleet, engine, health = self._fleet, self._engine, self._fleet.health
        if self._probing is not None:
            return
        now = fleet.now()
        breaker = engine.breaker
        if not engine.reachable or breaker.phase is Phase.CLOSED:
            if engine.reachable and engine.progress.stalled_s() >= health.stall_s:
                fleet.eject(engine, f"requests run, and no token for {health.stall_s:g} s")
            elif self._is_doubtful(now):
                self._probing = asyncio.create_task(self._probe())
        elif breaker.has_cooled(now, health.cool_down_s) or self._owes(now):
            breaker.phase = Phase.HALF_OPEN
            self._probing = asyncio.create_task(self._probe())

    def _is_doubtful(self, now: float) -> bool:
        """Whether to probe the engine.

        An unreachable one may still owe answers: if its host has vanished, their connections do not show it.
        """
        engine, health = self._engine, self._fleet.health
        if self._owes(now):
            return True
        if not engine.reachable:
            return False
        quiet_s = now - engine.alive_at(now)
        return engine.suspected or (quiet_s >= health.probe_after_s and not engine.is_out)

    def _owes(self, now: float) -> bool:
        """Whether our requests are there without a token for `stall_s`.

        A frozen engine's gauges cannot show that.
        """
        since = self._engine.owes_since(now)
        return since is not None and now - since >= self._fleet.health.stall_s

    async def _probe(self) -> None:
        fleet, engine = self._fleet, self._engine
        began = fleet.now()
        try:
            flaw = await probe(self._client, engine, fleet.health.probe_timeout_s)
            now = fleet.now()
            owes = self._owes(now)
            # The probe may wait in the engine's queue while other requests get their tokens.
            is_busy = flaw is not None and (
                (flaw.is_silence and engine.alive_at(now) > began) or (flaw.is_full and not owes)
            )
            if flaw is None:
                fleet.passed(engine)
            elif is_busy and engine.breaker.phase is Phase.CLOSED:
                engine.suspected = False
            else:
                if engine.reachable:
                    fleet.eject(engine, flaw.what)
                if owes or engine.progress.stalled_s() >= fleet.health.stall_s:
                    fleet.abandon(engine)
        finally:
            self._probing = None
