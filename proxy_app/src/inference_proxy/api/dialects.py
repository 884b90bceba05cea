"""How errors look and how streams end in each of the supported APIs.

Sources: OpenAI's and Anthropic's API references; what vLLM 0.32 sends, from its source.
"""

import enum
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from inference_proxy.api.errors import ApiError, error_body
from inference_proxy.http.sse import documents

# How vLLM reports, in a 200 that ends like any other, that it aborted a request because it was shut down.
# These bytes only select the pieces of an answer to parse: a tool's schema may contain the second, a model's
# arguments to a tool the third.
_ABORTED = b'"finish_reason":"abort"'
_CANCELLED = b'"status":"cancelled"'
_NO_REASON = b'"type":"message_delta","delta":{"stop_reason":null'

# Anthropic's error type per status; for any other status it is api_error.
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
    """CHAT: OpenAI's completions, and every endpoint without a stream format of its own.

    RESPONSES: OpenAI's /v1/responses. MESSAGES: Anthropic's.
    """

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
            # Clients of this API identify an event by its type alone and read the fields beside it.
            event = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
            return b"event: error\ndata: " + msgspec.json.encode(event | {"sequence_number": 0}) + b"\n\n"
        data = b"data: " + self.error_body(error, request_id) + b"\n\n"
        return b"event: error\n" + data if self is Dialect.MESSAGES else data

    def is_complete(self, end: bytes) -> bool:
        """Whether the last bytes of a stream are its API's regular end."""
        return _ENDS[self].search(end) is not None

    def fault_in(self, end: bytes) -> str | None:
        """The code of an error event near the end of a complete stream, or None if there is no such event.

        `engine_refused` if the request was at fault, otherwise `engine_error`.
        """
        # find() first: hardly any stream has such an event.
        if all(end.find(mark) < 0 for mark in _FAULT_MARKS):
            return None
        fault = _FAULTS[self].search(end)
        if fault is None:
            return None
        return "engine_refused" if _REFUSES.search(end, fault.end()) else "engine_error"

    def fault_of(self, body: bytes) -> str | None:
        """The same for an answer that is not a stream, from the beginning of its body."""
        if _ERROR_BODY.match(body) is None:
            return None
        return "engine_refused" if _REFUSES.search(body) else "engine_error"

    def is_aborted(self, chunk: bytes) -> bool:
        """Whether a piece of an answer says that the engine dropped the request."""
        # find(), because `in` first tries bytes as a number, which raises and catches an exception.
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
    """`document` is the whole answer, or the event that ends a stream."""
    response = document.get("response", document)
    return isinstance(response, dict) and response.get("status") == "cancelled"


# Compared for each chunk; before Python 3.12, looking up an enum's member costs more than the comparison.
CHAT, MESSAGES, RESPONSES = Dialect.CHAT, Dialect.MESSAGES, Dialect.RESPONSES

# Patterns for a whole line. A model cannot write one, since in a JSON string a newline is escaped. An
# engine's error event is also an end: it has informed the client.
_ENDS = {
    dialect: re.compile(rb"(?:^|[\r\n])(?:" + line + rb")[\r\n]")
    for dialect, line in {
        Dialect.CHAT: rb"data: ?\[DONE\]",
        Dialect.RESPONSES: rb"event: ?(?:response\.(?:completed|failed|incomplete)|error)",
        Dialect.MESSAGES: rb"event: ?(?:message_stop|error)",
    }.items()
}
# Engines' error events, which arrive in a 200 before or instead of the last event. Each contains one of the
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
# What engines send instead of an answer. A successful response may begin with an error that is null.
_ERROR_BODY = re.compile(rb'\s*\{\s*"(?:error"\s*:\s*[{"]|(?:object|type)"\s*:\s*"error")')
_REFUSES = re.compile(rb'"code":\s*4\d\d\b|"type":\s*"(?:BadRequestError|invalid_request_error)"')
