"""Limits of a key, as keys.yml writes them."""

from pydantic import Field, PositiveInt

from .types import Name, Strict


class Limits(Strict):
    """Each is unlimited where it is not given. Minutes slide; days and months are those of UTC."""

    requests_per_minute: PositiveInt | None = Field(default=None, description="Requests in any 60 seconds.")
    tokens_per_minute: PositiveInt | None = Field(
        default=None, description="Tokens, of prompts and answers, in any 60 seconds."
    )
    concurrent_requests: PositiveInt | None = Field(
        default=None, description="Requests that wait or run at once."
    )
    tokens_per_day: PositiveInt | None = Field(default=None, description="Token budget of a day.")
    tokens_per_month: PositiveInt | None = Field(default=None, description="Token budget of a month.")


class KeyLimits(Limits):
    """Of a key over all models, and of its use of single ones."""

    models: dict[Name, Limits] = Field(default={}, description="Further limits of its use of a model.")
