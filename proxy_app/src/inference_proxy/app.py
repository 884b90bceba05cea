"""The ASGI application: which path is served by what."""

import asyncio
import contextlib
import logging
import os
import random
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from inference_proxy import __version__
from inference_proxy.accounting.exchange import Exchange
from inference_proxy.admin.listener import AdminServer
from inference_proxy.api import openapi
from inference_proxy.api.dialects import CHAT, MESSAGES, Dialect
from inference_proxy.api.endpoints import OPENAPI, Endpoint, model_of
from inference_proxy.api.errors import ApiError
from inference_proxy.config import CATALOGUE, Answer
from inference_proxy.http.client import EngineClient
from inference_proxy.http.message import HeaderFields, fields_of
from inference_proxy.keys.authenticate import authenticate
from inference_proxy.local_endpoints import anthropic_card, anthropic_page, find_model, list_models
from inference_proxy.pipeline.pipeline import Pipeline, refuse
from inference_proxy.poller import Poller
from inference_proxy.reload import Watcher
from inference_proxy.state import State

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

log = logging.getLogger(__name__)


class Proxy:
    """Requests for engines go straight to the pipeline; Starlette has the rest, which is not in a hurry."""

    def __init__(self, config_path: Path, state: State) -> None:
        self.state = state
        self._config_path = config_path
        self._pipeline: Pipeline | None = None
        self.admin = AdminServer(state)
        self._starlette = Starlette(
            routes=[
                Route("/health/live", self._live),
                Route("/health/ready", self._ready),
                Route("/{path:path}", self._answer_ourselves),
            ],
            exception_handlers={
                HTTPException: _on_http_error,
                ApiError: _on_api_error,
                Exception: _on_failure,
            },
            lifespan=self._lifespan,
        )
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._starlette(scope, receive, send)
        path: str = scope["path"]
        if path.startswith("/health/"):
            return await self._starlette(scope, receive, send)
        fields = fields_of(scope["headers"])
        exchange = Exchange(_request_id(fields), scope["method"], path)
        endpoint = self.state.settings.endpoints.find(path)
        if endpoint is None:
            exchange.dialect = _dialect(fields)
            return await self._refuse(exchange, self._not_found(path), send)
        exchange.endpoint_class = str(endpoint.kind)
        if scope["method"] not in endpoint.methods:
            exchange.dialect = _dialect(fields) if endpoint.kind is CATALOGUE else endpoint.dialect
            await self._refuse(exchange, _wrong_method(path, endpoint), send)
        elif endpoint.kind is CATALOGUE:
            exchange.dialect = _dialect(fields)
            await self._cold(exchange, {**scope, "row": endpoint}, receive, send)
        else:
            assert self._pipeline is not None, "requests come after the lifespan has started"
            exchange.dialect = endpoint.dialect
            await self._pipeline(endpoint, exchange, fields, scope, receive, send)

    def _not_found(self, path: str) -> ApiError:
        message = "There is nothing at this path."
        if nearest := self.state.settings.endpoints.nearest(path):
            message += f" Did you mean {nearest}?"
        return ApiError(404, "not_found", message)

    async def _refuse(self, exchange: Exchange, error: ApiError, send: Send) -> None:
        exchange.status, exchange.outcome = error.status, error.code or "error"
        await refuse(send, error, exchange)
        self.state.accounts.close(exchange)

    async def _cold(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *exchange.headers()]
            else:
                exchange.bytes_out += len(message.get("body", b""))
            await send(message)

        scope["exchange"] = exchange
        try:
            await self._starlette(scope, receive, noting)
        finally:
            self.state.accounts.close(exchange)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self.state.limits:
            client = EngineClient()
            poller = Poller(self.state.fleet, client)
            await poller.start()
            await self.admin.start()
            self.state.parts += [poller, self.admin]
            watcher = Watcher(self._config_path, self.state)
            watching = asyncio.create_task(watcher.run())
            self.state.usage.start()
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, watcher.poke)
            self._pipeline = Pipeline(self.state, client)
            try:
                yield
            finally:
                loop.remove_signal_handler(signal.SIGHUP)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await poller.stop()
                client.close()
                await self.admin.close()
                self.state.accounts.catch_up()
                await self.state.usage.close()
                await self.state.tracing.close()

    async def _answer_ourselves(self, request: Request) -> Response:
        """Endpoints for which no engine is asked."""
        endpoint: Endpoint = request.scope["row"]
        settings = self.state.settings
        fields = fields_of(request.scope["headers"])
        key = authenticate(fields, request.scope, settings.keys, settings.config.trusted_proxies)
        exchange: Exchange = request.scope["exchange"]
        exchange.key, exchange.owner = key.name, key.owner
        if endpoint.answer is not None:
            return _fixed(endpoint.answer)
        if endpoint.path == OPENAPI.path:
            return JSONResponse(openapi.document(settings.endpoints))
        fleet, catalogue = self.state.fleet, settings.catalogue
        if name := model_of(request.scope["path"]):
            card = find_model(name, fleet, catalogue, key)
            return JSONResponse(anthropic_card(card, catalogue) if exchange.dialect is MESSAGES else card)
        cards = list_models(fleet, catalogue, key)
        if exchange.dialect is MESSAGES:
            return JSONResponse(anthropic_page(cards, request.query_params, catalogue))
        return JSONResponse({"object": "list", "data": cards})

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"status": "live", "version": __version__, "release": _release()})

    async def _ready(self, _: Request) -> Response:
        state = self.state
        ready = state.ready()
        return JSONResponse(
            {
                "status": "ready" if ready else "unready",
                "version": __version__,
                "release": _release(),
                "in_flight": len(state.guards),
                "config_error": state.config_error,
                "fault": state.faults.reason,
                "limits_store_away": state.limits.store_away,
                "engines": [
                    {
                        "id": engine.id,
                        "url": engine.url,
                        "models": sorted(engine.models),
                        "state": engine.state,
                        "in_flight": engine.in_flight,
                    }
                    for engine in state.fleet.engines
                ],
            },
            200 if ready else 503,
        )


def _release() -> str:
    return os.environ.get("PROXY_RELEASE", "")


def _request_id(fields: HeaderFields) -> str:
    """nginx's, if it is one that can stand in a header and a log as it is."""
    known = fields.get(b"x-request-id")
    if known is not None and _REQUEST_ID.fullmatch(known):
        return str(known, "ascii")
    return f"{random.getrandbits(128):032x}"


def _dialect(fields: HeaderFields) -> Dialect:
    """What a client of paths that both APIs have speaks: Anthropic's clients always tell their version."""
    return MESSAGES if b"anthropic-version" in fields else CHAT


def _wrong_method(path: str, endpoint: Endpoint) -> ApiError:
    methods = ", ".join(endpoint.methods)
    message = f"{path} takes {methods} only."
    return ApiError(405, "method_not_allowed", message, headers=[(b"allow", methods.encode())])


def _fixed(answer: Answer) -> Response:
    if isinstance(answer.body, str):
        return PlainTextResponse(answer.body, answer.status)
    return JSONResponse(answer.body, answer.status)


def _answer(request: Request, error: ApiError) -> Response:
    exchange: Exchange | None = request.scope.get("exchange")
    headers = {name.decode(): value.decode() for name, value in error.headers}
    if exchange is None:
        return Response(CHAT.error_body(error, ""), error.status, headers, "application/json")
    exchange.outcome = error.code or "error"
    body = exchange.dialect.error_body(error, exchange.request_id)
    return Response(body, error.status, headers, "application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    if error.status_code == 405:
        problem = ApiError(405, "method_not_allowed", "This path does not take that method.", headers=headers)
    else:
        problem = ApiError(error.status_code, "not_found", "There is nothing at this path.", headers=headers)
    return _answer(request, problem)


async def _on_failure(request: Request, _: Exception) -> Response:
    return _answer(request, ApiError(500, "internal_error", "The proxy failed to handle this request."))
