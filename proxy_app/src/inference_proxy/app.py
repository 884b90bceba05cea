"""The ASGI application: dispatches each path to the part that serves it."""

import asyncio
import contextlib
import logging
import random
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.admin.listener import AdminServer
from inference_proxy.api.dialects import CHAT, MESSAGES, Dialect
from inference_proxy.api.endpoints import Endpoint
from inference_proxy.api.errors import ApiError
from inference_proxy.config import CATALOGUE
from inference_proxy.engines.poller import Poller
from inference_proxy.http.client import EngineClient
from inference_proxy.http.message import HeaderFields, fields_of
from inference_proxy.http.server_protocol import take_connection
from inference_proxy.local_endpoints import LocalEndpoints
from inference_proxy.pipeline.pipeline import Pipeline, refuse
from inference_proxy.reload import Watcher
from inference_proxy.request.incoming import Incoming
from inference_proxy.state import State

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

log = logging.getLogger(__name__)


class Proxy:
    """Requests for engines go straight to the pipeline, all others through Starlette, which costs more."""

    def __init__(self, config_path: Path, state: State) -> None:
        self.state = state
        self._config_path = config_path
        self._pipeline: Pipeline | None = None
        self.admin = AdminServer(state)
        self._local = LocalEndpoints(state).application(self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._local(scope, receive, send)
        path: str = scope["path"]
        if path.startswith("/health/"):
            return await self._local(scope, receive, send)
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
            await self._answer_locally(exchange, {**scope, "row": endpoint}, receive, send)
        else:
            assert self._pipeline is not None, "requests come after the lifespan has started"
            exchange.dialect = endpoint.dialect
            incoming = Incoming(endpoint, fields, scope, receive, send, take_connection(scope))
            await self._pipeline.serve(incoming, exchange)

    def _not_found(self, path: str) -> ApiError:
        message = "There is nothing at this path."
        if nearest := self.state.settings.endpoints.nearest(path):
            message += f" Did you mean {nearest}?"
        return ApiError(404, "not_found", message)

    async def _refuse(self, exchange: Exchange, error: ApiError, send: Send) -> None:
        exchange.status, exchange.outcome = error.status, error.code or "error"
        await refuse(send, error, exchange)
        self.state.accounts.close(exchange)

    async def _answer_locally(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *exchange.headers()]
            else:
                exchange.bytes_out += len(message.get("body", b""))
            await send(message)

        scope["exchange"] = exchange
        try:
            await self._local(scope, receive, noting)
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


def _request_id(fields: HeaderFields) -> str:
    """nginx's id if it is safe in a header and a log, otherwise a new one."""
    known = fields.get(b"x-request-id")
    if known is not None and _REQUEST_ID.fullmatch(known):
        return str(known, "ascii")
    return f"{random.getrandbits(128):032x}"


def _dialect(fields: HeaderFields) -> Dialect:
    """The dialect on paths that both APIs have: Anthropic's clients always send their version."""
    return MESSAGES if b"anthropic-version" in fields else CHAT


def _wrong_method(path: str, endpoint: Endpoint) -> ApiError:
    methods = ", ".join(endpoint.methods)
    message = f"{path} takes {methods} only."
    return ApiError(405, "method_not_allowed", message, headers=[(b"allow", methods.encode())])
