"""All that is answered, in one table. An engine answers many more paths, most of them without a key."""

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
    EITHER = auto()  # as the content type says


# As config/paths.py has it for classes.
JSON, MULTIPART = BodyKind.JSON, BodyKind.MULTIPART


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row. `path` lacks the version where `versioned`; `kind` decides clocks and limits. Of the body's
    fields, `prompt` hold the prompt, `batch` is the one of them whose list is several prompts (of a list of
    numbers, which are token ids, one), `pairs` are those of which an engine reads the first once for each
    item of the second, `cap` the most tokens to generate (the first that is there counts), and `refused` ask
    for what cannot be had. `operation` is OpenTelemetry's word for it, in a span's name; without one that is
    the engine's path. `usage_option` says that a stream tells its usage only if the body's
    `stream_options` ask for it."""

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
    upstream_path: str = ""  # where the engine has it
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

# With and without a version as vLLM 0.32 has them.
# GET and DELETE of /v1/responses/{id} are not here: the engine that made a response is the only one that has
# it, and forgets it when it restarts. So a response cannot be run in the background, nor be built upon.
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


# Of those for which the one that was meant is looked for.
_LONGEST_PATH = 256


class Endpoints:
    """The table with what the configuration adds: version prefixes, limits and operators' own endpoints."""

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
        """The row of a path as clients write it, or None."""
        endpoint = self._by_path.get(path)
        if endpoint is None and path.startswith(self._models) and model_of(path):
            return _MODELS
        return endpoint

    def nearest(self, path: str) -> str | None:
        """The path that was probably meant: without doubled or final slashes, with the version that it lacks,
        or without what stands before it."""
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
        """Paths below which each model has its own."""
        return [(path.rstrip("/"), _MODELS) for path in self._models]


def model_of(path: str) -> str:
    """The model named by a path /<version>/models/<model>; "" for the whole list. Names may have slashes."""
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
    # Of a path that is not known here the costliest is assumed: all clocks and limits apply.
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
