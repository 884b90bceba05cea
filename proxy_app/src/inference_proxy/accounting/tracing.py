"""OpenTelemetry traces, if configured: one span per request, following the GenAI conventions.

OpenTelemetry is imported only then. A thread of its exporter sends the spans. Source: OpenTelemetry's
semantic conventions 1.37, GenAI client spans and HTTP server spans.
"""

import asyncio
import random
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inference_proxy import __version__
from inference_proxy.config import TracesConfig
from inference_proxy.http.message import HeaderFields
from inference_proxy.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# For one batch, retries included. An unreachable collector must not delay a worker's shutdown.
_EXPORT_S = 2


class Trace:
    """The span of one request, or no span if the request is not sampled.

    Its engine gets `headers`, so that the engine's own spans are children of this one, or are not created
    either.
    """

    __slots__ = ("_operation", "_span", "headers")

    def __init__(self, span: "Span | None", operation: str, headers: dict[str, str]) -> None:
        self._span = span
        self._operation = operation
        self.headers = headers

    def end(self, attributes: Mapping[str, Any], ended: float, *, failed: bool) -> None:
        """Send the span, without attributes that are None. `ended` is time.perf_counter()'s."""
        span = self._span
        if span is None:
            return
        known = {"gen_ai.operation.name": self._operation} | {
            name: value for name, value in attributes.items() if value is not None
        }
        span.update_name(f"{self._operation} {known.get('gen_ai.request.model', '')}".rstrip())
        span.set_attributes(known)
        if failed:
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)
        # Requests are accounted for a little late: subtract the delay.
        span.end(time.time_ns() - int((time.perf_counter() - ended) * 1e9))


class Tracing:
    """Sets tracing up as configured. `on` says whether requests are traced."""

    def __init__(self) -> None:
        self._config: TracesConfig | None = None
        self._provider: Any = None
        self._tracer: Any = None
        self._propagator: Any = None
        self._ratio = 0.0
        self.on = False

    def reconfigure(self, settings: Settings) -> None:
        config = settings.config.traces
        if config == self._config:
            return
        if self._provider is not None:
            # shutdown() sends the remaining spans, and may have to wait for the collector.
            threading.Thread(target=self._provider.shutdown, daemon=True).start()
        self._config = config
        self._provider = None if config is None else _provider(config)
        self.on = config is not None
        if config is not None:
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            self._ratio = config.sample_ratio
            self._tracer = self._provider.get_tracer("inference_proxy", __version__)
            self._propagator = TraceContextTextMapPropagator()

    def begin(self, client_headers: HeaderFields, operation: str, started: float) -> Trace:
        """Start a span, as a child of the client's `traceparent` if there is one.

        `started` is time.perf_counter()'s.
        """
        if b"traceparent" not in client_headers and random.random() >= self._ratio:
            # The same result as OpenTelemetry's for an unsampled request, at a hundredth of the cost.
            ids = f"{random.getrandbits(128):032x}-{random.getrandbits(64):016x}"
            return Trace(None, operation, {"traceparent": f"00-{ids}-00"})
        from opentelemetry.trace import SpanKind, set_span_in_context

        named = {
            name: client_headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in client_headers
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
        """Send the remaining spans."""
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)


def _provider(config: TracesConfig) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

    provider = TracerProvider(
        # For a request without a valid parent, begin() has already sampled, or its header was invalid.
        sampler=ParentBased(root=ALWAYS_ON if config.sample_ratio else ALWAYS_OFF),
        resource=Resource.create({"service.name": config.service_name, "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint, timeout=_EXPORT_S))
    )
    return provider
