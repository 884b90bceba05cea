"""The steps of a request, in their order: authenticate, validate, admit, route, relay, account."""

import asyncio
import logging
import time

from starlette.types import Receive, Scope, Send

from .account import Exchange
from .admit import Gate
from .authenticate import authenticate
from .endpoints import Endpoint
from .errors import ApiError, Unavailable, send_json
from .guard import Guard, Interrupted, Reason
from .outgoing import Job, prepare
from .relay import Relay
from .route import Engine, choose
from .server_protocol import client_of
from .state import State
from .upstream import EngineLost, Upstream
from .validate import Asked, ClientGone, read_body, validate

RawHeaders = list[tuple[bytes, bytes]]

log = logging.getLogger(__name__)

# nginx's number for a client that left before it was answered. It appears in the log only.
_CLIENT_GONE = 499


class Pipeline:
    """A plain ASGI callable: neither Starlette's router nor any middleware stands around it."""

    def __init__(self, state: State, upstream: Upstream) -> None:
        self.state = state
        self.upstream = upstream
        self.gate = Gate()

    async def __call__(
        self, endpoint: Endpoint, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        await _Request(self, endpoint, exchange, scope, receive, send).run()


class _Request:
    def __init__(
        self,
        pipeline: Pipeline,
        endpoint: Endpoint,
        exchange: Exchange,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._state = pipeline.state
        self._upstream = pipeline.upstream
        self._gate = pipeline.gate
        self._settings = pipeline.state.settings
        self._endpoint = endpoint
        self._exchange = exchange
        self._raw_headers: RawHeaders = scope["headers"]
        # Looked up often: Starlette's Headers searches the list each time. Of two the first counts, as there.
        self._headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(self._raw_headers)
        }
        self._receive = receive
        self._send = send
        self._client = client_of(scope)
        self._guard = Guard(self._settings.config.timeouts)
        self._relay: Relay | None = None
        self._has_standin = False

    async def run(self) -> None:
        self._state.guards.add(self._guard)
        self._state.accounts.open(self._exchange)
        try:
            with self._guard:
                await self._steps()
        except ClientGone:
            self._note_client_gone()
        except Interrupted as interrupted:
            if interrupted.reason is Reason.CLIENT_GONE:
                self._note_client_gone()
            else:
                await self._end(self._why(interrupted.reason))
        except ApiError as error:
            await self._end(error)
        except asyncio.CancelledError:
            self._exchange.outcome = "cancelled"
            raise
        except Exception:
            log.exception("request %s failed", self._exchange.request_id)
            await self._end(ApiError(500, "internal_error", "The proxy failed to handle this request."))
        finally:
            self._state.guards.discard(self._guard)
            self._state.accounts.close(self._exchange)

    async def _steps(self) -> None:
        exchange, endpoint = self._exchange, self._endpoint

        key = authenticate(self._raw_headers, self._settings.keys)
        exchange.key, exchange.owner = key.name, key.owner
        if self._state.tracing.on:
            exchange.trace = self._state.tracing.begin(
                self._headers, endpoint.upstream_path, exchange.started
            )

        body = await read_body(self._receive, self._headers.get("content-length"), endpoint.body_limit_bytes)
        asked = validate(endpoint, key, self._headers, body)
        exchange.model, exchange.stream = asked.model, asked.stream
        if self._settings.config.log_content:
            exchange.keep_content(body)

        self._guard.watch(self._receive, self._client)
        await self._serve(asked)

    async def _serve(self, asked: Asked) -> None:
        """By the model that was asked for, or else by the first that stands in for it and has room."""
        settings, exchange = self._settings, self._exchange
        named = settings.catalogue.resolve(asked.model, asked.key)
        line = settings.catalogue.line(named.model, asked.key)
        for model in line:
            job = prepare(asked, model, settings.config, self._headers, exchange.request_id)
            exchange.notices = (*named.headers, *job.notices)
            exchange.served = model.name
            if exchange.trace is not None:
                job.headers.update(exchange.trace.headers)
            if model is not named.model:
                exchange.notices += ((b"x-fallback-model", model.name.encode()),)
            waiting_since = time.perf_counter()
            self._guard.start_first_byte(settings.config.timeouts.first_byte_s)
            self._has_standin = model is not line[-1]
            try:
                async with self._gate.admit(job, exchange):
                    exchange.queue_s = time.perf_counter() - waiting_since
                    return await self._relay_from(self._state.fleet.serving(job), job)
            except Unavailable:
                if not self._has_standin:
                    raise

    async def _relay_from(self, engines: list[Engine], job: Job) -> None:
        """Two attempts, the second elsewhere if that exists, and only while the client has seen nothing.

        A request that reached the first engine may be computed twice; it changes nothing there.
        """
        tried: Engine | None = None
        for last in (False, True):
            engine = choose(engines, tried)
            self._exchange.engine = engine.id
            try:
                with engine.occupied():
                    return await self._attempt(engine, job)
            except EngineLost as lost:
                log.warning("request %s: engine %s lost: %s", self._exchange.request_id, engine.id, lost)
                if self._relay is not None and self._relay.started:
                    raise ApiError(
                        502, "engine_lost", "The engine broke off in the middle of its answer."
                    ) from lost
                if last:
                    raise ApiError(502, "engine_unreachable", "The engine could not be reached.") from lost
            tried = engine
            self._exchange.retries += 1

    async def _attempt(self, engine: Engine, job: Job) -> None:
        exchange, timeouts = self._exchange, self._settings.config.timeouts
        answer = await self._upstream.request(
            engine,
            "POST",
            self._endpoint.upstream_path,
            job.headers,
            job.body,
            connect_s=timeouts.connect_s,
        )
        relay = self._relay = Relay(answer, exchange, self._guard, self._send, self._client)
        try:
            chunk = await relay.first_chunk()
            self._guard.first_byte_came()
            exchange.first_byte = time.perf_counter()
            if answer.status < 300:
                await relay.run(chunk)
            elif answer.status < 400:
                raise ApiError(502, "bad_gateway", f"The engine answered {answer.status}, a redirect.")
            elif answer.status == 503 and self._has_standin:
                raise Unavailable("engine_full", "The engine takes no more requests.", retry_after_s=1)
            else:
                await relay.refuse(chunk)
        finally:
            answer.close()

    def _why(self, reason: Reason) -> ApiError:
        if reason is Reason.SHUTDOWN:
            return Unavailable(reason.value, "The service is restarting.", retry_after_s=1)
        if self._exchange.model is None:
            return ApiError(408, "request_timeout", "The request did not arrive in time.")
        what = {
            Reason.FIRST_BYTE: "The engine did not begin its answer in time.",
            Reason.BETWEEN_CHUNKS: "The engine stopped in the middle of its answer.",
            Reason.TOTAL: "The request took longer than the service allows.",
        }
        return ApiError(504, reason.value, what[reason])

    async def _end(self, error: ApiError) -> None:
        exchange = self._exchange
        exchange.outcome = error.code or "error"
        if self._relay is not None and self._relay.started:
            return await self._relay.fail(error)
        exchange.status = error.status
        await refuse(self._send, error, exchange)

    def _note_client_gone(self) -> None:
        self._exchange.outcome = "client_gone"
        self._exchange.status = self._exchange.status or _CLIENT_GONE


async def refuse(send: Send, error: ApiError, exchange: Exchange) -> None:
    """Answer with an error, in the dialect of the exchange."""
    headers = [*exchange.headers(), *error.headers]
    await send_json(send, error.status, exchange.dialect.error_body(error, exchange.request_id), headers)
