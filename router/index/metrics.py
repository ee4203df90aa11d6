"""What the router counts of its index."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily

_LOOKUP_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)


class IndexMetrics:
    """All but the histogram are by worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.events = self._counter("events", "Blocks that workers told of", "kind")
        self.gaps = self._counter("gaps", "Times that changes of a worker's cache were missed")
        self.snapshots = self._counter("snapshots", "Whole caches that were taken over")
        self.predicted_tokens = self._counter(
            "predicted_tokens",
            "Prompt tokens of finished requests that the leg that prefilled was said to have; "
            "without requests whose blocks were being computed when they were placed",
        )
        self.actual_tokens = self._counter("actual_tokens", "Of the same, those that it had")
        self.error_tokens = self._counter(
            "error_tokens", "The differences of the two, request by request, without their signs"
        )
        self.drifts = self._counter(
            "drifts", "Times that a snapshot was asked for because predictions were wrong"
        )
        self.lookup_seconds = Histogram(
            "triptych_router_kv_lookup_seconds",
            "Hashing a prompt and looking it up",
            buckets=_LOOKUP_S,
            registry=registry,
        )

    def forget(self, worker_id: str) -> None:
        """It has left. Its name may never come again: a new pod has a new one."""
        for kind in ("removed", "stored"):
            _drop(self.events, worker_id, kind)
        for counter in (
            self.gaps,
            self.snapshots,
            self.predicted_tokens,
            self.actual_tokens,
            self.error_tokens,
            self.drifts,
        ):
            _drop(counter, worker_id)

    def watch(self, blocks: Callable[[], Iterable[tuple[str, int]]]) -> None:
        """Reports how many blocks of each worker are known, at every scrape."""
        self.registry.register(_Blocks(blocks))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        full = f"triptych_router_kv_{name}_total"
        return Counter(full, text, ["worker", *labels], registry=self.registry)


def _drop(counter: Counter, *labels: str) -> None:
    with contextlib.suppress(KeyError):  # older clients' word for: it was never counted
        counter.remove(*labels)


class _Blocks:
    def __init__(self, blocks: Callable[[], Iterable[tuple[str, int]]]) -> None:
        self._blocks = blocks

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        family = GaugeMetricFamily(
            "triptych_router_kv_blocks", "Blocks that a worker is known to hold", labels=["worker"]
        )
        for worker_id, count in self._blocks():
            family.add_metric([worker_id], count)
        yield family
