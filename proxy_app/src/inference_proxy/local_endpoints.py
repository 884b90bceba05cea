"""What the proxy answers itself: health, models, the API's description and configured fixed answers."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from inference_proxy import __version__
from inference_proxy.accounting.exchange import Exchange
from inference_proxy.api import openapi
from inference_proxy.api.dialects import CHAT, MESSAGES
from inference_proxy.api.endpoints import OPENAPI, Endpoint, model_of
from inference_proxy.api.errors import ApiError
from inference_proxy.api.numbers import whole
from inference_proxy.config import FixedAnswer
from inference_proxy.engines.fleet import Fleet
from inference_proxy.http.message import fields_of
from inference_proxy.keys.authenticate import Key, authenticate
from inference_proxy.request.catalogue import Catalogue
from inference_proxy.state import State

# Fields of an engine's model card that are passed on. The others reveal where the weights are on the host.
_CARD_FIELDS = ("created", "owned_by", "max_model_len")
# Sizes of a page of a list of models, from Anthropic's API reference.
_PAGE = 20
_LONGEST_PAGE = 1000
# 9999-12-31, the end of datetime's range.
_LATEST_S = 253402300799
Card = dict[str, Any]


class LocalEndpoints:
    """Endpoints that need no engine. The scope contains the `exchange` and the endpoint's `row`."""

    def __init__(self, state: State) -> None:
        self.state = state

    def application(self, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]) -> Starlette:
        """The Starlette application that answers them."""
        starlette = Starlette(
            routes=[
                Route("/health/live", self._live),
                Route("/health/ready", self._ready),
                Route("/{path:path}", self._answer),
            ],
            exception_handlers={
                HTTPException: _on_http_error,
                ApiError: _on_api_error,
                Exception: _on_failure,
            },
            lifespan=lifespan,
        )
        starlette.router.redirect_slashes = False
        return starlette

    async def _answer(self, request: Request) -> Response:
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


def list_models(fleet: Fleet, catalogue: Catalogue, key: Key) -> list[Card]:
    """The models of all engines and their aliases, without duplicates, as far as the key may use them.

    A model whose engines are all out stays in the list: it exists, and a request for it says when to retry.
    """
    theirs: dict[str, Card] = {}
    for engine in fleet.engines:
        for model in engine.models & engine.cards.keys():
            theirs.setdefault(model, engine.cards[model])
    cards = []
    for model in fleet.models():
        if key.may_use(model):
            card = {"created": 0, "owned_by": "vllm"} | theirs.get(model, {})
            known = {field: card[field] for field in _CARD_FIELDS if field in card}
            cards += [{"id": name, "object": "model"} | known for name in (model, *catalogue.aliases(model))]
    return sorted(cards, key=lambda card: str(card["id"]))


def find_model(name: str, fleet: Fleet, catalogue: Catalogue, key: Key) -> Card:
    """One model of the list, also by an old name. Raises ApiError 404."""
    model = catalogue.resolve(name, key).model.name
    card = next(card for card in list_models(fleet, catalogue, key) if card["id"] == model)
    return card | {"id": name}


def anthropic_card(card: Card, catalogue: Catalogue) -> Card:
    """A model in Anthropic's shape."""
    created = whole(card["created"], 0, _LATEST_S) or 0
    return {
        "type": "model",
        "id": card["id"],
        "display_name": card["id"],
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "deprecated" if catalogue.is_deprecated(card["id"]) else "active",
        "max_input_tokens": card.get("max_model_len"),
        "max_tokens": None,
    }


def anthropic_page(cards: Sequence[Card], query: Mapping[str, str], catalogue: Catalogue) -> dict[str, Any]:
    """A page of a list, which is sorted by id, in Anthropic's shape. Raises ApiError 400."""
    limit = query.get("limit", str(_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and 1 <= int(limit) <= _LONGEST_PAGE):
        raise ApiError(400, "invalid_value", f"'limit' must be between 1 and {_LONGEST_PAGE}.", param="limit")
    if before := query.get("before_id"):
        found = [card for card in cards if card["id"] < before]
        page = found[-int(limit) :]
    else:
        found = [card for card in cards if card["id"] > query.get("after_id", "")]
        page = found[: int(limit)]
    return {
        "data": [anthropic_card(card, catalogue) for card in page],
        "has_more": len(found) > len(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _release() -> str:
    return os.environ.get("PROXY_RELEASE", "")


def _fixed(answer: FixedAnswer) -> Response:
    if isinstance(answer.body, str):
        return PlainTextResponse(answer.body, answer.status)
    return JSONResponse(answer.body, answer.status)


def _error(request: Request, error: ApiError) -> Response:
    exchange: Exchange | None = request.scope.get("exchange")
    headers = {name.decode(): value.decode() for name, value in error.headers}
    if exchange is None:
        return Response(CHAT.error_body(error, ""), error.status, headers, "application/json")
    exchange.outcome = error.code or "error"
    body = exchange.dialect.error_body(error, exchange.request_id)
    return Response(body, error.status, headers, "application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    if error.status_code == 405:
        problem = ApiError(405, "method_not_allowed", "This path does not take that method.", headers=headers)
    else:
        problem = ApiError(error.status_code, "not_found", "There is nothing at this path.", headers=headers)
    return _error(request, problem)


async def _on_failure(request: Request, _: Exception) -> Response:
    return _error(request, ApiError(500, "internal_error", "The proxy failed to handle this request."))
