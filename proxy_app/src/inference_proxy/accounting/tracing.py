"""OpenTelemetry traces, where the configuration asks for them: one span a request, by GenAI's conventions.

Nothing of OpenTelemetry is imported before that. Spans are sent by a thread of its exporter.
Source: OpenTelemetry's semantic conventions 1.37, GenAI client spans and HTTP server spans.
"""

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from inference_proxy import __version__
from inference_proxy.config import TracesConfig
from inference_proxy.http.request_head import Fields

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from inference_proxy.account import Exchange
    from inference_proxy.accounting.metrics import Sample

# By the engine's path, so that operators' own endpoints are known by what they stand for.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_LONGEST_NAME = 256
# For one batch, retries included. A collector that is away must not hold up a worker's end.
_EXPORT_S = 2


class Trace:
    """The span of one request, None where it is not sampled. Its engine gets `headers`: so the engine's own
    spans are below it, or are not made either."""

    __slots__ = ("_operation", "_span", "headers")

    def __init__(self, span: "Span | None", operation: str, headers: dict[str, str]) -> None:
        self._span = span
        self._operation = operation
        self.headers = headers

    def end(self, exchange: "Exchange", sample: "Sample") -> None:
        span = self._span
        if span is None:
            return
        model = (exchange.model or "")[:_LONGEST_NAME]
        span.update_name(f"{self._operation} {model}".rstrip())
        known = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": model or None,
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
        span.set_attributes({name: value for name, value in known.items() if value is not None})
        # The caller's own mistakes and its leaving are no errors of this server.
        if exchange.outcome not in ("ok", "client_gone") and not 400 <= exchange.status < 500:
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)
        # Accounts are a little late.
        span.end(time.time_ns() - int((time.perf_counter() - exchange.ended) * 1e9))


class Tracing:
    """Follows the configuration: `on` says whether requests are traced."""

    def __init__(self) -> None:
        self._config: TracesConfig | None = None
        self._provider: Any = None
        self._tracer: Any = None
        self._propagator: Any = None
        self._ratio = 0.0
        self.on = False

    def follow(self, config: TracesConfig | None) -> None:
        if config == self._config:
            return
        if self._provider is not None:
            # It sends what it still has, and may have to wait for the collector.
            threading.Thread(target=self._provider.shutdown, daemon=True).start()
        self._config = config
        self._provider = None if config is None else _provider(config)
        self.on = config is not None
        if config is not None:
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            self._ratio = config.sample_ratio
            self._tracer = self._provider.get_tracer("inference_proxy", __version__)
            self._propagator = TraceContextTextMapPropagator()

    def begin(self, client: Fields, upstream_path: str, started: float) -> Trace:
        """A span below the one that the client's `traceparent` names, if it names one. `started` is a time of
        time.perf_counter()."""
        operation = _OPERATIONS.get(upstream_path, upstream_path)
        if b"traceparent" not in client and random.random() >= self._ratio:
            # What OpenTelemetry would do with it, for a hundredth of the price.
            ids = f"{random.getrandbits(128):032x}-{random.getrandbits(64):016x}"
            return Trace(None, operation, {"traceparent": f"00-{ids}-00"})
        from opentelemetry.trace import SpanKind, set_span_in_context

        named = {
            name: client[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in client
        }
        span = self._tracer.start_span(
            operation,
            self._propagator.extract(named),
            SpanKind.SERVER,
            start_time=time.time_ns() - int((time.perf_counter() - started) * 1e9),
        )
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(span))
        return Trace(span, operation, headers)

    async def close(self) -> None:
        """Send the rest."""
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)


def _provider(config: TracesConfig) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

    provider = TracerProvider(
        # Of requests without a valid parent, begin() has thrown the dice already, or the header was nonsense.
        sampler=ParentBased(root=ALWAYS_ON if config.sample_ratio else ALWAYS_OFF),
        resource=Resource.create({"service.name": config.service_name, "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint, timeout=_EXPORT_S))
    )
    return provider
