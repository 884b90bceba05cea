"""Metrics for Prometheus and the status page: counted as requests end, formatted at each scrape.

A request costs one lookup and a few additions. Numbers that other parts keep (queues, breakers, limits) are
not recorded here but read at each scrape: `Metrics.watch`.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from inference_proxy.settings import Settings

_PREFIX = "inference_proxy_"
# How many combinations of the four labels are kept apart, at about 3 KB each. Further ones count as "other".
_MOST_SERIES = 1000
# How many of a model's latest requests the status page's percentiles cover.
_RECENT = 256

OTHER = "other"
# Outcomes of requests that a clock ended. The queue's timeout is not one of them: it means a lack of
# capacity.
CLOCKS = frozenset(
    {"connect_timeout", "request_timeout", "first_byte_timeout", "between_chunks_timeout", "total_timeout"}
)

_FIRST_TOKEN_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAP_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_QUEUE_S = (0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DURATION_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Labels(NamedTuple):
    """The labels of a series. Values are names from the configuration, never from a client.

    They are the key's owner, the model as engines serve it, the engine's id and the endpoint's class. "other"
    means that there is none, or that there are too many.
    """

    owner: str = OTHER
    model: str = OTHER
    engine: str = OTHER
    endpoint_class: str = OTHER


class Sample(NamedTuple):
    """The measurements of a request that has ended.

    In seconds, or None if there is nothing to measure: `first_token_s` and `gap_s` (the mean time between two
    tokens) only of streams, `queue_s` only of requests that reached the queue.
    """

    status: int
    code: str
    prompt_tokens: int | None
    completion_tokens: int | None
    queue_s: float | None
    first_token_s: float | None
    gap_s: float | None
    duration_s: float
    retries: int


class Percentiles(NamedTuple):
    """Percentiles over a model's latest requests, in seconds; None if none of the requests has that value."""

    requests: int
    p50: dict[str, float | None]
    p95: dict[str, float | None]


Value = tuple[tuple[str, ...], float]
Values = Iterable[Value]


@dataclass(frozen=True, slots=True)
class _Reading:
    name: str
    text: str
    labels: tuple[str, ...]
    read: Callable[[], Values]


class _Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float | None) -> None:
        if seconds is not None:
            self.counts[bisect_left(self.bounds, seconds)] += 1
            self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        edges = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(edges, accumulate(self.counts), strict=True))


@dataclass(slots=True)
class _Series:
    requests: dict[tuple[int, str], int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    retries: int = 0
    first_token: _Histogram = field(default_factory=lambda: _Histogram(_FIRST_TOKEN_S))
    gap: _Histogram = field(default_factory=lambda: _Histogram(_GAP_S))
    queue: _Histogram = field(default_factory=lambda: _Histogram(_QUEUE_S))
    duration: _Histogram = field(default_factory=lambda: _Histogram(_DURATION_S))

    def add(self, sample: Sample) -> None:
        result = sample.status, sample.code
        self.requests[result] = self.requests.get(result, 0) + 1
        self.prompt_tokens += sample.prompt_tokens or 0
        self.completion_tokens += sample.completion_tokens or 0
        self.uncounted += sample.code == "ok" and sample.prompt_tokens is None
        self.retries += sample.retries
        self.first_token.add(sample.first_token_s)
        self.gap.add(sample.gap_s)
        self.queue.add(sample.queue_s)
        self.duration.add(sample.duration_s)


class Metrics:
    """The metrics of a worker. There are no locks: only the event loop writes."""

    def __init__(self) -> None:
        self._series: dict[Labels, _Series] = {}
        self._recent: dict[str, deque[Sample]] = {}
        self._readings: list[_Reading] = []

    def record(self, of: Labels, sample: Sample) -> None:
        series = self._series.get(of)
        if series is None:
            if len(self._series) >= _MOST_SERIES:
                of = Labels()
            series = self._series.setdefault(of, _Series())
        series.add(sample)
        recent = self._recent.get(of.model)
        if recent is None:
            recent = self._recent[of.model] = deque(maxlen=_RECENT)
        recent.append(sample)

    def watch(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Values]) -> None:
        """Publish numbers that are kept elsewhere.

        `read` returns pairs of label values and a number; it is called in the event loop at each scrape.

        The metric is a counter if `name` (given without prefix) ends in `_total`, otherwise a gauge. Label
        values must come from the configuration or the code, never from a client.
        """
        self._readings.append(_Reading(_PREFIX + name, text, labels, read))

    def reconfigure(self, settings: Settings) -> None:
        """Forget series whose names are no longer in the configuration.

        Otherwise they would accumulate as keys change.
        """
        config = settings.config
        owners, models = settings.keys.owners(), config.model_names()
        engines = frozenset(engine.id for engine in config.engines)
        for of in list(self._series):
            gone = (
                of.owner not in owners | {OTHER}
                or of.model not in models | {OTHER}
                or of.engine not in engines | {OTHER}
            )
            if gone:
                del self._series[of]
        for model in self._recent.keys() - models - {OTHER}:
            del self._recent[model]

    def percentiles(self) -> dict[str, Percentiles]:
        """By model, in alphabetical order."""
        return {model: _percentiles(recent) for model, recent in sorted(self._recent.items())}

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """A page for Prometheus in the format that its Accept header asks for, and the page's content type.

        It is written in a thread, because with many series that takes longer than a stream should wait.
        Recording continues meanwhile, so one number may include a request that another does not include yet.
        """
        series = list(self._series.items())
        read = [(reading, list(reading.read())) for reading in self._readings]
        encode, content_type = choose_encoder(accept)
        page = await asyncio.to_thread(encode, _Page(series, read))
        return page, content_type


class _Page(Collector):
    def __init__(
        self, series: list[tuple[Labels, _Series]], read: list[tuple[_Reading, list[Value]]]
    ) -> None:
        self._series = series
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield from ProcessCollector(registry=None).collect()
        for reading, values in self._read:
            family = CounterMetricFamily if reading.name.endswith("_total") else GaugeMetricFamily
            metric = family(reading.name, reading.text, labels=reading.labels)
            for labels, value in values:
                metric.add_metric(labels, value)
            yield metric
        yield self._results("requests", "Requests that have ended.", ("status", "code"), lambda *_: True)
        yield self._results(
            "clocks_expired",
            "Requests that a clock ended.",
            ("status", "code"),
            lambda _, code: code in CLOCKS,
        )
        yield self._results(
            "limit_rejections",
            "Requests refused for their caller's limits, not for our capacity.",
            ("status", "code"),
            lambda status, code: status == 429 and not code.startswith("engine_"),
        )
        yield self._counter("prompt_tokens", "Tokens of prompts.", lambda s: s.prompt_tokens)
        yield self._counter("completion_tokens", "Tokens generated.", lambda s: s.completion_tokens)
        yield self._counter(
            "requests_uncounted", "Requests that went well and told no usage.", lambda s: s.uncounted
        )
        yield self._counter("retries", "Attempts after the first.", lambda s: s.retries)
        yield self._histogram(
            "time_to_first_token_seconds",
            "From request to first byte, streams.",
            lambda s: s.first_token,
        )
        yield self._histogram(
            "inter_token_seconds", "A stream's mean time between two tokens.", lambda s: s.gap
        )
        yield self._histogram("queue_seconds", "Time in the queue for an engine.", lambda s: s.queue)
        yield self._histogram(
            "request_duration_seconds", "From a request's arrival to its end.", lambda s: s.duration
        )

    def _results(
        self, name: str, text: str, labels: tuple[str, str], wanted: Callable[[int, str], bool]
    ) -> Metric:
        metric = CounterMetricFamily(_PREFIX + name, text, labels=Labels._fields + labels)
        for of, series in self._series:
            # list() copies the items in one step, during which no other thread runs.
            for (status, code), number in list(series.requests.items()):
                if wanted(status, code):
                    metric.add_metric([*of, str(status), code], number)
        return metric

    def _counter(self, name: str, text: str, read: Callable[[_Series], int]) -> Metric:
        metric = CounterMetricFamily(_PREFIX + name, text, labels=Labels._fields)
        for of, series in self._series:
            metric.add_metric(of, read(series))
        return metric

    def _histogram(self, name: str, text: str, read: Callable[[_Series], _Histogram]) -> Metric:
        metric = HistogramMetricFamily(_PREFIX + name, text, labels=Labels._fields)
        for of, series in self._series:
            histogram = read(series)
            # An embedding has no gaps between tokens: omit its empty buckets.
            if any(histogram.counts):
                metric.add_metric(of, histogram.buckets(), histogram.total)
        return metric


def _percentiles(recent: Sequence[Sample]) -> Percentiles:
    p50: dict[str, float | None] = {}
    p95: dict[str, float | None] = {}
    for name in ("queue_s", "first_token_s", "gap_s", "duration_s"):
        values = sorted(value for sample in recent if (value := getattr(sample, name)) is not None)
        p50[name] = values[len(values) // 2] if values else None
        p95[name] = values[len(values) * 95 // 100] if values else None
    return Percentiles(len(recent), p50, p95)
