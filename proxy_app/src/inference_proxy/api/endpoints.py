"""All endpoints in one table. An engine serves many more paths, most of them without a key."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from inference_proxy.api.dialects import Dialect
from inference_proxy.config import Config, CustomEndpoint, EndpointClass, FixedAnswer


class BodyKind(Enum):
    NONE = auto()
    JSON = auto()
    MULTIPART = auto()
    EITHER = auto()  # by the content type


# Module-level names, for the same reason as the endpoint classes in config/paths.py.
JSON, MULTIPART = BodyKind.JSON, BodyKind.MULTIPART


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the table.

    `path` lacks the version if `versioned`. `kind` decides clocks and limits. `prompt`: the body's fields
    that hold the prompt. `batch`: the one of these whose list means several prompts (a list of numbers is one
    prompt of token ids). `pairs`: fields of which an engine processes the first once for each item of the
    second. `cap`: the fields for the most tokens to generate; the first that is present counts. `refused`:
    fields that ask for unsupported features. `operation`: OpenTelemetry's name for the operation, used in a
    span's name; if empty, that is the engine's path. `usage_option`: a stream reports its usage only if the
    body's `stream_options` ask for it.
    """

    path: str
    kind: EndpointClass
    dialect: Dialect = Dialect.CHAT
    body: BodyKind = BodyKind.JSON
    methods: tuple[str, ...] = ("POST",)
    versioned: bool = True
    prompt: tuple[str, ...] = ()
    batch: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    cap: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    operation: str = ""
    usage_option: bool = False
    upstream_path: str = ""  # the engine's path
    body_limit_bytes: int = 0  # from the configuration
    defaults: Mapping[str, Any] = field(default_factory=dict)
    answer: FixedAnswer | None = None


_GENERATION, _POOLING, _UTILITY = EndpointClass.GENERATION, EndpointClass.POOLING, EndpointClass.UTILITY
_CHAT_PROMPT = ("messages", "system", "tools", "documents", "chat_template", "chat_template_kwargs")
_RERANK = Endpoint("/rerank", _POOLING, prompt=("query", "documents"), pairs=(("query", "documents"),))
_SCORE = Endpoint(
    "/score",
    _POOLING,
    prompt=("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2"),
    pairs=(("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")),
)

# Versioned or not as in vLLM 0.32. GET and DELETE of /v1/responses/{id} are missing on purpose: only the
# engine that made a response has it, and it forgets it when it restarts. So a response can neither run in the
# background nor continue an earlier one.
TABLE = (
    Endpoint(
        "/chat/completions",
        _GENERATION,
        prompt=_CHAT_PROMPT,
        cap=("max_completion_tokens", "max_tokens"),
        operation="chat",
        usage_option=True,
    ),
    Endpoint(
        "/completions",
        _GENERATION,
        prompt=("prompt",),
        batch="prompt",
        cap=("max_tokens",),
        operation="text_completion",
        usage_option=True,
    ),
    Endpoint(
        "/responses",
        _GENERATION,
        Dialect.RESPONSES,
        prompt=("input", "previous_input_messages", "instructions", "tools"),
        cap=("max_output_tokens",),
        refused=("background", "previous_response_id"),
        operation="chat",
    ),
    Endpoint(
        "/messages",
        _GENERATION,
        Dialect.MESSAGES,
        prompt=_CHAT_PROMPT,
        cap=("max_tokens",),
        operation="chat",
    ),
    Endpoint("/messages/count_tokens", _UTILITY, Dialect.MESSAGES, prompt=_CHAT_PROMPT),
    Endpoint("/embeddings", _POOLING, prompt=("input", "messages"), batch="input", operation="embeddings"),
    Endpoint("/pooling", _POOLING, versioned=False, prompt=("input", "messages", "data"), batch="input"),
    Endpoint("/classify", _POOLING, versioned=False, prompt=("input", "messages"), batch="input"),
    _RERANK,
    replace(_RERANK, versioned=False),
    replace(_RERANK, path="/v2/rerank", versioned=False),
    _SCORE,
    replace(_SCORE, versioned=False),
    Endpoint("/audio/transcriptions", EndpointClass.AUDIO, body=BodyKind.MULTIPART),
    Endpoint("/audio/translations", EndpointClass.AUDIO, body=BodyKind.MULTIPART),
    Endpoint("/tokenize", _UTILITY, versioned=False, prompt=("prompt", "messages")),
    Endpoint("/detokenize", _UTILITY, versioned=False, prompt=("tokens",)),
    Endpoint(
        "/openapi.json",
        EndpointClass.CATALOGUE,
        body=BodyKind.NONE,
        methods=("GET", "HEAD"),
        versioned=False,
    ),
    Endpoint("/models", EndpointClass.CATALOGUE, body=BodyKind.NONE, methods=("GET", "HEAD")),
)
OPENAPI, _MODELS = TABLE[-2:]


# The longest path for which a suggestion is looked up.
_LONGEST_PATH = 256


class Endpoints:
    """The table combined with the configuration: version prefixes, limits and operators' own endpoints."""

    def __init__(self, config: Config) -> None:
        self._by_path: dict[str, Endpoint] = {}
        for row in TABLE:
            full = f"/v1{row.path}" if row.versioned else row.path
            known = replace(row, upstream_path=full, body_limit_bytes=config.body_limit_bytes)
            for prefix in (f"/{version}" for version in config.api_versions) if row.versioned else ("",):
                self._by_path[prefix + row.path] = known
        self._versions = tuple(f"/{version}" for version in config.api_versions)
        self._models = tuple(f"/{version}{_MODELS.path}/" for version in config.api_versions)
        built_in = {known.upstream_path: known for known in self._by_path.values()}
        for custom in config.custom_endpoints:
            self._by_path[custom.path] = _custom(custom, built_in, config)

    def find(self, path: str) -> Endpoint | None:
        """The row for a path as clients write it, or None."""
        endpoint = self._by_path.get(path)
        if endpoint is None and path.startswith(self._models) and model_of(path):
            return _MODELS
        return endpoint

    def nearest(self, path: str) -> str | None:
        """The path that was probably meant, or None.

        Tried: without doubled or final slashes, with the missing version, and without a prefix.
        """
        if len(path) > _LONGEST_PATH:
            return None
        segments = [segment for segment in path.split("/") if segment]
        for first in range(len(segments)):
            for prefix in ("", *self._versions):
                candidate = f"{prefix}/{'/'.join(segments[first:])}"
                for spelling in (candidate, candidate.lower()):
                    if spelling != path and self.find(spelling) is not None:
                        return spelling
        return None

    def items(self) -> Iterable[tuple[str, Endpoint]]:
        """Paths as clients write them, with their rows."""
        return self._by_path.items()

    def models(self) -> Iterable[tuple[str, Endpoint]]:
        """Paths below which each model has its own path."""
        return [(path.rstrip("/"), _MODELS) for path in self._models]


def model_of(path: str) -> str:
    """The model in a path /<version>/models/<model>, or "" for the whole list. Names may contain slashes."""
    return path.partition(f"{_MODELS.path}/")[2]


def _custom(custom: CustomEndpoint, built_in: Mapping[str, Endpoint], config: Config) -> Endpoint:
    if custom.answer is not None:
        return Endpoint(
            custom.path,
            EndpointClass.CATALOGUE,
            body=BodyKind.NONE,
            methods=("GET", "HEAD", "POST"),
            answer=custom.answer,
        )
    assert custom.upstream_path is not None, "the configuration has one or the other"
    # An unknown path is treated as the most expensive kind: all clocks and limits apply.
    unknown = Endpoint(
        custom.path, EndpointClass.GENERATION, body=BodyKind.EITHER, upstream_path=custom.upstream_path
    )
    model = built_in.get(custom.upstream_path, unknown)
    return replace(
        model,
        path=custom.path,
        kind=custom.endpoint_class or model.kind,
        body_limit_bytes=custom.body_limit_bytes or config.body_limit_bytes,
        defaults=custom.defaults,
    )
