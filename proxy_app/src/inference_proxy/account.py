"""Last step: what is left of a request is a line in the log, some numbers, and its owner's usage.

Never a key; a prompt or a completion only where the configuration asks for it (`log_content`).
"""

import asyncio
import functools
import re
import time
from collections import Counter, deque

import msgspec

from .dialects import CHAT, MESSAGES, RESPONSES, Dialect
from .errors import Header
from .faults import Faults
from .logs import stamp, write_lines
from .metrics import OTHER, Metrics, Of, Sample, Values
from .tracing import Trace
from .usage_store import UsageStore, Used

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
_CONTENT_BYTES = 32 * 1024
# Requests that are accounted for in one go, and how long the first of them waits for the others.
_TOGETHER = 16
_LINGER_S = 0.05


class Exchange(msgspec.Struct, eq=False):
    """What the steps find out about one request: for its answer, for settling and for the log.

    `model` is the client's name of it, `served` the one that engines know; `notices` are headers that its
    answer gets besides the engine's own; `queue_s` is how long it stood in line, None if it did not come to
    that; `told` are the tokens that the engine has counted, where that is known already; `used` those that it
    counts for, of prompt and answer, once it has ended.
    """

    request_id: str
    method: str
    path: str
    dialect: Dialect = Dialect.CHAT
    notices: tuple[Header, ...] = ()
    key: str | None = None
    owner: str | None = None
    endpoint_class: str | None = None
    model: str | None = None
    served: str | None = None
    engine: str | None = None
    queue_s: float | None = None
    retries: int = 0
    told: tuple[int | None, int | None] = (None, None)
    used: tuple[int, int] = (0, 0)
    status: int = 0
    stream: bool = False
    outcome: str = "ok"
    client_left: bool = False
    bytes_out: int = 0
    started: float = msgspec.field(default_factory=time.perf_counter)
    first_byte: float | None = None
    ended: float = 0.0
    # The last chunks by reference: finding usage costs nothing until the end.
    tail: deque[bytes] = msgspec.field(default_factory=functools.partial(deque, (), _TAIL_CHUNKS))
    # The end of what has come of an answer in parts, and the usage that it told before that.
    part: bytes = b""
    found: bytes = b""
    prompt: bytes | None = None
    kept: int = 0  # bytes in `tail`, counted where they are to be logged
    trace: Trace | None = None

    def keep(self, chunk: bytes) -> None:
        """Remember the end of an answer. For a client that reads slowly chunks become large: of those it is
        the last event, which says that the stream is complete, and what is before it up to a bound."""
        most = _TAIL_BYTES if self.prompt is None else _CONTENT_BYTES
        if len(chunk) > most:
            last = max(chunk.rfind(b"\n\n", 0, -2), chunk.rfind(b"\r\n\r\n", 0, -4))
            chunk = chunk[max(0, min(len(chunk) - most, last)) :]
        self.tail.append(chunk)
        if self.prompt is not None:
            self._forget(len(chunk))

    def keep_part(self, part: bytes) -> None:
        """Remember of an answer that is no stream its end, and its usage wherever that stands."""
        if self.part or len(part) > _TAIL_BYTES:
            self.find_usage(part)
            part = part[-(_TAIL_BYTES if self.prompt is None else _CONTENT_BYTES) :]
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
        while self.kept - len(self.tail[0]) >= _CONTENT_BYTES:
            self.kept -= len(self.tail.popleft())

    def keep_content(self, prompt: bytes) -> None:
        """Have prompt and completion logged, the latter from its end backwards if it is long."""
        self.prompt = prompt[:_CONTENT_BYTES]
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
        last = max(text.rfind(_USAGE_NAME), 0)
        return self.dialect is RESPONSES and _NO_USAGE.match(text, last) is not None


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


class Accounts:
    """The requests of a worker: those that run, and what remains of those that have ended.

    That is worked out for several together, up to 50 ms late: one after another they cost a third less than
    each between other things. A process that is killed loses as much. Whoever reads metrics or usage calls
    catch_up() before.
    """

    def __init__(self, metrics: Metrics, usage: UsageStore, faults: Faults) -> None:
        self._faults = faults
        self._metrics = metrics
        self._usage = usage
        self._open: set[Exchange] = set()
        self._ended: list[Exchange] = []
        self._timer: asyncio.TimerHandle | None = None
        metrics.watch("requests_in_flight", "Requests that run or wait.", Of._fields, self._in_flight)

    def open(self, exchange: Exchange) -> None:
        self._open.add(exchange)

    def close(self, exchange: Exchange) -> None:
        """Account for a request that has ended, whether or not it was opened here."""
        self._open.discard(exchange)
        exchange.ended = time.perf_counter()
        self._ended.append(exchange)
        if len(self._ended) >= _TOGETHER:
            self._account()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER_S, self._linger)

    def catch_up(self) -> None:
        """Account at once for all that have ended."""
        if self._ended:
            self._account()

    def _linger(self) -> None:
        self._timer = None
        self.catch_up()

    def _account(self) -> None:
        ended, self._ended = self._ended, []
        epoch = time.time() - time.perf_counter()
        lines = []
        for exchange in ended:
            # Without one of them the others are accounted for as ever.
            try:
                lines.append(self._account_for(exchange, epoch))
            except Exception:
                self._faults.note_damage()
        write_lines(lines)

    def _account_for(self, exchange: Exchange, epoch: float) -> bytes:
        sample = _sample(exchange)
        self._metrics.record(_of(exchange), sample)
        if exchange.key is not None:
            self._usage.add(_used(exchange, sample))
        if exchange.trace is not None:
            exchange.trace.end(exchange, sample)
        return msgspec.json.encode(_line(exchange, sample, epoch + exchange.ended))

    def _in_flight(self) -> Values:
        return Counter(_of(exchange) for exchange in self._open).items()


def _sample(exchange: Exchange) -> Sample:
    prompt_tokens, completion_tokens = exchange.usage()
    first_s = gap_s = None
    if exchange.stream and exchange.first_byte is not None:
        first_s = exchange.first_byte - exchange.started
        if completion_tokens is not None and completion_tokens > 1:
            # The first byte is the first token's. A mean: reading the clock for each chunk would cost more.
            gap_s = (exchange.ended - exchange.first_byte) / (completion_tokens - 1)
    return Sample(
        exchange.status,
        exchange.outcome,
        prompt_tokens,
        completion_tokens,
        exchange.queue_s,
        first_s,
        gap_s,
        exchange.ended - exchange.started,
        exchange.retries,
    )


def _of(exchange: Exchange) -> Of:
    return Of(
        exchange.owner or OTHER,
        exchange.served or OTHER,
        exchange.engine or OTHER,
        exchange.endpoint_class or OTHER,
    )


def _used(exchange: Exchange, sample: Sample) -> Used:
    prompt_tokens, completion_tokens = exchange.used
    return Used(
        "",
        exchange.key or OTHER,
        exchange.owner or OTHER,
        exchange.served or OTHER,
        1,
        int(sample.code not in ("ok", "client_gone")),
        prompt_tokens,
        completion_tokens,
    )


class _Line(msgspec.Struct, rename={"class_": "class"}):
    """The access log's."""

    time: str
    event: str
    request_id: str
    key: str | None
    owner: str | None
    method: str
    path: str
    class_: str | None
    model: str | None
    served_model: str | None
    engine: str | None
    status: int
    stream: bool
    queue_ms: float | None
    ttft_ms: float | None
    duration_ms: float | None
    bytes: int
    outcome: str
    retries: int
    prompt_tokens: int | None
    completion_tokens: int | None
    prompt: str | msgspec.UnsetType = msgspec.UNSET
    completion: str | msgspec.UnsetType = msgspec.UNSET


def _line(exchange: Exchange, sample: Sample, ended: float) -> _Line:
    """`ended` is a time as time.time() has it."""
    first_s = None if exchange.first_byte is None else exchange.first_byte - exchange.started
    line = _Line(
        time=stamp(ended),
        event="request",
        request_id=exchange.request_id,
        key=exchange.key,
        owner=exchange.owner,
        method=exchange.method,
        path=exchange.path[:256],
        class_=exchange.endpoint_class,
        model=exchange.model and exchange.model[:256],
        served_model=exchange.served,
        engine=exchange.engine,
        status=exchange.status,
        stream=exchange.stream,
        queue_ms=_ms(exchange.queue_s),
        ttft_ms=_ms(first_s),
        duration_ms=_ms(sample.duration_s),
        bytes=exchange.bytes_out,
        outcome=exchange.outcome,
        retries=exchange.retries,
        prompt_tokens=sample.prompt_tokens,
        completion_tokens=sample.completion_tokens,
    )
    if exchange.prompt is not None:
        answer = b"".join(exchange.tail)[-_CONTENT_BYTES:]
        line.prompt = exchange.prompt.decode(errors="replace")
        line.completion = answer.decode(errors="replace")
    return line


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else int(seconds * 100_000) / 100
