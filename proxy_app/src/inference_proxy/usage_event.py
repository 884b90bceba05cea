"""The usage of a stream whose client did not ask for it: asked for at the engine, and kept from the client.

An engine tells it in an event of its own, before `[DONE]`, with an empty list of choices (OpenAI's API
reference, `stream_options.include_usage`; vLLM 0.32 sends it so, and leaves the other events as they are).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from .sse import documents, split_events
from .validate import Asked

MARK = b'"usage":'
"""No chunk without it has such an event. A model cannot write it: in a JSON string quotes are escaped."""

_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
_OPTIONS = "stream_options"


def ask(asked: Asked, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Further changes of the body, besides `changes`; none if usage is told anyway, or in no stream."""
    if not asked.stream or asked.endpoint.upstream_path not in _PATHS:
        return {}
    raw = asked.fields.get(_OPTIONS)
    try:
        options = changes.get(_OPTIONS) if raw is None else msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # As what is not an object: for the engine to refuse.
        return {}
    if options is None:
        return {_OPTIONS: {"include_usage": True}}
    if not isinstance(options, dict) or options.get("include_usage"):
        # What is not an object is for the engine to refuse.
        return {}
    without = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
    return {_OPTIONS: without | {"include_usage": True}}


def split(chunk: bytes) -> tuple[bytes, bytes]:
    """Whole events of a stream without those that tell usage and nothing else; and those."""
    kept: list[bytes] = []
    hidden: list[bytes] = []
    for event in split_events(chunk):
        (hidden if MARK in event and _tells_only_usage(event) else kept).append(event)
    return b"".join(kept), b"".join(hidden)


def _tells_only_usage(event: bytes) -> bool:
    return any(document.get("choices") == [] and document.get("usage") for document in documents(event))
