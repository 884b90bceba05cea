"""What the proxy answers itself: models, health, its API's description, fixed answers."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from inference_proxy.api.errors import ApiError
from inference_proxy.api.numbers import whole
from inference_proxy.engines.fleet import Fleet
from inference_proxy.keys.authenticate import Key
from inference_proxy.request.catalogue import Catalogue

# Of an engine's model card. The others tell where the weights lie on the host.
_CARD_FIELDS = ("created", "owned_by", "max_model_len")


# Of a list of models, by Anthropic's API reference.
_PAGE = 20


_LONGEST_PAGE = 1000


# 9999-12-31, after which datetime knows no more.
_LATEST_S = 253402300799


Card = dict[str, Any]


def list_models(fleet: Fleet, catalogue: Catalogue, key: Key) -> list[Card]:
    """The models of all engines and their aliases, each once, as far as the key may use them. One whose
    engines are all out stays in the list: it exists, and asking for it says when to come again."""
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
    """One of them, also by an old name. Raises ApiError 404."""
    model = catalogue.resolve(name, key).model.name
    card = next(card for card in list_models(fleet, catalogue, key) if card["id"] == model)
    return card | {"id": name}


def anthropic_card(card: Card, catalogue: Catalogue) -> Card:
    """A model as Anthropic's clients read it."""
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
    """A page of a list, which is sorted by id, as Anthropic's clients read it. Raises ApiError 400."""
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
