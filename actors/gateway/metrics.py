"""Counters, histograms and gauges of the gateway, in Prometheus' text format.

Owns metric names (`flexpipe_*`) and the registry. Gauges are read from the token source when they are scraped, so that
they can be neither stale nor forgotten. It must never know of HTTP routes.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..generation import StageStatus, TokenSource

FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_BUCKETS_S = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4, 1, 2.5)
REQUEST_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class GatewayMetrics:
    """One gateway's numbers. Times are seconds on one monotonic clock, the caller's."""

    def __init__(self, source: TokenSource, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_PipelineCollector(source, model_name))
        self._requests = Counter(
            "flexpipe_requests",
            "Generation requests by how they ended: completed, client_disconnected, or the code of their error.",
            ["outcome"],
            registry=self._registry,
        )
        self._prompt_tokens = Counter("flexpipe_prompt_tokens", "Prompt tokens admitted.", registry=self._registry)
        self._tokens = Counter("flexpipe_generation_tokens", "Tokens generated.", registry=self._registry)
        self._first_token = self._histogram(
            "flexpipe_time_to_first_token_seconds",
            "From a request's arrival to a sequence's first token.",
            FIRST_TOKEN_BUCKETS_S,
        )
        self._per_token = self._histogram(
            "flexpipe_time_per_output_token_seconds", "Mean time between a sequence's tokens.", TOKEN_BUCKETS_S
        )
        self._request = self._histogram(
            "flexpipe_e2e_request_latency_seconds",
            "From a request's arrival to the end of its answer.",
            REQUEST_BUCKETS_S,
        )

    def admitted(self, prompt_tokens: int) -> None:
        """The token source took a request."""
        self._prompt_tokens.inc(prompt_tokens)

    def token(self) -> None:
        """A token arrived."""
        self._tokens.inc()

    def first_token(self, elapsed_s: float) -> None:
        """A sequence's first token arrived."""
        self._first_token.observe(elapsed_s)

    def sequence_ended(self, first_to_last_s: float, tokens: int) -> None:
        """A sequence came to its end."""
        if tokens > 1:
            self._per_token.observe(first_to_last_s / (tokens - 1))

    def ended(self, outcome: str, elapsed_s: float) -> None:
        """A request was answered, refused, lost, or left by its client."""
        self._requests.labels(outcome).inc()
        if outcome == "completed":
            self._request.observe(elapsed_s)

    def exposition(self) -> bytes:
        """Everything, as text."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, buckets=buckets, registry=self._registry)


class _PipelineCollector(Collector):
    """Reads the pipeline's status at every scrape."""

    def __init__(self, source: TokenSource, model_name: str) -> None:
        self._source = source
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        status = self._source.status()
        used = sum(stage["kv_pages_used"] for stage in status.stages)
        pages = used + sum(stage["kv_pages_free"] for stage in status.stages)
        yield self._model_gauge("flexpipe_ready", "1 while the pipeline can serve.", int(status.ready))
        yield self._model_gauge(
            "flexpipe_replicas", "Pipelines that can serve.", sum(at.ready for at in status.replicas)
        )
        yield self._model_gauge("flexpipe_epoch", "The pipeline's epoch.", status.epoch)
        yield self._model_gauge("flexpipe_requests_running", "Sequences that hold KV pages.", status.running)
        yield self._model_gauge("flexpipe_requests_waiting", "Sequences in the queue.", status.waiting)
        yield self._model_gauge("flexpipe_kv_cache_usage_ratio", "KV pages in use, 0 to 1.", used / max(1, pages))
        yield self._stage_gauge("flexpipe_stage_weight_bytes", "Weights of a stage.", status.stages, "weight_bytes")
        yield self._stage_gauge(
            "flexpipe_stage_peak_rss_bytes", "A stage's peak memory.", status.stages, "peak_rss_bytes"
        )
        yield self._stage_gauge("flexpipe_stage_kv_pages_used", "KV pages in use.", status.stages, "kv_pages_used")
        yield self._stage_gauge("flexpipe_stage_kv_pages_free", "KV pages free.", status.stages, "kv_pages_free")

    def _model_gauge(self, name: str, meaning: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, meaning, labels=["model_name"])
        gauge.add_metric([self._model_name], value)
        return gauge

    def _stage_gauge(self, name: str, meaning: str, stages: tuple[StageStatus, ...], field: str) -> Metric:
        gauge = GaugeMetricFamily(name, meaning, labels=["model_name", "replica", "stage"])
        for stage in stages:
            labels = [self._model_name, str(stage["replica"]), str(stage["stage"])]
            gauge.add_metric(labels, float(dict(stage)[field]))  # type: ignore[arg-type]
        return gauge
