"""A request's attempts at engines: model by model, and for each model engine by engine."""

import asyncio
import logging
import random
import time

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.api.errors import ApiError, Unavailable
from inference_proxy.config import UTILITY, ModelConfig
from inference_proxy.engines.fleet import Engine
from inference_proxy.http.answer import Answer, EngineLost
from inference_proxy.http.client import ConnectTimeout, EngineClient, EngineUnreachable
from inference_proxy.keys.authenticate import authenticate
from inference_proxy.pipeline.admit import Admission
from inference_proxy.pipeline.relay import Relay
from inference_proxy.request.catalogue import unknown_model
from inference_proxy.request.clocks import Clocks
from inference_proxy.request.guard import Guard, Reason
from inference_proxy.request.incoming import Incoming
from inference_proxy.request.job import Job, prepare
from inference_proxy.request.validate import Asked
from inference_proxy.scheduling.queues import Place
from inference_proxy.settings import Settings
from inference_proxy.state import State

log = logging.getLogger(__name__)

# The longest Retry-After of an engine that is respected: its value is not verified, and the engine may
# recover sooner.
_MAX_RETRY_AFTER_S = 60
HUNG = "The engine has stopped working."
# How many attempts one request may break, over all engines and models: the request may be what breaks them.
_MOST_BREAKS = 2
# An engine never sees callers' keys, so with these it refuses the proxy, and thereby every caller.
_REFUSES_US = frozenset({401, 403})


class _EngineHung(EngineLost):
    """The attempt was given up because the engine hung before it answered."""


class Attempts:
    """Runs the attempts. `engine` and `relay` are those of the latest one; None before the first."""

    __slots__ = (
        "_breaks",
        "_client",
        "_exchange",
        "_guard",
        "_has_fallback",
        "_incoming",
        "_settings",
        "_state",
        "engine",
        "relay",
    )

    def __init__(
        self,
        state: State,
        settings: Settings,
        client: EngineClient,
        incoming: Incoming,
        exchange: Exchange,
        guard: Guard,
    ) -> None:
        self._state = state
        self._settings = settings
        self._client = client
        self._incoming = incoming
        self._exchange = exchange
        self._guard = guard
        self._has_fallback = False
        self._breaks = 0
        self.engine: Engine | None = None
        self.relay: Relay | None = None

    async def run(self, asked: Asked) -> None:
        """Try the requested model first, then each of its fallbacks until one has room."""
        settings, exchange = self._settings, self._exchange
        limits, queues = self._state.limits, self._state.queues
        named = settings.catalogue.resolve(asked.model, asked.key)
        models = settings.catalogue.with_fallbacks(named.model, asked.key)
        for model in models:
            context_tokens = self._state.fleet.context_tokens(model.name)
            job = prepare(
                asked, model, settings.config, self._incoming.headers, exchange.request_id, context_tokens
            )
            exchange.notices = (*named.headers, *job.notices)
            exchange.served, exchange.engine, self.engine = model.name, None, None
            if exchange.trace is not None:
                job.headers.update(exchange.trace.headers)
            if model is not named.model:
                exchange.notices += ((b"x-fallback-model", model.name.encode()),)
            self._has_fallback = model is not models[-1]
            try:
                _refuse_in_maintenance(model)
                async with Admission(
                    limits, queues, self._state.faults, job, exchange, settings.config
                ) as place:
                    try:
                        return await self._relay_from(place, job, model)
                    except asyncio.CancelledError:
                        exchange.client_left = self._guard.reason is Reason.CLIENT_GONE
                        raise
            except Unavailable:
                if not self._has_fallback:
                    raise

    async def _relay_from(self, place: Place, job: Job, model: ModelConfig) -> None:
        """Send the request to the engine of the place, and if that fails to another engine.

        There is no retry once the client has received anything. A request that reached the first engine may
        be computed twice, which changes nothing there.
        """
        retries = self._settings.config.retries
        self._state.retries.earn(retries)
        for left in range(retries.attempts - 1, -1, -1):
            self._check_key(model)
            engine = self.engine = place.engine
            self._exchange.engine = engine.id
            if not engine.guards:
                engine.busy_since = self._state.fleet.now()
            engine.guards.add(self._guard)
            try:
                other = await self._attempt(engine, job, model, left)
            except EngineLost as lost:
                other = self._after(lost, engine, job, left)
            except asyncio.CancelledError:
                if self.relay is None or self.relay.started or not self._guard.outlive():
                    raise
                other = self._after(_EngineHung("it is hung"), engine, job, left)
            finally:
                engine.guards.discard(self._guard)
            if other is None:
                return
            self._exchange.retries += 1
            place.move(other)
            await asyncio.sleep(random.uniform(0, retries.backoff_s))

    async def _attempt(self, engine: Engine, job: Job, model: ModelConfig, left: int) -> Engine | None:
        """Answer the client, or return the engine to try instead. Raises EngineLost."""
        exchange, timeouts, fleet = self._exchange, self._settings.config.timeouts, self._state.fleet
        waiting = 0 if engine.gauges is None else engine.gauges.waiting
        clocks = Clocks.of(job, timeouts, model.size, waiting)
        self._guard.start(clocks)
        relay = self.relay = Relay(
            exchange, self._guard, self._incoming.send, self._incoming.connection, hides_usage=job.hides_usage
        )
        answer = await self._client.request(
            engine.url,
            "POST",
            self._incoming.endpoint.upstream_path,
            job.headers,
            job.body,
            connect_s=clocks.connect_s,
            begin=relay.begin,
        )
        try:
            chunk = b"" if relay.started else await relay.first_chunk(answer)
            self._guard.first_byte_came()
            if answer.status == 503:
                if (other := self._after_503(answer, engine, job, left)) is not None:
                    return other
            elif answer.status >= 500:
                # vLLM also answers some mistakes of clients with a 5xx: a probe finds out whether the engine
                # works.
                fleet.suspect(engine)
            elif answer.status in _REFUSES_US:
                fleet.suspect(engine)
            elif answer.status == 404:
                fleet.may_lack(engine, job.model)
            if not relay.started:
                exchange.first_byte = time.perf_counter()
            if answer.status < 300:
                await relay.run(chunk)
                if exchange.outcome == "ok":
                    # Counting tokens does not show that an engine can generate them.
                    if self._incoming.endpoint.kind is not UTILITY:
                        fleet.succeeded(engine, exchange.key)
                elif exchange.outcome == "engine_error":
                    fleet.failed(engine, exchange.key)
            elif answer.status < 400:
                raise ApiError(502, "bad_gateway", f"The engine answered {answer.status}, a redirect.")
            else:
                await relay.refuse(chunk)
            return None
        finally:
            answer.close()

    def _after_503(self, answer: Answer, engine: Engine, job: Job, left: int) -> Engine | None:
        """The engine is full: return another one with room, or None to pass this answer on.

        Returns another one only if there is a retry left. Raises Unavailable if a fallback model may answer.
        """
        asked = (answer.header(b"retry-after") or b"")[:9]
        if asked.isdigit():
            engine.no_requests_until = self._state.fleet.now() + min(int(asked), _MAX_RETRY_AFTER_S)
        other = self._state.queues.elsewhere(job, self._settings.config, engine, room=True)
        if left and other is not None and self._state.retries.spend():
            return other
        if self._has_fallback:
            raise Unavailable("model_saturated", f"The engines of '{job.model}' are full.", retry_after_s=1)
        return None

    def _after(self, lost: EngineLost, engine: Engine, job: Job, left: int) -> Engine:
        """The engine to retry at: the same one if there is no other. Raises ApiError if there is none."""
        fleet = self._state.fleet
        log.warning("request %s: engine %s lost: %s", self._exchange.request_id, engine.id, lost)
        if isinstance(lost, EngineUnreachable):
            # The engine refuses connections: spare other requests the attempt. The poller will mark it as
            # reachable again.
            engine.reachable = False
            self._breaks += lost.has_sent
        else:
            self._breaks += 1
            if not isinstance(lost, _EngineHung) and not lost.reader_was_slow:
                fleet.failed(engine, self._exchange.key)
        if self.relay is not None and self.relay.started:
            raise ApiError(502, "engine_lost", "The engine broke off in the middle of its answer.") from lost
        if self._breaks >= _MOST_BREAKS:
            raise self._lost_for_good(lost) from lost
        other = self._state.queues.elsewhere(job, self._settings.config, engine, room=False)
        if other is None and engine.serves and engine in fleet.engines:
            other = engine
        if left and other is not None and self._state.retries.spend():
            return other
        if self._has_fallback:
            raise Unavailable(
                "model_unavailable", f"The engines of '{job.model}' are out.", retry_after_s=1
            ) from lost
        raise self._lost_for_good(lost) from lost

    def _lost_for_good(self, lost: EngineLost) -> ApiError:
        # This request may be what breaks engines, and clients' libraries would send it again.
        headers = [(b"x-should-retry", b"false")] if self._breaks >= _MOST_BREAKS else []
        if isinstance(lost, _EngineHung):
            return ApiError(502, Reason.ENGINE_HUNG.value, HUNG, headers=headers)
        if isinstance(lost, ConnectTimeout):
            return ApiError(
                504, "connect_timeout", "The engine could not be reached in time.", headers=headers
            )
        return ApiError(502, "engine_unreachable", "The engine could not be reached.", headers=headers)

    def _check_key(self, model: ModelConfig) -> None:
        """Check the key again: it may have been revoked or have expired while the request waited.

        Raises ApiError 401, 403, 404.
        """
        key, settings = self._guard.key, self._state.settings
        if key is None or (settings is self._settings and (key.expires is None or time.time() < key.expires)):
            return
        key = authenticate(
            self._incoming.headers, self._incoming.scope, settings.keys, settings.config.trusted_proxies
        )
        if not key.may_use(model.name):
            raise unknown_model(model.name)


def _refuse_in_maintenance(model: ModelConfig) -> None:
    """Raises Unavailable if an operator has put the model under maintenance."""
    if model.maintenance_s is not None:
        raise Unavailable(
            "maintenance",
            f"The model '{model.name}' is under maintenance.",
            retry_after_s=model.maintenance_s,
        )
