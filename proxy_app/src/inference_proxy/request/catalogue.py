"""Finds the model that a client's name means: aliases, old names, defaults and fallbacks."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from email.utils import format_datetime

from inference_proxy.api.errors import ApiError
from inference_proxy.config import Config, DeprecatedName, ModelConfig
from inference_proxy.http.message import Header
from inference_proxy.keys.authenticate import Key


@dataclass(frozen=True, slots=True)
class Named:
    """The model that a client's name means, and the headers that the answer gets because of that name."""

    model: ModelConfig
    headers: tuple[Header, ...] = ()


class Catalogue:
    """The configured models by all their names."""

    def __init__(self, config: Config) -> None:
        served = config.model_names()
        self._models = {name: ModelConfig(name=name) for name in served}
        self._models |= {model.name: model for model in config.models if model.name in served}
        self._names = {name: Named(model) for name, model in self._models.items()}
        for model in self._models.values():
            self._names |= {alias: Named(model) for alias in model.aliases}
            self._names |= {old.name: Named(model, _deprecation(old)) for old in model.deprecated}

    def resolve(self, name: str, key: Key) -> Named:
        """The model that a name means. Raises ApiError 404, also for a model that the key may not use.

        For such a key the model does not exist, so the error does not reveal other models.
        """
        named = self._names.get(name)
        if named is None or not key.may_use(named.model.name):
            raise unknown_model(name)
        return named

    def with_fallbacks(self, model: ModelConfig, key: Key) -> list[ModelConfig]:
        """The model followed by its fallbacks without duplicates, as far as the key may use them."""
        if model.fallback is None:
            return [model]
        chain = [model]
        while (name := chain[-1].fallback) is not None and self._models[name] not in chain:
            chain.append(self._models[name])
        return [model, *(other for other in chain[1:] if key.may_use(other.name))]

    def is_deprecated(self, name: str) -> bool:
        named = self._names.get(name)
        return named is not None and bool(named.headers)

    def aliases(self, model: str) -> tuple[str, ...]:
        return self._models[model].aliases


def unknown_model(name: str) -> ApiError:
    """404, both for a model that does not exist and for one that the key may not use."""
    return ApiError(
        404,
        "model_not_found",
        f"The model '{name[:256]}' does not exist, or your key may not use it: see GET /v1/models.",
        param="model",
    )


def _deprecation(old: DeprecatedName) -> tuple[Header, ...]:
    """RFC 9745 (a structured date) and RFC 8594 (an HTTP date)."""
    headers = [(b"deprecation", b"@%d" % _midnight(old.since).timestamp())]
    if old.sunset is not None:
        headers.append((b"sunset", format_datetime(_midnight(old.sunset), usegmt=True).encode()))
    return tuple(headers)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
