"""The steps of a request in order: authenticate, validate, admit, route, relay, account."""

import asyncio
import logging

from starlette.types import Send

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.api.errors import ApiError, Unavailable, send_json
from inference_proxy.http.client import EngineClient
from inference_proxy.keys.authenticate import Key, authenticate
from inference_proxy.pipeline.attempts import HUNG, Attempts
from inference_proxy.request.clocks import limit_s
from inference_proxy.request.guard import Guard, Interrupted, Reason
from inference_proxy.request.incoming import Incoming
from inference_proxy.request.read_body import ClientGone, body_at_once, read_body
from inference_proxy.request.validate import Asked, validate
from inference_proxy.settings import Settings
from inference_proxy.state import State

log = logging.getLogger(__name__)

# nginx's status for a client that left before it was answered. It appears in the log only.
_CLIENT_GONE = 499
_CLOCKS = frozenset({Reason.FIRST_BYTE, Reason.BETWEEN_CHUNKS, Reason.TOTAL})


class Pipeline:
    """Runs the steps. Called directly, without Starlette's router and without middleware."""

    def __init__(self, state: State, client: EngineClient) -> None:
        self._state = state
        self._client = client

    async def serve(self, incoming: Incoming, exchange: Exchange) -> None:
        """Answer a request. Its attempts do the admission, the choice of an engine and the relay."""
        state, settings = self._state, self._state.settings
        guard = Guard(state.guards, limit_s(incoming.endpoint.kind, settings.config.timeouts))
        attempts = Attempts(state, settings, self._client, incoming, exchange, guard)
        state.accounts.open(exchange)
        try:
            with guard:
                guard.key = key = self._authenticate(incoming, settings, exchange)
                body = await _body(incoming)
                asked = self._validate(incoming, settings, exchange, key, body)
                # The body has been read, so `receive` can only report that the client has left.
                guard.watch(incoming.receive, incoming.connection)
                await attempts.run(asked)
        except ClientGone:
            _note_client_gone(exchange)
        except Interrupted as interrupted:
            if interrupted.reason is Reason.CLIENT_GONE:
                _note_client_gone(exchange)
            else:
                if attempts.engine is not None and interrupted.reason in _CLOCKS:
                    attempts.engine.suspected = True
                await _end(incoming, exchange, attempts, _why(interrupted.reason, exchange))
        except ApiError as error:
            await _end(incoming, exchange, attempts, error)
        except asyncio.CancelledError:
            exchange.outcome = "cancelled"
            raise
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            failure = ApiError(500, "internal_error", "The proxy failed to handle this request.")
            await _end(incoming, exchange, attempts, failure)
        else:
            if attempts.relay is not None:
                await attempts.relay.finish()
        finally:
            state.accounts.close(exchange)

    def _authenticate(self, incoming: Incoming, settings: Settings, exchange: Exchange) -> Key:
        headers, tracing = incoming.headers, self._state.tracing
        key = authenticate(headers, incoming.scope, settings.keys, settings.config.trusted_proxies)
        exchange.key, exchange.owner = key.name, key.owner
        if tracing.on:
            operation = incoming.endpoint.operation or incoming.endpoint.upstream_path
            exchange.trace = tracing.begin(headers, operation, exchange.started)
        return key

    def _validate(
        self, incoming: Incoming, settings: Settings, exchange: Exchange, key: Key, body: bytes
    ) -> Asked:
        asked = validate(incoming.endpoint, key, incoming.headers, body)
        exchange.model, exchange.stream = asked.model, asked.stream
        if settings.config.log_content:
            exchange.log_content(body)
        return asked


async def _body(incoming: Incoming) -> bytes:
    limit = incoming.endpoint.body_limit_bytes
    body = body_at_once(incoming.connection, limit)
    if body is None:
        body = await read_body(incoming.receive, incoming.headers.get(b"content-length"), limit)
    return body


def _why(reason: Reason, exchange: Exchange) -> ApiError:
    if reason is Reason.SHUTDOWN:
        return Unavailable(reason.value, "The service is restarting.", retry_after_s=1)
    if reason is Reason.KEY_REVOKED:
        return ApiError(401, reason.value, "The API key was revoked.")
    if reason is Reason.ENGINE_HUNG:
        return ApiError(502, reason.value, HUNG)
    if exchange.model is None:
        return ApiError(408, "request_timeout", "The request did not arrive in time.")
    what = {
        Reason.FIRST_BYTE: "The engine did not begin its answer in time.",
        Reason.BETWEEN_CHUNKS: "The engine stopped in the middle of its answer.",
        Reason.TOTAL: "The request took longer than the service allows.",
    }
    return ApiError(504, reason.value, what[reason])


async def _end(incoming: Incoming, exchange: Exchange, attempts: Attempts, error: ApiError) -> None:
    """Send an error to the client, as the stream's last event if its answer has already begun."""
    exchange.outcome = error.code or "error"
    if attempts.relay is not None and attempts.relay.started:
        return await attempts.relay.fail(error)
    exchange.status = error.status
    await refuse(incoming.send, error, exchange)


def _note_client_gone(exchange: Exchange) -> None:
    exchange.outcome = "client_gone"
    exchange.status = exchange.status or _CLIENT_GONE


async def refuse(send: Send, error: ApiError, exchange: Exchange) -> None:
    """Answer with an error in the exchange's dialect."""
    headers = [*exchange.headers(), *error.headers]
    await send_json(send, error.status, exchange.dialect.error_body(error, exchange.request_id), headers)
