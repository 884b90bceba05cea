"""Section `engines`: where they are and what they serve."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from inference_proxy.config.types import Name, Strict, check_port


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError("write scheme, host and port only, such as http://10.0.0.5:8000")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("write scheme, host and port only, without credentials or a query")
    check_port(parts)
    return url.rstrip("/")


# An engine's id is also the name of its marker file in drained_dir.
EngineId = Annotated[str, Field(pattern=r"^[^/\s]+$", max_length=255)]


class EngineConfig(Strict):
    id: EngineId = Field(description="Its name in logs and metrics, and of its marker file in drained_dir.")
    url: Annotated[str, AfterValidator(_origin)] = Field(description="Scheme, host and port.")
    models: Annotated[tuple[Name, ...], Field(min_length=1)] = Field(description="Names that it serves.")
    weight: PositiveFloat = Field(
        default=1, description="Its size: an engine of weight 2 gets twice the tokens of one of weight 1."
    )
    pool: Name | None = Field(default=None, description="A name in routing.pools, whose requests it takes.")
    max_in_flight: PositiveInt | None = Field(
        default=None, description="Requests at once; by default queue.max_in_flight times the weight."
    )
    probe: Literal["completions", "embeddings", "pooling", "classify", "rerank", "transcriptions"] = Field(
        default="completions", description="The request that tells whether it works."
    )
    optional: bool = Field(
        default=False, description="Whether it runs at times only, so that its absence is no fault."
    )
