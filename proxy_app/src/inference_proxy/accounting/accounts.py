"""Last step: a finished request becomes a log line, metrics and usage."""

import asyncio
import time
from collections import Counter
from typing import Any

import msgspec

from inference_proxy.accounting.access_log import line_of
from inference_proxy.accounting.exchange import Exchange
from inference_proxy.accounting.logs import write_lines
from inference_proxy.accounting.metrics import OTHER, Labels, Metrics, Sample, Values
from inference_proxy.accounting.usage_store import UsageStore, Used
from inference_proxy.faults import Faults

# How many requests are accounted for together, and how long the first of them waits for the others.
_BATCH_SIZE = 16
_LINGER_S = 0.05
# Of a model or a path in a span.
_LONGEST_NAME = 256


class Accounts:
    """A worker's requests: those that run, and those that have ended but are not yet accounted for.

    Several ended requests are accounted for together, up to 50 ms late, because that costs a third less than
    doing it between other work. A process that is killed loses those 50 ms. Before reading metrics or usage,
    call catch_up().
    """

    def __init__(self, metrics: Metrics, usage: UsageStore, faults: Faults) -> None:
        self._faults = faults
        self._metrics = metrics
        self._usage = usage
        self._open: set[Exchange] = set()
        self._ended: list[Exchange] = []
        self._timer: asyncio.TimerHandle | None = None
        metrics.watch("requests_in_flight", "Requests that run or wait.", Labels._fields, self._in_flight)

    def open(self, exchange: Exchange) -> None:
        self._open.add(exchange)

    def close(self, exchange: Exchange) -> None:
        """Account for a request that has ended, whether or not it was opened here."""
        self._open.discard(exchange)
        exchange.ended = time.perf_counter()
        self._ended.append(exchange)
        if len(self._ended) >= _BATCH_SIZE:
            self._account()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER_S, self._linger)

    def catch_up(self) -> None:
        """Account now for all requests that have ended."""
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
            # If one fails, still account for the others.
            try:
                lines.append(self._account_for(exchange, epoch))
            except Exception:
                self._faults.note_wrong_counts()
        write_lines(lines)

    def _account_for(self, exchange: Exchange, epoch: float) -> bytes:
        sample = _sample(exchange)
        self._metrics.record(_labels(exchange), sample)
        if exchange.key is not None:
            self._usage.add(_used(exchange, sample))
        if exchange.trace is not None:
            exchange.trace.end(
                _attributes(exchange, sample), exchange.ended, failed=_is_our_failure(exchange)
            )
        return msgspec.json.encode(line_of(exchange, sample, epoch + exchange.ended))

    def _in_flight(self) -> Values:
        return Counter(_labels(exchange) for exchange in self._open).items()


def _sample(exchange: Exchange) -> Sample:
    prompt_tokens, completion_tokens = exchange.usage()
    first_s = gap_s = None
    if exchange.stream and exchange.first_byte is not None:
        first_s = exchange.first_byte - exchange.started
        if completion_tokens is not None and completion_tokens > 1:
            # The first byte is the first token's. A mean, because reading the clock for each chunk would cost
            # more.
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


def _attributes(exchange: Exchange, sample: Sample) -> dict[str, Any]:
    """A span's attributes, under OpenTelemetry's names where they exist."""
    return {
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": (exchange.model or "")[:_LONGEST_NAME] or None,
        "gen_ai.request.stream": exchange.stream,
        "gen_ai.response.model": exchange.served,
        "gen_ai.response.time_to_first_chunk": sample.first_token_s,
        "gen_ai.usage.input_tokens": sample.prompt_tokens,
        "gen_ai.usage.output_tokens": sample.completion_tokens,
        "http.request.method": exchange.method,
        "url.path": exchange.path[:_LONGEST_NAME],
        "http.response.status_code": exchange.status,
        "error.type": None if exchange.outcome == "ok" else exchange.outcome,
        "inference_proxy.request_id": exchange.request_id,
        "inference_proxy.key": exchange.key,
        "inference_proxy.owner": exchange.owner,
        "inference_proxy.engine": exchange.engine,
        "inference_proxy.queue_s": exchange.queue_s,
        "inference_proxy.retries": exchange.retries,
    }


def _is_our_failure(exchange: Exchange) -> bool:
    """Mistakes of the caller and its leaving are not this server's errors."""
    return exchange.outcome not in ("ok", "client_gone") and not 400 <= exchange.status < 500


def _labels(exchange: Exchange) -> Labels:
    return Labels(
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
