"""What admission counts, by tenant: their names are few, and the configuration's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class AdmissionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._queued_requests = Gauge(
            "triptych_queued_requests",
            "HTTP requests that wait at the router",
            ["tenant"],
            registry=registry,
        )
        self._queued_tokens = Gauge(
            "triptych_queued_tokens",
            "Tokens that the waiting requests are expected to cost",
            ["tenant"],
            registry=registry,
        )
        self.admitted_tokens = Counter(
            "triptych_admitted_tokens_total",
            "Tokens that admitted requests were expected to cost, prompt and answer",
            ["tenant"],
            registry=registry,
        )
        self.rejected = Counter(
            "triptych_rejected_requests_total",
            "HTTP requests turned away: requests_per_s, tokens_per_s, max_concurrent (the tenant's "
            "limits), queue_full, ttft_slo, deadline (it would break), no_workers",
            ["tenant", "reason"],
            registry=registry,
        )
        self.queue_wait = Histogram(
            "triptych_queue_wait_seconds",
            "Wait at the router of requests that had to wait and were admitted",
            ["tenant"],
            buckets=_WAIT_S,
            registry=registry,
        )

    def watch_queue(self, tenant: str, queued: Callable[[str], tuple[int, float]]) -> None:
        """Reports `queued(tenant)`, requests and tokens, at every scrape."""
        self._queued_requests.labels(tenant).set_function(partial(_nth, queued, tenant, 0))
        self._queued_tokens.labels(tenant).set_function(partial(_nth, queued, tenant, 1))


def _nth(queued: Callable[[str], tuple[int, float]], tenant: str, index: int) -> float:
    return queued(tenant)[index]
