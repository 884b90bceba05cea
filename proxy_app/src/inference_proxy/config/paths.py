"""Sections `api_versions` and `custom_endpoints`: paths in addition to the built-in ones."""

import enum
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from inference_proxy.config.types import Name, Strict


class EndpointClass(enum.StrEnum):
    """The kind of work that an endpoint does. It decides clocks and limits, and labels metrics."""

    GENERATION = "generation"
    POOLING = "pooling"  # embeddings, scores: one pass over the prompt, no tokens generated
    AUDIO = "audio"
    UTILITY = "utility"  # tokenizing and counting: no GPU
    CATALOGUE = "catalogue"  # answered by the proxy itself


# Module-level names, because each request uses them: before Python 3.12, looking up a member costs as much as
# a function call.
GENERATION, POOLING, AUDIO, UTILITY, CATALOGUE = EndpointClass


Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", max_length=64)]
Path = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)+$", max_length=256)]


# Engine endpoints whose bodies are forms, which are passed on unchanged.
FORMS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})


class FixedAnswer(Strict):
    status: int = Field(default=200, ge=200, le=599, description="Status of the fixed answer.")
    body: Any = Field(description="What to answer: a text as it is, anything else as JSON.")


class CustomEndpoint(Strict):
    path: Path = Field(description="The whole path, such as /v1/summarize. A built-in one is replaced.")
    upstream_path: Path | None = Field(
        default=None,
        description="The engine's path. One of the built-in ones brings its class and dialect along; any "
        "other takes JSON and forms (multipart/form-data).",
    )
    endpoint_class: EndpointClass | None = Field(
        default=None,
        description="generation, pooling, audio or utility; generation where upstream_path is not built in.",
    )
    defaults: dict[Name, Any] = Field(
        default={}, description="Fields of a JSON body that clients may leave out."
    )
    body_limit_bytes: PositiveInt | None = Field(
        default=None, description="A tighter limit than the general one."
    )
    answer: FixedAnswer | None = Field(
        default=None, description="A fixed answer, for which no engine is asked."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "CustomEndpoint":
        if (self.upstream_path is None) == (self.answer is None):
            raise ValueError("give either upstream_path or answer")
        if self.answer is not None and (self.endpoint_class or self.defaults or self.body_limit_bytes):
            raise ValueError("a fixed answer has no endpoint_class, defaults or body_limit_bytes")
        if self.defaults and self.upstream_path in FORMS:
            raise ValueError(f"{self.upstream_path} takes a form, which is passed on as it is: no defaults")
        if self.endpoint_class is EndpointClass.CATALOGUE:
            raise ValueError("endpoint_class is generation, pooling, audio or utility")
        return self
