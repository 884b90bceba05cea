"""Section `models`: settings of a model, besides the engines that serve it."""

from datetime import date
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from inference_proxy.config.timeouts import MEDIUM
from inference_proxy.config.types import Name, Strict

# Fields that decide where a request goes or what it costs have settings of their own.
_NOT_A_DEFAULT = frozenset(
    {"model", "stream", "priority", "cache_salt", "max_tokens", "max_completion_tokens", "max_output_tokens"}
)


def _refuse_reserved(defaults: dict[str, Any]) -> None:
    if reserved := sorted(_NOT_A_DEFAULT & defaults.keys()):
        raise ValueError(f"defaults cannot set {', '.join(reserved)}")


class DeprecatedName(Strict):
    name: Name = Field(description="A name that is still answered, with a `Deprecation` header.")
    since: date = Field(description="The day from which it is deprecated.")
    sunset: date | None = Field(
        default=None, description="The day on which it will end, told in a `Sunset` header."
    )


class ModelConfig(Strict):
    name: Name = Field(description="The name under which engines serve it.")
    aliases: tuple[Name, ...] = Field(
        default=(), description="Further names, listed and answered like the first."
    )
    deprecated: tuple[DeprecatedName, ...] = Field(
        default=(), description="Old names: answered, no longer listed."
    )
    defaults: dict[Name, Any] = Field(default={}, description="Fields of a body that clients may leave out.")
    default_max_tokens: PositiveInt | None = Field(
        default=None, description="Tokens where a request names no cap."
    )
    max_tokens_limit: PositiveInt | None = Field(
        default=None, description="Most tokens that a request may ask for."
    )
    size: Name = Field(default=MEDIUM, description="A name in timeouts.size_factors.")
    fallback: Name | None = Field(
        default=None, description="The model that answers when this one's engines are all out or full."
    )
    cold_start_s: PositiveInt | None = Field(
        default=None,
        description="The model is known while no engine serves it, because its pool may be at zero: 503, and "
        "clients may try again after so many seconds.",
    )
    maintenance_s: PositiveInt | None = Field(
        default=None,
        description="The model is under maintenance: 503, and clients may try again after so many seconds. "
        "Its fallback answers, if it has one.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        _refuse_reserved(self.defaults)
        if self.fallback == self.name:
            raise ValueError("a model cannot be its own fallback")
        if (self.default_max_tokens or 0) > (self.max_tokens_limit or float("inf")):
            raise ValueError("default_max_tokens is larger than max_tokens_limit")
        return self


def check_names(models: tuple[ModelConfig, ...], served: frozenset[str]) -> None:
    """Each name must have one meaning, and each fallback must exist. Raises ValueError."""
    owner: dict[str, str] = {}
    for model in models:
        for name in (model.name, *model.aliases, *(old.name for old in model.deprecated)):
            if name in owner:
                raise ValueError(f"the name {name!r} is given to {owner[name]!r} and to {model.name!r}")
            if name != model.name and name in served:
                raise ValueError(f"{name!r}, a name of {model.name!r}, is a model that engines serve")
            owner[name] = model.name
    for model in models:
        if model.fallback is not None and model.fallback not in served:
            raise ValueError(
                f"the fallback of {model.name!r}, {model.fallback!r}, is served by no engine "
                "and has no cold_start_s"
            )
