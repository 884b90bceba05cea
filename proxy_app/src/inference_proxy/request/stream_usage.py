"""Asks engines for the usage of a stream whose client did not, and hides it from that client.

An engine sends usage in an event of its own, before `[DONE]`, with an empty list of choices (OpenAI's API
reference, `stream_options.include_usage`; vLLM 0.32 does so and leaves the other events unchanged).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from inference_proxy.http.sse import documents, split_events
from inference_proxy.request.validate import Asked, flag_of, wrong

MARK = b'"usage":'
"""A chunk without this has no usage event. A model cannot write it: in a JSON string quotes are escaped."""

_OPTIONS, _FLAG = "stream_options", "include_usage"
# Other options stay undecoded: they may hold numbers that are too large for us but not for an engine.
_split_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_scalar = msgspec.json.Decoder(str | int | float | bool | None).decode


# Two flags fill a tenth of this.
_MOST_BYTES = 1024


def ask(asked: Asked, changes: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Further changes of the body, besides `changes`, and whether the client did not ask for usage itself.

    No changes if usage is reported anyway or the answer is not a stream. Raises ApiError 400 for options that
    engines might read differently, so that usage would be missed.
    """
    if not asked.stream or not asked.endpoint.usage_option:
        return {}, False
    options = _options(asked, changes)
    if options is None or (wanted := _wanted(options)) is True:
        return {}, False
    asks = False if wanted is None else flag_of(wanted)
    if asks is None:
        raise wrong(f"{_OPTIONS}.{_FLAG}", "invalid_type", f"'{_OPTIONS}.{_FLAG}' must be true or false.")
    if not asks:
        options = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
    return {_OPTIONS: options | {_FLAG: True}}, not asks


def _options(asked: Asked, changes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stream options; None if they are not an object, which the engine refuses."""
    raw = asked.fields.get(_OPTIONS)
    if raw is None:
        return changes.get(_OPTIONS) or {}
    if len(raw) > _MOST_BYTES:
        raise wrong(_OPTIONS, "invalid_value", f"'{_OPTIONS}' is longer than {_MOST_BYTES} bytes.")
    try:
        return _split_options(raw) or {}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if bytes(raw).startswith(b"{"):
            # An object with names that are not UTF-8, which an engine's parser may accept.
            raise wrong(_OPTIONS, "invalid_value", f"'{_OPTIONS}' cannot be read: {error}.") from error
        return None


def _wanted(options: dict[str, Any]) -> Any:
    """The flag's value, of any type; a value that is not a flag if it cannot be decoded."""
    value = options.get(_FLAG)
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return _scalar(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _OPTIONS


def split(chunk: bytes) -> tuple[bytes, bytes]:
    """Split complete events of a stream into those for the client and those that contain only usage."""
    kept: list[bytes] = []
    hidden: list[bytes] = []
    for event in split_events(chunk):
        (hidden if MARK in event and _tells_only_usage(event) else kept).append(event)
    return b"".join(kept), b"".join(hidden)


def _tells_only_usage(event: bytes) -> bool:
    return any(document.get("choices") == [] and document.get("usage") for document in documents(event))
