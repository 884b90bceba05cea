"""The admin API and the status page, for operators and their monitoring. Clients never reach them."""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import sqlite3
from collections.abc import Iterator
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from inference_proxy.accounting.usage_store import default_since, read_usage, today
from inference_proxy.admin import status_page
from inference_proxy.admin.readings import Readings
from inference_proxy.api.errors import ApiError, error_body
from inference_proxy.engines.drain_markers import NotOurs, mark_drained, unmark_drained, why_drained
from inference_proxy.engines.fleet import Engine
from inference_proxy.state import State

_BODY_LIMIT = 4096
_LONGEST_WAIT_S = 600.0
_PAUSE_S = 0.1
_FORM = "application/x-www-form-urlencoded"


class Admin:
    """A separate ASGI application in which each request needs the admin key.

    The key comes as `Authorization: Bearer` or, from a browser, as the password of Basic authentication. Only
    /metrics needs none if it is requested from the host itself.
    """

    def __init__(self, state: State, readings: Readings) -> None:
        self._state = state
        self._views = readings.views
        self._starlette = Starlette(
            routes=[
                Route("/", self._page),
                Route("/metrics", self._metrics),
                Route("/admin/engines", self._engines),
                Route("/admin/engines/{id}/drain", self._drain, methods=["POST"]),
                Route("/admin/engines/{id}/undrain", self._undrain, methods=["POST"]),
                Route("/admin/usage", self._usage),
                Route("/admin/{view}", self._view),
            ],
            exception_handlers={ApiError: _on_api_error, HTTPException: _on_http_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            return await refusal(scope, receive, send)
        await self._starlette(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        admin, headers = self._state.settings.config.admin, Headers(scope=scope)
        if scope["path"] == "/metrics" and _is_local(scope):
            return None
        if admin is None or not _has_key(headers.get("authorization", ""), admin.key_sha256):
            error = ApiError(
                401, "invalid_admin_key", "Send the admin key, as Bearer or as Basic's password."
            )
            return _answer(error, {"www-authenticate": 'Basic realm="inference-proxy", charset="UTF-8"'})
        # A browser that has the key sends it with every request to us, whichever site caused it.
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return _answer(
                ApiError(403, "wrong_origin", "The status page's own forms may do this, no others.")
            )
        return None

    async def _page(self, _: Request) -> Response:
        state = self._state
        state.accounts.catch_up()
        page = status_page.render(
            worker=state.worker,
            ready=state.ready(),
            requests=len(state.guards),
            config_error=state.config_error,
            engines=self._described(),
            latencies=state.metrics.percentiles(),
            views={name: view() for name, view in self._views.items()},
        )
        return Response(page, headers=status_page.HEADERS)

    async def _metrics(self, request: Request) -> Response:
        self._state.accounts.catch_up()
        page, content_type = await self._state.metrics.exposition(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})

    async def _engines(self, _: Request) -> Response:
        return JSONResponse({"engines": self._described()})

    async def _drain(self, request: Request) -> Response:
        engine, wait_s = self._engine(request), _wait_s(request)
        directory = self._state.settings.config.drained_dir
        with _report_file_errors(f"{directory} cannot be written"):
            mark_drained(directory, engine.id, await _reason(request))
        self._state.look_for_drained()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while engine.in_flight and not await request.is_disconnected():
                    await asyncio.sleep(_PAUSE_S)
        return self._changed(request, engine)

    async def _undrain(self, request: Request) -> Response:
        engine = self._engine(request)
        directory = self._state.settings.config.drained_dir
        try:
            with _report_file_errors(f"{directory} cannot be written"):
                unmark_drained(directory, engine.id)
        except NotOurs as other:
            where = directory / engine.id
            message = f"It was not drained here: {where} says '{other}'. Whoever wrote that removes it."
            raise ApiError(409, "drained_elsewhere", message) from other
        self._state.look_for_drained()
        return self._changed(request, engine)

    async def _usage(self, request: Request) -> Response:
        """Usage by day.

        Query: `since` and `until` (days, UTC, both included; default: the last 30), `key` (a name; default:
        all).
        """
        config = self._state.settings.config.usage
        if config is None:
            raise ApiError(
                404, "not_found", "The configuration has no section 'usage', so nothing is counted."
            )
        until = _day(request, "until", today())
        since = _day(request, "since", default_since(until))
        self._state.accounts.catch_up()
        await self._state.usage.flush()
        key = request.query_params.get("key")
        with _report_file_errors(f"usage cannot be read from {config.directory}"):
            rows = await asyncio.to_thread(read_usage, config.directory, since, until, key)
        return JSONResponse({"usage": msgspec.to_builtins(rows)})

    async def _view(self, request: Request) -> Response:
        name = request.path_params["view"]
        view = self._views.get(name)
        if view is None:
            raise ApiError(404, "not_found", "There is nothing at this path.")
        return JSONResponse({name: view()})

    def _engine(self, request: Request) -> Engine:
        wanted = request.path_params["id"]
        for engine in self._state.fleet.engines:
            if engine.id == wanted:
                return engine
        raise ApiError(
            404, "engine_not_found", f"No engine is called '{wanted[:256]}': see GET /admin/engines."
        )

    def _described(self) -> list[dict[str, Any]]:
        return [self._describe(engine) for engine in self._state.fleet.engines]

    def _describe(self, engine: Engine) -> dict[str, Any]:
        because = why_drained(self._state.settings.config.drained_dir, engine.id)
        return msgspec.structs.asdict(engine.view()) | {"drained_because": because}

    def _changed(self, request: Request, engine: Engine) -> Response:
        if request.headers.get("content-type") == _FORM:
            return RedirectResponse("/", 303)
        return JSONResponse(self._describe(engine))


@contextlib.contextmanager
def _report_file_errors(what: str) -> Iterator[None]:
    """Turn file errors into an error answer that names them."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise ApiError(500, "storage_failed", f"{what}: {error}") from error


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and ipaddress.ip_address(client[0]).is_loopback


def _has_key(authorization: str, sha256: str | None) -> bool:
    scheme, _, rest = authorization.partition(" ")
    token = b""
    if sha256 is None:
        return False
    if scheme.lower() == "bearer":
        token = rest.strip().encode("latin-1")
    elif scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            token = base64.b64decode(rest, validate=True).partition(b":")[2]
    return hmac.compare_digest(hashlib.sha256(token).hexdigest(), sha256)


def _wait_s(request: Request) -> float:
    """Query `wait_s`: how long to wait for this worker's requests at the engine to end."""
    try:
        return min(max(float(request.query_params.get("wait_s", "0")), 0.0), _LONGEST_WAIT_S)
    except ValueError as error:
        raise ApiError(400, "invalid_type", "wait_s is a number of seconds.", param="wait_s") from error


def _day(request: Request, name: str, default: date) -> date:
    try:
        given = request.query_params.get(name)
        return default if given is None else date.fromisoformat(given)
    except ValueError as error:
        raise ApiError(400, "invalid_type", f"{name} is a day, such as 2026-11-23.", param=name) from error


async def _reason(request: Request) -> str:
    """Field `reason` of a JSON body, if there is one, on one line."""
    if request.headers.get("content-type") == _FORM:
        return "by the status page"
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_LIMIT:
            raise ApiError(413, "body_too_large", f"The body is larger than {_BODY_LIMIT} bytes.")
    if not body:
        return "no reason given"
    try:
        fields = msgspec.json.decode(body, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiError(400, "invalid_json", 'Send {"reason": "..."} or nothing.', param="reason") from error
    return " ".join(fields.get("reason", "no reason given").split())


def _answer(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    body = error_body(error.message, error.kind, error.param, error.code)
    return Response(body, error.status, headers, "application/json")


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(error)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        return _answer(ApiError(405, "method_not_allowed", "This path does not take that method."), headers)
    return _answer(ApiError(error.status_code, "not_found", "There is nothing at this path."), headers)
