"""Second step: the body, as far as the proxy needs to understand it."""

from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import Receive

from .errors import ApiError


class ClientGone(Exception):
    """The client left before its request was complete: there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for. `body` goes to the engine byte for byte."""

    model: str
    stream: bool
    body: bytes


class _Body(msgspec.Struct):
    """The fields that the proxy reads; the decoder skips the others without building them."""

    model: Any = msgspec.UNSET
    stream: Any = None
    priority: Any = None


_decode = msgspec.json.Decoder(_Body).decode


async def read_body(receive: Receive, declared: str | None, limit: int) -> bytes:
    """The whole body, at most `limit` bytes. Raises ApiError 413, ClientGone.

    The declared length is only a reason to refuse early: what counts is what arrives, so an upload in chunks
    meets the same limit.
    """
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def validate(body: bytes) -> Asked:
    """Check the fields that decide where a request goes. Raises ApiError 400, naming the field."""
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"The body is not a JSON object: {error}.") from error
    if fields.model is msgspec.UNSET:
        raise _wrong(
            "model", "missing_field", "'model' is missing: name one of those that GET /v1/models lists."
        )
    if not isinstance(fields.model, str) or not fields.model:
        raise _wrong("model", "invalid_type", "'model' must be a non-empty string.")
    if fields.stream is not None and not isinstance(fields.stream, bool):
        raise _wrong("stream", "invalid_type", "'stream' must be true or false.")
    if fields.priority:
        # An engine that schedules by priority would let this caller overtake all others.
        raise _wrong("priority", "not_allowed", "'priority' is set by the service: leave it out.")
    return Asked(fields.model, bool(fields.stream), body)


def _wrong(param: str, code: str, message: str) -> ApiError:
    return ApiError(400, code, message, param=param)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"The body is larger than the {limit} bytes that are allowed.")
