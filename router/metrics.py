"""What the router counts. Requests are HTTP requests; a request has one choice or more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class RouterMetrics:
    """Units are in the names; `route` is a route's template, never a caller's path."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.http_requests = Counter(
            "triptych_http_requests_total",
            "Answered HTTP requests; status 499: the client left before the answer began",
            ["route", "status"],
            registry=registry,
        )
        self.interrupted = Counter(
            "triptych_interrupted_requests_total",
            "Generations without a proper end: client (it left), error (after the head was sent), "
            "stalled (the client read nothing until the deadline), stopping (the drain was over)",
            ["route", "reason"],
            registry=registry,
        )
        self.choices = Counter(
            "triptych_choices_total",
            "Choices that ended, by finish reason",
            ["route", "finish_reason"],
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "triptych_time_to_first_token_seconds",
            "Body read to first token of a choice, as seen by the router",
            ["route"],
            buckets=_TTFT_S,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "triptych_inter_token_latency_seconds",
            "Time between two deltas of a choice over the tokens that the second one brought",
            ["route"],
            buckets=_ITL_S,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "triptych_prompt_tokens_total", "Prompt tokens of finished requests", registry=registry
        )
        self.cached_tokens = Counter(
            "triptych_cached_prompt_tokens_total",
            "Prompt tokens of finished requests that nobody had to compute",
            registry=registry,
        )
        self.completion_tokens = Counter(
            "triptych_completion_tokens_total", "Tokens relayed from homes", registry=registry
        )
        self.live_streams = Gauge(
            "triptych_live_streams", "Generate calls that are open", registry=registry
        )
        self.placements = Counter(
            "triptych_placements_total",
            "Homes chosen: by which policy, or in place of one that was lost; "
            "and whether a prefill worker was named",
            ["reason", "remote_prefill"],
            registry=registry,
        )
        self._workers = Gauge(
            "triptych_attached_workers",
            "Workers attached to this router",
            ["role"],
            registry=registry,
        )

    def watch_workers(self, count: Callable[[str], int]) -> None:
        """Reports `count(role)` at every scrape."""
        for role in ("prefill", "decode"):
            self._workers.labels(role).set_function(partial(count, role))
