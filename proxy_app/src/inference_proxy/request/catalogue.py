"""Which model is meant: aliases, old names, defaults, and who stands in for whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from email.utils import format_datetime
from typing import Any

from inference_proxy.api.errors import ApiError, Header
from inference_proxy.api.numbers import whole
from inference_proxy.config import Config, DeprecatedName, ModelConfig
from inference_proxy.engines.fleet import Fleet
from inference_proxy.keys.authenticate import Key

# Of an engine's model card. The others tell where the weights lie on the host.
_CARD_FIELDS = ("created", "owned_by", "max_model_len")

# Of a list of models, by Anthropic's API reference.
_PAGE = 20
_LONGEST_PAGE = 1000
# 9999-12-31, after which datetime knows no more.
_LATEST_S = 253402300799

Card = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """What a client's name of a model stands for, and headers that the answer gets because of the name."""

    model: ModelConfig
    headers: tuple[Header, ...] = ()


class Catalogue:
    """The models of the configuration by all their names."""

    def __init__(self, config: Config) -> None:
        served = {name for engine in config.engines for name in engine.models}
        self._models = {name: ModelConfig(name=name) for name in served}
        self._models |= {model.name: model for model in config.models if model.name in served}
        self._names = {name: Named(model) for name, model in self._models.items()}
        for model in self._models.values():
            self._names |= {alias: Named(model) for alias in model.aliases}
            self._names |= {old.name: Named(model, _deprecation(old)) for old in model.deprecated}

    def resolve(self, name: str, key: Key) -> Named:
        """What a name stands for. Raises ApiError 404, also for a model that the key may not use: for it that
        one does not exist, and the answer tells nothing about the others."""
        named = self._names.get(name)
        if named is None or not key.may_use(named.model.name):
            raise unknown_model(name)
        return named

    def line(self, model: ModelConfig, key: Key) -> list[ModelConfig]:
        """The model, then those that stand in for it, each once, as far as the key may use them."""
        if model.fallback is None:
            return [model]
        line = [model]
        while (name := line[-1].fallback) is not None and self._models[name] not in line:
            line.append(self._models[name])
        return [model, *(other for other in line[1:] if key.may_use(other.name))]

    def is_deprecated(self, name: str) -> bool:
        named = self._names.get(name)
        return named is not None and bool(named.headers)

    def aliases(self, model: str) -> tuple[str, ...]:
        return self._models[model].aliases


def unknown_model(name: str) -> ApiError:
    """404, whether it does not exist or the key may not use it."""
    return ApiError(
        404,
        "model_not_found",
        f"The model '{name[:256]}' does not exist, or your key may not use it: see GET /v1/models.",
        param="model",
    )


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


def _deprecation(old: DeprecatedName) -> tuple[Header, ...]:
    """RFC 9745 (a structured date) and RFC 8594 (an HTTP date)."""
    headers = [(b"deprecation", b"@%d" % _midnight(old.since).timestamp())]
    if old.sunset is not None:
        headers.append((b"sunset", format_datetime(_midnight(old.sunset), usegmt=True).encode()))
    return tuple(headers)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
