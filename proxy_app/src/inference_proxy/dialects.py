"""How errors look and how streams end, in each of the APIs that are spoken here.

Sources: OpenAI's and Anthropic's API references; what vLLM 0.32 sends, from its source.
"""

import enum
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from .errors import ApiError, error_body
from .sse import documents

# What vLLM says of a request that it dropped because it was told to stop, in a 200 that ends like any other.
# These bytes tell which pieces of an answer are worth a closer look: a tool's schema may hold the second,
# what a model gives to a tool the third.
_ABORTED = b'"finish_reason":"abort"'
_CANCELLED = b'"status":"cancelled"'
_NO_REASON = b'"type":"message_delta","delta":{"stop_reason":null'

# Anthropic's names of what a status means; any other is an api_error.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Dialect(enum.Enum):
    """CHAT: OpenAI's completions, and all that has no stream of its own. RESPONSES: OpenAI's /v1/responses.
    MESSAGES: Anthropic's."""

    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        """The JSON body of an error answer."""
        if self is Dialect.MESSAGES:
            kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
            detail = {"type": kind, "message": error.message}
            return msgspec.json.encode({"type": "error", "error": detail, "request_id": request_id})
        return error_body(error.message, error.kind, error.param, error.code)

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """The event that ends a stream which cannot go on."""
        if self is Dialect.RESPONSES:
            # Its clients know an event by its type alone, and read the fields beside it.
            event = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
            return b"event: error\ndata: " + msgspec.json.encode(event | {"sequence_number": 0}) + b"\n\n"
        data = b"data: " + self.error_body(error, request_id) + b"\n\n"
        return b"event: error\n" + data if self is Dialect.MESSAGES else data

    def is_complete(self, end: bytes) -> bool:
        """Whether the last bytes of a stream are an end that the engine meant."""
        return _ENDS[self].search(end) is not None

    def fault_in(self, end: bytes) -> str | None:
        """What a complete stream says of itself in an error event near its end: `engine_error`, or
        `engine_refused` where the request was at fault. None: there is no such event."""
        # By find() first: hardly any has one.
        if all(end.find(mark) < 0 for mark in _FAULT_MARKS):
            return None
        fault = _FAULTS[self].search(end)
        if fault is None:
            return None
        return "engine_refused" if _REFUSES.search(end, fault.end()) else "engine_error"

    def fault_of(self, body: bytes) -> str | None:
        """The same of an answer that is no stream, by its beginning."""
        if _ERROR_BODY.match(body) is None:
            return None
        return "engine_refused" if _REFUSES.search(body) else "engine_error"

    def is_aborted(self, chunk: bytes) -> bool:
        """Whether a piece of an answer says that the engine dropped the request."""
        # By find(): `in` first tries bytes as a number, and fails with an exception.
        if self is CHAT:
            return chunk.find(_ABORTED) >= 0 and any(map(_chat_aborted, documents(chunk)))
        if self is MESSAGES:
            return chunk.find(_NO_REASON) >= 0 and any(map(_message_aborted, documents(chunk)))
        return chunk.find(_CANCELLED) >= 0 and any(map(_response_cancelled, documents(chunk)))


def _chat_aborted(document: Mapping[str, Any]) -> bool:
    choices = document.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "abort" for choice in choices
    )


def _message_aborted(document: Mapping[str, Any]) -> bool:
    delta = document.get("delta")
    return (
        document.get("type") == "message_delta"
        and isinstance(delta, dict)
        and delta.get("stop_reason", "") is None
    )


def _response_cancelled(document: Mapping[str, Any]) -> bool:
    """The whole answer, or the event that ends a stream."""
    response = document.get("response", document)
    return isinstance(response, dict) and response.get("status") == "cancelled"


# Looked at for each chunk, and before Python 3.12 finding an enum's member costs more than the rest.
CHAT, MESSAGES, RESPONSES = Dialect.CHAT, Dialect.MESSAGES, Dialect.RESPONSES

# A whole line. A model cannot write one: in a JSON string a newline is escaped. An error event of the
# engine's is an end as well: the client has been told.
_ENDS = {
    dialect: re.compile(rb"(?:^|[\r\n])(?:" + line + rb")[\r\n]")
    for dialect, line in {
        Dialect.CHAT: rb"data: ?\[DONE\]",
        Dialect.RESPONSES: rb"event: ?(?:response\.(?:completed|failed|incomplete)|error)",
        Dialect.MESSAGES: rb"event: ?(?:message_stop|error)",
    }.items()
}
# Error events of engines, which come in a 200 and before or instead of the last event. Each has one of the
# marks.
_FAULT_MARKS = (b"error", b"failed")
_FAULTS = {
    dialect: re.compile(rb"(?:^|[\r\n])(?:" + line + rb")")
    for dialect, line in {
        Dialect.CHAT: rb'data: ?\{\s*(?="error")',
        Dialect.RESPONSES: rb"event: ?(?:error|response\.failed)[\r\n]",
        Dialect.MESSAGES: rb"event: ?error[\r\n]",
    }.items()
}
# What engines write instead of an answer; a response that went well may begin with an error that is null.
_ERROR_BODY = re.compile(rb'\s*\{\s*"(?:error"\s*:\s*[{"]|(?:object|type)"\s*:\s*"error")')
_REFUSES = re.compile(rb'"code":\s*4\d\d\b|"type":\s*"(?:BadRequestError|invalid_request_error)"')
