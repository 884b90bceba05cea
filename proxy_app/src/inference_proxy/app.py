"""The ASGI application: which path is served by what."""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from . import __version__
from .account import Exchange, account
from .authenticate import authenticate
from .errors import ApiError, body_of, send_error
from .pipeline import Pipeline
from .poller import Poller
from .reload import Watcher
from .state import State
from .upstream import Upstream

# All that ever reaches an engine. An engine answers many more paths, most of them without a key.
ENGINE_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"}
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Of an engine's model card. The others tell where the weights lie on the host.
_CARD_FIELDS = ("created", "owned_by", "max_model_len")

log = logging.getLogger(__name__)


class Proxy:
    """Requests for engines go straight to the pipeline; Starlette has the rest, which is not in a hurry."""

    def __init__(self, config_path: Path, state: State) -> None:
        self.state = state
        self._config_path = config_path
        self._pipeline: Pipeline | None = None
        self._starlette = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/health/live", self._live),
                Route("/health/ready", self._ready),
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
        exchange = Exchange(_request_id(scope), scope["method"], path)
        if path not in ENGINE_PATHS:
            await self._cold(exchange, scope, receive, send)
        elif scope["method"] != "POST":
            error = ApiError(
                405, "method_not_allowed", f"{path} takes POST only.", headers=[(b"allow", b"POST")]
            )
            exchange.status, exchange.outcome = error.status, error.code
            await send_error(send, error, exchange.request_id)
            account(exchange)
        else:
            assert self._pipeline is not None, "requests come after the lifespan has started"
            await self._pipeline(exchange, scope, receive, send)

    async def _cold(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", exchange.request_id.encode())]
            else:
                exchange.bytes_out += len(message.get("body", b""))
            await send(message)

        scope["exchange"] = exchange
        try:
            await self._starlette(scope, receive, noting)
        finally:
            account(exchange)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with Upstream() as upstream:
            poller = Poller(self.state.fleet, upstream)
            await poller.start()
            watcher = Watcher(self._config_path, self.state, poller.follow)
            watching = asyncio.create_task(watcher.run())
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, watcher.poke)
            self._pipeline = Pipeline(self.state, upstream)
            try:
                yield
            finally:
                loop.remove_signal_handler(signal.SIGHUP)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await poller.stop()

    async def _models(self, request: Request) -> Response:
        """The models of all engines, each once, as far as the key may use them. One whose engines are all out
        stays in the list: it exists, and asking for it says when to come again."""
        key = authenticate(request.scope["headers"], self.state.settings.keys)
        request.scope["exchange"].key = key.name
        fleet = self.state.fleet
        cards: dict[str, dict[str, Any]] = {}
        for engine in fleet.engines:
            for model in engine.models & engine.cards.keys():
                cards.setdefault(model, engine.cards[model])
        data = []
        for model in fleet.models():
            if key.may_use(model):
                card = {"created": 0, "owned_by": "vllm"} | cards.get(model, {})
                known = {field: card[field] for field in _CARD_FIELDS if field in card}
                data.append({"id": model, "object": "model"} | known)
        return JSONResponse({"object": "list", "data": data})

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


def _request_id(scope: Scope) -> str:
    """nginx's, if it is one that can stand in a header and a log as it is."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def _answer(request: Request, error: ApiError) -> Response:
    if exchange := request.scope.get("exchange"):
        exchange.outcome = error.code
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(body_of(error), error.status, headers, "application/json")


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
