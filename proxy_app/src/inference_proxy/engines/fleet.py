"""The engines, and what is known about each."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import msgspec

from inference_proxy.api.errors import Unavailable
from inference_proxy.api.numbers import MOST_CONTEXT_TOKENS, whole
from inference_proxy.config import EngineConfig
from inference_proxy.engines.breaker import CLOSED, Breaker, Phase
from inference_proxy.engines.gauges import Gauges
from inference_proxy.engines.notice import Notice
from inference_proxy.engines.progress import Progress
from inference_proxy.engines.rendezvous import seed_of
from inference_proxy.request.guard import Guard, Reason
from inference_proxy.settings import Settings

log = logging.getLogger(__name__)


# An engine is at fault if its share of broken answers is more than this many times that of most other
# engines. Simulated: at 2, requests that break everywhere eject an engine in one of ten cases; at 4, an
# engine that breaks half of its answers is missed in half of the cases where such requests occur as well.
_WORSE = 3
# How many times more failures it takes if all have one key that no other engine has answered since.
_OF_ONE_KEY = 3
# When no engine serves a model, and it is not known when one will.
_RETRY_AFTER_S = 5


class EngineView(msgspec.Struct, frozen=True):
    """A snapshot of an engine.

    `in_flight` and `outstanding_tokens` are this worker's; `others` is how many requests of other workers it
    had at the last scrape; `running` to `kv_cache_usage` are the engine's own numbers (None: it reports
    none). `failures` are broken answers that complete ones have not cancelled; `reason` says why the breaker
    is not closed, or why the engine's host will end.
    """

    id: str
    url: str
    models: list[str]
    state: str
    weight: float
    pool: str | None
    in_flight: int
    outstanding_tokens: int
    max_in_flight: int
    others: int
    running: int | None
    waiting: int | None
    kv_cache_usage: float | None
    breaker: str
    failures: int
    reason: str


class Engine:
    """One vLLM server.

    The object lives as long as its id and address stay in the configuration, across reloads.
    """

    def __init__(self, config: EngineConfig, now: float) -> None:
        self.id = config.id
        self.url = config.url
        self.seed = seed_of(config.id)
        self.drained = False
        self.notice: Notice | None = None  # what it announces of its host's end
        self.start_s: int | None = None  # how long its last start took, while a roll restarts it
        self.met = False  # it has been reachable before; until then it is starting, which is not a failure
        self.reachable = False
        self.no_requests_until = 0.0  # by the Retry-After of its last answer
        self.suspected = False  # something went wrong there, so the poller probes it
        self.in_flight = 0
        self.guards: set[Guard] = set()  # those of this worker's requests in flight there
        self.busy_since = now  # when the first of them arrived
        self.tokens = 0
        self.others = 0
        self.gauges: Gauges | None = None
        self.progress = Progress(now)
        self.breaker = Breaker()
        self.cards: dict[str, dict[str, Any]] = {}
        # Models that it lacks in spite of its configuration, and until when that is assumed.
        self.lacking: dict[str, float] = {}

    def configure(self, config: EngineConfig, max_in_flight: int) -> None:
        self.models = self.offered = frozenset(config.models)
        self.weight = config.weight
        self.pool = config.pool
        self.probe = config.probe
        self.optional = config.optional
        self.max_in_flight = config.max_in_flight or math.ceil(max_in_flight * config.weight)

    @property
    def serves(self) -> bool:
        return self.reachable and not self.is_out and self.breaker.phase is Phase.CLOSED

    @property
    def is_out(self) -> bool:
        """Whether it is to finish its requests and get no others."""
        return self.drained or self.notice is not None

    def is_last_resort(self, now: float) -> bool:
        """Whether it may have requests for which there is no other engine, although its host will end."""
        return (
            self.notice is not None
            and self.notice.leaves_time(now)
            and self.reachable
            and not self.drained
            and self.breaker.phase is Phase.CLOSED
        )

    @property
    def state(self) -> str:
        if self.drained:
            return "drained"
        if not self.reachable:
            if self.optional:
                return "absent"
            return "down" if self.met else "starting"
        if self.breaker.phase is not Phase.CLOSED:
            return "ejected"
        return "serving" if self.notice is None else "draining"

    def alive_at(self, now: float) -> float:
        """When the engine last showed a sign of work.

        Signs are a token by its own gauges, a complete answer, a piece of one of our answers, and a probe.
        Until the first byte of its answer, a request shows none.
        """
        silences_s = [silent_s for guard in self.guards if (silent_s := guard.silent_s()) is not None]
        return max(self.progress.generated_at, now - min(silences_s, default=math.inf))

    def owes_since(self, now: float) -> float | None:
        """Since when our requests there have waited without a sign of work; None if there are none."""
        return max(self.alive_at(now), self.busy_since) if self.guards else None

    def has_room(self, now: float) -> bool:
        return self.in_flight + self.others < self.max_in_flight and now >= self.no_requests_until

    def update_gauges(self, gauges: Gauges | None, now: float) -> None:
        self.gauges, self.others = gauges, 0
        if gauges is not None:
            self.others = max(0, gauges.running + gauges.waiting - self.in_flight)
            self.progress.see(gauges, now)

    def offer(self, now: float) -> None:
        """Update which models requests may be sent to."""
        self.lacking = {
            model: until for model, until in self.lacking.items() if now < until and model not in self.cards
        }
        self.offered = self.models - self.lacking.keys()

    def view(self) -> EngineView:
        gauges = self.gauges
        return EngineView(
            id=self.id,
            url=self.url,
            models=sorted(self.models),
            state=self.state,
            weight=self.weight,
            pool=self.pool,
            in_flight=self.in_flight,
            outstanding_tokens=self.tokens,
            max_in_flight=self.max_in_flight,
            others=self.others,
            running=None if gauges is None else gauges.running,
            waiting=None if gauges is None else gauges.waiting,
            kv_cache_usage=None if gauges is None else gauges.kv_cache_usage,
            breaker=self.breaker.phase.value,
            failures=math.ceil(self.breaker.failures),
            reason=self.breaker.reason or (self.notice.reason if self.notice else ""),
        )


class Fleet:
    """The engines of the current configuration. `clock` returns seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.engines: list[Engine] = []
        # Engines that have failures not yet cancelled, or that have sent a suspicious answer such as a 5xx.
        self.failing: set[Engine] = set()
        self.now = clock
        self._listeners: list[Callable[[], None]] = []
        self._drained: frozenset[str] = frozenset()
        self._contexts: dict[str, int] = {}  # tokens by model
        self._cold_starts: dict[str, int] = {}  # seconds by model

    def when_freed(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever an engine may have room again."""
        self._listeners.append(listener)

    def freed(self) -> None:
        """Report that an engine may have room again."""
        for listener in self._listeners:
            listener()

    def reconfigure(self, settings: Settings) -> None:
        """Take over the configuration's engines. Those that stay keep their counts and state."""
        config = settings.config
        self.health = config.health
        self._cold_starts = config.cold_starts()
        known = {(engine.id, engine.url): engine for engine in self.engines}
        engines = []
        for entry in config.engines:
            engine = known.get((entry.id, entry.url)) or Engine(entry, self.now())
            engine.configure(entry, config.queue.max_in_flight)
            engines.append(engine)
        self.engines = engines
        self._note_contexts()
        self.failing.intersection_update(engines)
        self._apply_drained()

    def set_drained(
        self, ids: frozenset[str], start_s: Callable[[str], int | None] = lambda engine_id: None
    ) -> list[Engine]:
        """Drain exactly these engines: no new requests, those in flight continue.

        `start_s` is asked for the last start of each that a roll restarts. Returns the engines that changed.
        """
        if ids == self._drained:
            return []
        changed = [engine for engine in self.engines if engine.drained != (engine.id in ids)]
        self._drained = ids
        for engine in changed:
            engine.start_s = start_s(engine.id) if engine.id in ids else None
        self._apply_drained()
        return changed

    def _apply_drained(self) -> None:
        for engine in self.engines:
            drained = engine.id in self._drained
            if engine.optional and engine.drained and not drained:
                # It may have been stopped in that time. The next poll tells.
                engine.reachable = False
            engine.drained = drained
        self.freed()

    def take_notice(self, engine: Engine, notice: Notice | None) -> None:
        """Note what an engine announces of its host's end; None: nothing, or nothing any more."""
        before, engine.notice = engine.notice, notice
        if notice is not None and before is None:
            log.warning("the host of engine %s at %s will end: %s", engine.id, engine.url, notice.reason)
        elif notice is None and before is not None:
            log.info("the host of engine %s at %s stays: it gets requests again", engine.id, engine.url)
            self.freed()

    def update_cards(self, engine: Engine, cards: dict[str, dict[str, Any]]) -> None:
        """Store the model cards that an engine reports."""
        if cards != engine.cards:
            engine.cards = cards
            self._note_contexts()
        if engine.lacking:
            engine.offer(self.now())

    def _note_contexts(self) -> None:
        found: dict[str, int] = {}
        for engine in self.engines:
            for model, card in engine.cards.items():
                # An adapter's card has no context length, only its parent.
                base = engine.cards.get(str(card.get("parent")), card)
                reported = card.get("max_model_len") or base.get("max_model_len")
                tokens = whole(reported, 1, MOST_CONTEXT_TOKENS)
                if tokens is not None:
                    found[model] = max(tokens, found.get(model, 0))
        self._contexts = found

    def context_tokens(self, model: str) -> int:
        """The longest context that an engine has for a model."""
        return self._contexts.get(model, MOST_CONTEXT_TOKENS)

    # Which engines there are.

    def models(self) -> list[str]:
        """Those of all engines, and those that may have none."""
        served = {model for engine in self.engines for model in engine.models}
        return sorted(served | self._cold_starts.keys())

    def serving(self, model: str, pool: str | None) -> list[Engine]:
        """Engines in service for a model, with or without room. Raises Unavailable if there are none.

        They are those of the pool (None: of no pool), or all of them if the pool has none for this model.
        Engines whose hosts will end are used only if there are no others.
        """
        # The same as Engine.serves, written out because it runs for each request, and the property would
        # double its cost.
        engines = [
            engine
            for engine in self.engines
            if model in engine.offered
            and engine.reachable
            and not engine.drained
            and engine.notice is None
            and engine.breaker.phase is CLOSED
        ]
        if not engines:
            now = self.now()
            engines = [e for e in self.engines if model in e.offered and e.is_last_resort(now)]
        if not engines:
            raise Unavailable(
                "model_unavailable",
                f"No engine is serving '{model}' at the moment.",
                retry_after_s=self._retry_after_s(model),
            )
        return [engine for engine in engines if engine.pool == pool] or engines

    def _retry_after_s(self, model: str) -> int:
        """The shortest last start of the model's engines, if a roll restarts all of them.

        For a model without engines, the time that its pool needs to get one.
        """
        starts = [engine.start_s for engine in self.engines if model in engine.models and not engine.optional]
        known = [start_s for start_s in starts if start_s]
        if not starts:
            return self._cold_starts.get(model, _RETRY_AFTER_S)
        return min(known) if len(known) == len(starts) else _RETRY_AFTER_S

    # What requests report.

    def succeeded(self, engine: Engine, key: str | None) -> None:
        """The engine gave a request of that API key a complete answer."""
        engine.progress.generated_at = self.now()
        if self.failing:
            self._make_up(engine, key)

    def failed(self, engine: Engine, key: str | None) -> None:
        """The engine broke an answer to that API key. Refused or slow requests are not failures."""
        engine.breaker.failed(key, _OF_ONE_KEY * self.health.failures)
        self.suspect(engine)
        self._consider(engine)

    def suspect(self, engine: Engine) -> None:
        """Have the engine probed, and stop treating it as idle.

        Something went wrong there, but it may be the request's fault.
        """
        engine.suspected = True
        self.failing.add(engine)

    def may_lack(self, engine: Engine, model: str) -> None:
        """The engine answered 404.

        If it does not list the model either, use other engines for this model for a while, or until it lists
        it.

        It is also probed, because it may have lost all its models.
        """
        if model in engine.cards:
            return
        self.suspect(engine)
        if any(other is not engine and other.serves and model in other.offered for other in self.engines):
            engine.lacking[model] = self.now() + self.health.probe_after_s
            engine.offer(self.now())

    def _make_up(self, engine: Engine, key: str | None) -> None:
        engine.breaker.succeeded()
        if not engine.breaker.failures:
            self.failing.discard(engine)
        for other in list(self.failing):
            if other is not engine and key in other.breaker.keys:
                other.breaker.keys[key] = True
                self._consider(other)

    def _consider(self, engine: Engine) -> None:
        breaker = engine.breaker
        if breaker.phase is Phase.CLOSED and self._is_to_blame(engine) and self._may_spare(engine):
            breaker.relapses += 1
            self.eject(engine, "it breaks more than a third of its answers")

    def _is_to_blame(self, engine: Engine) -> bool:
        """Whether its failures are enough, and its own fault.

        They are its own if most other engines do much better with the same clients. Failures of a single key
        that no other engine has answered since count a third.
        """
        breaker, enough = engine.breaker, self.health.failures
        if breaker.failures < enough:
            return False
        peers = [
            other.breaker
            for other in self.engines
            if other is not engine and other.serves and not engine.models.isdisjoint(other.models)
        ]
        alike = sum(_WORSE * peer.broken_share >= breaker.broken_share for peer in peers)
        if 2 * alike > len(peers):
            return False
        if len(breaker.keys) == 1 and not any(breaker.keys.values()):
            enough *= _OF_ONE_KEY
        return breaker.failures >= enough

    def eject(self, engine: Engine, reason: str) -> None:
        """Take the engine out of service until a probe succeeds.

        How many engines of its pool are already out does not matter.
        """
        if engine.breaker.phase is Phase.CLOSED:
            log.warning("engine %s at %s is ejected: %s", engine.id, engine.url, reason)
        engine.breaker.open(reason, self.now())

    def abandon(self, engine: Engine) -> None:
        """The engine certainly hangs: end its requests.

        Their answers will not come, however much time their clocks leave.
        """
        for guard in list(engine.guards):
            # One of its data-parallel ranks may still work.
            silent_s = guard.silent_s()
            if silent_s is None or silent_s >= self.health.stall_s:
                guard.interrupt(Reason.ENGINE_HUNG)

    def passed(self, engine: Engine) -> None:
        """The engine has answered a probe.

        An engine that was ejected while the probe ran stays out until it has cooled down.
        """
        breaker, now = engine.breaker, self.now()
        engine.suspected = False
        if breaker.phase is Phase.HALF_OPEN:
            log.info("engine %s at %s is taken back", engine.id, engine.url)
            breaker.close(self.health.failures - 1)
            engine.progress = Progress(now)
        elif (
            breaker.phase is Phase.CLOSED and now - engine.progress.generated_at >= self.health.probe_after_s
        ):
            # There were no requests. With requests, their answers would be better evidence than one token.
            breaker.succeeded()
        engine.progress.generated_at = now
        if not breaker.failures:
            self.failing.discard(engine)
        self.freed()

    def restarted(self, engine: Engine) -> None:
        """The engine is a new process: forget the failures of the old one."""
        if engine.breaker.phase is not Phase.CLOSED:
            log.info("engine %s at %s is taken back", engine.id, engine.url)
        engine.breaker.reset()
        engine.suspected = False
        engine.lacking.clear()
        engine.offer(self.now())
        engine.progress = Progress(self.now())
        self.failing.discard(engine)
        self.freed()

    def _may_spare(self, engine: Engine) -> bool:
        for model in engine.models:
            pool = [
                other
                for other in self.engines
                if model in other.models and other.reachable and not other.is_out
            ]
            out = sum(other.breaker.phase is not Phase.CLOSED for other in pool)
            if out + 1 > self.health.max_ejected_share * len(pool):
                return False
        return True
