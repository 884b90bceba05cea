"""The record of one request that its steps fill in, for its answer, its limits and its accounting."""

import functools
import re
import time
from collections import deque

import msgspec

from inference_proxy.accounting.tracing import Trace
from inference_proxy.api.dialects import CHAT, MESSAGES, RESPONSES, Dialect
from inference_proxy.http.message import Header

_USAGE = re.compile(rb'"usage":\s*\{')
_USAGE_NAME = b'"usage":'
_NO_USAGE = re.compile(rb'"usage":\s*null')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d+)')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens":\s*(\d+)')
_TOTAL = re.compile(rb'"total_tokens":\s*(\d+)')
# No usage object is longer.
_USAGE_BYTES = 1024
_MOST_DIGITS = 12
_TAIL_CHUNKS = 4
_TAIL_BYTES = 8192
# The most of a prompt, and of a completion, that is logged with `log_content`.
CONTENT_BYTES = 32 * 1024


class Exchange(msgspec.Struct, eq=False):
    """What the steps of one request find out, for its answer, its limits and its accounting.

    The fields are in the order of the steps that write them. Times are time.perf_counter()'s.
    """

    # Written by the application.
    request_id: str
    method: str
    path: str
    started: float = msgspec.field(default_factory=time.perf_counter)
    endpoint_class: str | None = None
    dialect: Dialect = Dialect.CHAT
    # Written by authenticate.
    key: str | None = None
    owner: str | None = None
    trace: Trace | None = None
    # Written by validate: `model` is the client's name for it; `prompt` is kept only if content is logged.
    model: str | None = None
    stream: bool = False
    prompt: bytes | None = None
    # Written by admit: `served` is the engines' name of the model, `notices` are further headers of the
    # answer, `queue_s` is the time in the queue (None: the request never got there).
    served: str | None = None
    notices: tuple[Header, ...] = ()
    queue_s: float | None = None
    # Written by route.
    engine: str | None = None
    retries: int = 0
    # Written by relay. `tail` keeps references to the last chunks, so that finding usage costs nothing until
    # the end.
    first_byte: float | None = None
    status: int = 0
    bytes_out: int = 0
    tail: deque[bytes] = msgspec.field(default_factory=functools.partial(deque, (), _TAIL_CHUNKS))
    kept: int = 0  # bytes in `tail`; counted only if content is logged
    part: bytes = b""  # the last part of an answer that comes in parts
    found: bytes = b""  # usage found in earlier parts of that answer
    # Written at the end: tokens of prompt and completion as the engine counted them, and as limits count
    # them.
    outcome: str = "ok"
    client_left: bool = False
    reported_usage: tuple[int | None, int | None] = (None, None)
    used: tuple[int, int] = (0, 0)
    ended: float = 0.0

    def note_chunk(self, chunk: bytes) -> None:
        """Keep the end of an answer.

        Chunks become large for a client that reads slowly. Of a large one, keep at least the last event,
        which shows that the stream is complete, and what precedes it up to a limit.
        """
        most = _TAIL_BYTES if self.prompt is None else CONTENT_BYTES
        if len(chunk) > most:
            last = max(chunk.rfind(b"\n\n", 0, -2), chunk.rfind(b"\r\n\r\n", 0, -4))
            chunk = chunk[max(0, min(len(chunk) - most, last)) :]
        self.tail.append(chunk)
        if self.prompt is not None:
            self._forget(len(chunk))

    def note_part(self, part: bytes) -> None:
        """Keep the end of an answer that is not a stream, and its usage wherever that is."""
        if self.part or len(part) > _TAIL_BYTES:
            self.find_usage(part)
            part = part[-(_TAIL_BYTES if self.prompt is None else CONTENT_BYTES) :]
        else:
            # Most parts are short enough to be searched only at the end.
            self.part = part
        self.tail.append(part)
        if self.prompt is not None:
            self._forget(len(part))

    def find_usage(self, part: bytes) -> None:
        """Look for usage in an answer, or an event, that comes in parts.

        Usage may precede the results of a ranking, the log probabilities of a prompt or text of the client's,
        which can be megabytes.
        """
        seen = self.part + part
        # In CHAT the first match counts. In the other dialects an answer can contain objects that a client or
        # a model wrote, but only before the usage, so there the last match counts.
        is_chat = self.dialect is CHAT
        at = seen.find(_USAGE_NAME) if is_chat else seen.rfind(_USAGE_NAME)
        if at >= 0 and not (is_chat and len(self.found) == _USAGE_BYTES):
            self.found = seen[at : at + _USAGE_BYTES]
        self.part = seen[-_USAGE_BYTES:]

    def _forget(self, added: int) -> None:
        """Drop chunks from the tail that will not be logged."""
        self.kept += added
        while self.kept - len(self.tail[0]) >= CONTENT_BYTES:
            self.kept -= len(self.tail.popleft())

    def log_content(self, prompt: bytes) -> None:
        """Log the prompt's beginning and the completion's end, each up to CONTENT_BYTES."""
        self.prompt = prompt[:CONTENT_BYTES]
        self.tail = deque()

    def headers(self) -> list[Header]:
        """The headers that we add to each answer: notices, and the request's id.

        The id comes under each name that the API's clients look for.
        """
        request_id = self.request_id.encode()
        headers = [(b"x-request-id", request_id), *self.notices]
        if self.dialect is MESSAGES:
            headers.append((b"request-id", request_id))
        return headers

    def usage(self) -> tuple[int | None, int | None]:
        """Tokens of prompt and completion as the engine counted them, once its answer is complete."""
        if self.reported_usage == (None, None):
            end = b"".join(self.tail)
            # A stream reports usage in its last event; an earlier event may contain a null usage.
            for text in (end, self.found) if self.stream else (self.found, end):
                if self.reported_usage == (None, None) and not self._is_before_usage(text):
                    self.reported_usage = usage(text)
        return self.reported_usage

    def _is_before_usage(self, text: bytes) -> bool:
        """Whether a response that its client left early has no usage yet: its usage is null.

        The client's own tools precede that null, and may contain text that looks like another usage.
        """
        if self.dialect is not RESPONSES:
            return False
        return _NO_USAGE.match(text, max(text.rfind(_USAGE_NAME), 0)) is not None


def usage(end: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens from the last usage object in the end of a body; None if there is none.

    Text from a model cannot be mistaken for it: inside a JSON string the quotes are escaped.
    """
    at = end.rfind(_USAGE_NAME)
    while at >= 0 and not _USAGE.match(end, at):
        at = end.rfind(_USAGE_NAME, 0, at)
    if at < 0:
        return None, None
    until = at + _USAGE_BYTES
    prompt, completion = _tokens(_PROMPT.search(end, at, until)), _tokens(_COMPLETION.search(end, at, until))
    if prompt is None and (total := _tokens(_TOTAL.search(end, at, until))) is not None:
        completion = completion or 0
        prompt = max(total - completion, 0)
    return prompt, completion


def _tokens(match: re.Match[bytes] | None) -> int | None:
    """The number, or None if no engine can have counted that many."""
    if match is None or len(match[1]) > _MOST_DIGITS:
        return None
    return int(match[1])
