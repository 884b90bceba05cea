"""The access log: one line of JSON per request."""

import msgspec

from inference_proxy.accounting.exchange import CONTENT_BYTES, Exchange
from inference_proxy.accounting.logs import stamp
from inference_proxy.accounting.metrics import Sample


class _Line(msgspec.Struct, rename={"class_": "class"}):
    """The fields of a log line, in order. Never a key; a prompt or a completion only with `log_content`."""

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


def line_of(exchange: Exchange, sample: Sample, ended: float) -> _Line:
    """The log line of one request. `ended` is in time.time()'s seconds."""
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
        answer = b"".join(exchange.tail)[-CONTENT_BYTES:]
        line.prompt = exchange.prompt.decode(errors="replace")
        line.completion = answer.decode(errors="replace")
    return line


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else int(seconds * 100_000) / 100
