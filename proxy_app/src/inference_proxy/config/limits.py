"""Limits of a key, as written in keys.yml, and section `limits` of config.yml, for all keys."""

import enum
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from inference_proxy.config.types import AbsolutePath, Count, Name, Strict, check_port


class Span(enum.Enum):
    """The time over which a limit counts. Minutes slide; days and months are calendar periods in UTC."""

    MOMENT = enum.auto()
    MINUTE = enum.auto()
    DAY = enum.auto()
    MONTH = enum.auto()


class Counted(NamedTuple):
    """What a limit counts: requests, or tokens of prompts and answers."""

    tokens: bool
    span: Span


_REQUESTS, _TOKENS = False, True


class RateLimits(Strict):
    """Limits by name; those not given are unlimited. If several are exceeded, the first is reported.

    Adding a field here is all that a further limit takes.
    """

    requests_per_minute: Annotated[Count | None, Counted(_REQUESTS, Span.MINUTE)] = Field(
        default=None, description="Requests in any 60 seconds."
    )
    concurrent_requests: Annotated[Count | None, Counted(_REQUESTS, Span.MOMENT)] = Field(
        default=None, description="Requests that wait or run at once."
    )
    tokens_per_minute: Annotated[Count | None, Counted(_TOKENS, Span.MINUTE)] = Field(
        default=None, description="Tokens, of prompts and answers, in any 60 seconds."
    )
    requests_per_day: Annotated[Count | None, Counted(_REQUESTS, Span.DAY)] = Field(
        default=None, description="Requests of a day."
    )
    tokens_per_day: Annotated[Count | None, Counted(_TOKENS, Span.DAY)] = Field(
        default=None, description="Token budget of a day."
    )
    tokens_per_month: Annotated[Count | None, Counted(_TOKENS, Span.MONTH)] = Field(
        default=None, description="Token budget of a month."
    )


def rate_limits() -> dict[str, Counted]:
    """All limits, by their names in the configuration."""
    return {
        name: kind
        for name, field in RateLimits.model_fields.items()
        for kind in field.metadata
        if isinstance(kind, Counted)
    }


class KeyLimits(RateLimits):
    """Limits of a key over all models, and of its use of single models."""

    models: dict[Name, RateLimits] = Field(default={}, description="Further limits of its use of a model.")


def _store_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("write redis://host:port/database, or rediss:// for TLS")
    if parts.username or parts.password:
        raise ValueError("write no credentials into the url: username and password_file have them")
    check_port(parts)
    if not (parts.path.strip("/") or "0").isdigit():
        raise ValueError("the path is the number of a database, such as /0")
    return url


class StoreConfig(Strict):
    """The Redis or Valkey in which workers count together."""

    url: Annotated[str, AfterValidator(_store_url)] = Field(
        description="redis://host:port/database, or rediss:// for TLS."
    )
    username: Name | None = Field(default=None, description="User of its ACL, if it is not the default one.")
    password_file: AbsolutePath | None = Field(
        default=None, description="File with its password in one line, read at each connection."
    )
    timeout_s: PositiveFloat = Field(
        default=0.5, description="Seconds until a store that does not answer counts as away."
    )
    fail_open: bool = Field(
        default=True,
        description="While it is away: true lets each worker count its part of the limits by itself, "
        "false refuses limited keys with 503.",
    )
    workers: PositiveInt = Field(
        description="Workers of all hosts, among whom the limits are divided while it is away."
    )


class LimitsConfig(Strict):
    default: RateLimits = Field(
        default=RateLimits(), description="Limits of a key that does not name them itself."
    )
    models: dict[Name, RateLimits] = Field(
        default={}, description="Limits of a key's use of a model, where the key does not name them itself."
    )
    tokens_without_cap: Count = Field(
        default=1024,
        description="Tokens that are reserved for an answer to which neither the request nor its model sets "
        "a cap.",
    )
    store: StoreConfig | None = Field(
        default=None, description="Where workers count together; without it each counts by itself."
    )
