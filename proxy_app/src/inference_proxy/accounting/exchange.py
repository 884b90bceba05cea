"""What the steps of a request note about it, for its answer, its limits and the books."""

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
# Of a prompt and of a completion, each, where they are logged at all.
CONTENT_BYTES = 32 * 1024


class Exchange(msgspec.Struct, eq=False):
    """What the steps of one request find out, for its answer, its limits and the books.

    The fields stand in the order of the steps that write them. Times are of time.perf_counter().
    """

    # The application.
    request_id: str
    method: str
    path: str
    started: float = msgspec.field(default_factory=time.perf_counter)
    endpoint_class: str | None = None
    dialect: Dialect = Dialect.CHAT
    # Authenticate.
    key: str | None = None
    owner: str | None = None
    trace: Trace | None = None
    # Validate: `model` is the client's name of it; `prompt` is kept where content is logged.
    model: str | None = None
    stream: bool = False
    prompt: bytes | None = None
    # Admit: `served` is the engines' name of the model, `notices` are further headers of the answer,
    # `queue_s` is the time in line (None: it did not come to that).
    served: str | None = None
    notices: tuple[Header, ...] = ()
    queue_s: float | None = None
    # Route.
    engine: str | None = None
    retries: int = 0
    # Relay. `tail` has the last chunks by reference: finding usage costs nothing until the end.
    first_byte: float | None = None
    status: int = 0
    bytes_out: int = 0
    tail: deque[bytes] = msgspec.field(default_factory=functools.partial(deque, (), _TAIL_CHUNKS))
    kept: int = 0  # bytes in `tail`, counted where they are to be logged
    part: bytes = b""  # the end of what has come of an answer in parts
    found: bytes = b""  # usage that it told before that
    # The end: tokens of prompt and completion as the engine counted them, and those that limits count.
    outcome: str = "ok"
    client_left: bool = False
    told: tuple[int | None, int | None] = (None, None)
    used: tuple[int, int] = (0, 0)
    ended: float = 0.0

    def note_chunk(self, chunk: bytes) -> None:
        """Remember the end of an answer. For a client that reads slowly chunks become large: of those it is
        the last event, which says that the stream is complete, and what is before it up to a bound."""
        most = _TAIL_BYTES if self.prompt is None else CONTENT_BYTES
        if len(chunk) > most:
            last = max(chunk.rfind(b"\n\n", 0, -2), chunk.rfind(b"\r\n\r\n", 0, -4))
            chunk = chunk[max(0, min(len(chunk) - most, last)) :]
        self.tail.append(chunk)
        if self.prompt is not None:
            self._forget(len(chunk))

    def note_part(self, part: bytes) -> None:
        """Remember of an answer that is no stream its end, and its usage wherever that stands."""
        if self.part or len(part) > _TAIL_BYTES:
            self.find_usage(part)
            part = part[-(_TAIL_BYTES if self.prompt is None else CONTENT_BYTES) :]
        else:
            # Most are not longer than that, and need not be looked at before their end.
            self.part = part
        self.tail.append(part)
        if self.prompt is not None:
            self._forget(len(part))

    def find_usage(self, part: bytes) -> None:
        """In an answer, or in an event of one, that comes in parts: usage may stand before the results of a
        ranking, the log probabilities of a prompt or what a client wrote, which can be megabytes."""
        seen = self.part + part
        # Only in the other dialects can an answer have objects that a client or a model wrote, and they come
        # before the usage.
        is_chat = self.dialect is CHAT
        at = seen.find(_USAGE_NAME) if is_chat else seen.rfind(_USAGE_NAME)
        if at >= 0 and not (is_chat and len(self.found) == _USAGE_BYTES):
            self.found = seen[at : at + _USAGE_BYTES]
        self.part = seen[-_USAGE_BYTES:]

    def _forget(self, added: int) -> None:
        """What of the tail is more than will be logged."""
        self.kept += added
        while self.kept - len(self.tail[0]) >= CONTENT_BYTES:
            self.kept -= len(self.tail.popleft())

    def log_content(self, prompt: bytes) -> None:
        """Have prompt and completion logged, the latter from its end backwards if it is long."""
        self.prompt = prompt[:CONTENT_BYTES]
        self.tail = deque()

    def headers(self) -> list[Header]:
        """What each answer says besides its own: the request's id, by the names that clients look for."""
        request_id = self.request_id.encode()
        headers = [(b"x-request-id", request_id), *self.notices]
        if self.dialect is MESSAGES:
            headers.append((b"request-id", request_id))
        return headers

    def usage(self) -> tuple[int | None, int | None]:
        """Tokens of prompt and completion as the engine counted them, once its answer is complete."""
        if self.told == (None, None):
            end = b"".join(self.tail)
            # A stream's last event has it, and an earlier one may say that there is none yet.
            for text in (end, self.found) if self.stream else (self.found, end):
                if self.told == (None, None) and not self._is_before_usage(text):
                    self.told = usage(text)
        return self.told

    def _is_before_usage(self, text: bytes) -> bool:
        """Whether a response that was left early has none yet. Before that null stand the client's own
        tools, in which it may have written another."""
        if self.dialect is not RESPONSES:
            return False
        return _NO_USAGE.match(text, max(text.rfind(_USAGE_NAME), 0)) is not None


def usage(end: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens from the last usage object in the end of a body, if there is one.

    Text that a model wrote cannot pretend to be it: inside a JSON string the quotes are escaped.
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
    """None for a number that no engine can have counted."""
    if match is None or len(match[1]) > _MOST_DIGITS:
        return None
    return int(match[1])
