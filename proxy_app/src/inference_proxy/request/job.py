"""What an engine gets: the client's own bytes, except for fields that only the proxy may set."""

from typing import Any

import msgspec

from inference_proxy.api.errors import ApiError
from inference_proxy.api.json_body import rewrite
from inference_proxy.api.multipart import Form
from inference_proxy.api.numbers import MOST_CONTEXT_TOKENS
from inference_proxy.config import GENERATION, POOLING, Config, ModelConfig
from inference_proxy.http.message import Header, HeaderFields
from inference_proxy.request.stream_usage import ask
from inference_proxy.request.validate import Asked

# Fields by which a scheduler controls an engine. A client that set them could overtake others, share their
# cached prompts, get another request's state, or be charged too little: with an interval one event holds many
# tokens, and with the engine's messages the answer repeats objects of the client's.
_PROXYS_OWN = frozenset(
    {"priority", "cache_salt", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params",
     "vllm_xargs", "stream_interval", "enable_response_messages"}
)  # fmt: skip
# The client's headers that are passed on. All others are dropped: its key, its cookies, and the headers by
# which vLLM can be controlled (priority, rank, load metrics).
_FORWARDED = tuple((name.encode(), name) for name in ("accept", "traceparent", "tracestate"))


class Job(msgspec.Struct, frozen=True, eq=False):
    """A request as it is admitted, routed and sent: `asked`, for engines that serve `model`.

    `max_tokens` is the most that may be generated for each choice, after the model's default and limit and
    within `context_tokens`, the model's context; None: as much as fits. `notices` are headers that tell the
    client what was changed. `hides_usage`: the engine reports usage in an event that the client did not ask
    for.
    """

    asked: Asked
    model: str
    max_tokens: int | None
    context_tokens: int
    body: bytes
    headers: dict[str, str]
    notices: tuple[Header, ...]
    hides_usage: bool = False


def prepare(
    asked: Asked,
    model: ModelConfig,
    config: Config,
    client_headers: HeaderFields,
    request_id: str,
    context_tokens: int = MOST_CONTEXT_TOKENS,
) -> Job:
    """Make the job.

    Raises ApiError 400 for a form with fields that only the proxy may set, because a form's bytes are not
    rewritten.
    """
    headers = {"x-request-id": request_id}
    for field, name in _FORWARDED:
        if field in client_headers:
            headers[name] = client_headers[field].decode("latin-1")
    priority = config.priorities[asked.key.priority].engine_priority
    if priority:
        headers["x-vllm-priority"] = str(priority)
    if asked.form is not None:
        headers["content-type"] = client_headers[b"content-type"].decode("latin-1")
        return Job(asked, model.name, None, context_tokens, _form(asked, asked.form, model), headers, ())
    headers["content-type"] = "application/json"
    max_tokens = _max_tokens(asked, model)
    changes = _changes(asked, model, max_tokens)
    for_usage, hides_usage = ask(asked, changes)
    changes |= for_usage
    kind = asked.endpoint.kind
    if config.isolate_prefix_cache and kind in (GENERATION, POOLING):
        changes["cache_salt"] = asked.key.cache_salt
    if priority and kind is POOLING:
        # Only generation reads the header.
        changes["priority"] = priority
    body = rewrite(asked.body, asked.fields, changes, dropped=_PROXYS_OWN & asked.fields.keys())
    notices: tuple[Header, ...] = ()
    if asked.max_tokens is not None and max_tokens != asked.max_tokens:
        notices = ((b"x-max-tokens", str(max_tokens).encode()),)
    if max_tokens is not None:
        max_tokens = min(max_tokens, context_tokens)
    return Job(asked, model.name, max_tokens, context_tokens, body, headers, notices, hides_usage=hides_usage)


def _max_tokens(asked: Asked, model: ModelConfig) -> int | None:
    limit = model.max_tokens_limit
    if asked.max_tokens is None:
        return model.default_max_tokens or limit
    return asked.max_tokens if limit is None else min(asked.max_tokens, limit)


def _changes(asked: Asked, model: ModelConfig, max_tokens: int | None) -> dict[str, Any]:
    endpoint = asked.endpoint
    defaults = endpoint.defaults
    if endpoint.cap and model.defaults:
        defaults = {**model.defaults, **defaults}
    changes = {name: value for name, value in defaults.items() if name not in asked.fields}
    if model.name != asked.model or "model" not in asked.fields:
        changes["model"] = model.name
    caps = [name for name in endpoint.cap if name in asked.fields]
    if endpoint.cap and (max_tokens != asked.max_tokens or len(caps) > 1):
        # A chat body may have two such fields: set both, so that neither asks for more. An engine that
        # ignores 0 would otherwise use the other one.
        changes |= dict.fromkeys(caps or endpoint.cap[:1], max_tokens)
    return changes


def _form(asked: Asked, form: Form, model: ModelConfig) -> bytes:
    if own := sorted(_PROXYS_OWN & form.names()):
        raise ApiError(400, "not_allowed", f"'{own[0]}' is set by the service: leave it out.", param=own[0])
    return form.body if model.name == asked.model else form.replaced("model", model.name)
