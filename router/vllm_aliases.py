"""The router's metrics under the names that vLLM's dashboards and autoscalers ask for.

Nothing is counted twice: each scrape reads our own families, over all routes, and what workers last
reported. Label `model_name`, as vLLM's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from router.metrics import RouterMetrics
from transport.registry import WorkerView

_COUNTERS = {
    "vllm:prompt_tokens": "triptych_prompt_tokens",
    "vllm:generation_tokens": "triptych_completion_tokens",
    "vllm:prefix_cache_queries": "triptych_prompt_tokens",  # vLLM counts tokens, too
    "vllm:prefix_cache_hits": "triptych_cached_prompt_tokens",
}
_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "triptych_time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "triptych_inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds": "triptych_request_seconds",
}


class VllmAliases(Collector):
    """Registers itself with the metrics' registry. `queued`: requests that wait at the router."""

    def __init__(
        self,
        metrics: RouterMetrics,
        model: str,
        workers: Callable[[], list[WorkerView]],
        queued: Callable[[], int],
    ) -> None:
        self._metrics = metrics
        self._model = model
        self._workers = workers
        self._queued = queued
        metrics.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        ours = {family.name: family for family in self._metrics.families()}
        yield from self._gauges()
        for name, source in _COUNTERS.items():
            counter = CounterMetricFamily(name, f"As {source}_total", labels=["model_name"])
            counter.add_metric([self._model], _sums(ours[source], "")[""])
            yield counter
        success = CounterMetricFamily(
            "vllm:request_success",
            "As triptych_choices_total",
            labels=["model_name", "finished_reason"],
        )
        for reason, number in _sums(ours["triptych_choices"], "finish_reason").items():
            success.add_metric([self._model, reason], number)
        yield success
        for name, source in _HISTOGRAMS.items():
            yield self._histogram(name, ours[source])

    def _gauges(self) -> Iterable[Metric]:
        homes = [view for view in self._workers() if view.role == "decode"]
        blocks = sum(view.num_blocks for view in homes)
        free = sum(view.free_blocks for view in homes)
        waiting = self._queued() + sum(view.waiting for view in homes)
        found = {
            "num_requests_running": (sum(view.running for view in homes), "Sequences at homes"),
            "num_requests_waiting": (waiting, "Requests at the router, sequences at homes"),
            "kv_cache_usage_perc": (1 - free / blocks if blocks else 0.0, "Of homes, 0 to 1"),
        }
        for name, (value, text) in found.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge

    def _histogram(self, name: str, source: Metric) -> Metric:
        buckets: Counter[str] = Counter()
        total = 0.0
        for sample in source.samples:
            if sample.name.endswith("_bucket"):
                buckets[sample.labels["le"]] += sample.value  # type: ignore[assignment]
            elif sample.name.endswith("_sum"):
                total += sample.value
        histogram = HistogramMetricFamily(name, f"As {source.name}", labels=["model_name"])
        if buckets:
            bounds = sorted(buckets.items(), key=lambda bucket: float(bucket[0]))
            histogram.add_metric([self._model], buckets=bounds, sum_value=total)
        return histogram


def _sums(family: Metric, label: str) -> dict[str, float]:
    """A counter's values by this label, over all others; without a label under ""."""
    sums: dict[str, float] = {} if label else {"": 0.0}
    for sample in family.samples:
        if sample.name.endswith("_total"):
            key = sample.labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + sample.value
    return sums
