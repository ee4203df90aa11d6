"""What the router counts. Requests are HTTP requests; a request has one choice or more."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from triptych.config import Role

_TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_GAP_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


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
        self.request_seconds = Histogram(
            "triptych_request_seconds",
            "Body read to the last token, of requests that came to their end",
            ["route"],
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.tokens = TokenMetrics()
        registry.register(self.tokens)
        self.prompt_tokens = Counter(
            "triptych_prompt_tokens_total", "Prompt tokens of finished requests", registry=registry
        )
        self.cached_tokens = Counter(
            "triptych_cached_prompt_tokens_total",
            "Prompt tokens of finished requests that nobody had to compute",
            registry=registry,
        )
        self.live_streams = Gauge(
            "triptych_live_streams", "Generate calls that are open", registry=registry
        )
        self.placements = Counter(
            "triptych_placements_total",
            "Homes chosen, and why: the policy's name, of `predicted` prefix, replicate, bounded, "
            "load or at-home, home-lost in place of one that was lost; and whether a prefill "
            "worker was named",
            ["reason", "remote_prefill"],
            registry=registry,
        )
        self.continuations = Counter(
            "triptych_router_continuations_total",
            "Streams that went on at another home, by how theirs was lost: gone (the call broke), "
            "moved (it drains), silent (it stopped reporting), stalled (its engine stands still)",
            ["reason"],
            registry=registry,
        )
        self.continuation_gap = Histogram(
            "triptych_router_continuation_gap_seconds",
            "Last word of the lost home to first word of the next one, as the stream saw it",
            buckets=_GAP_S,
            registry=registry,
        )
        self._workers = Gauge(
            "triptych_attached_workers",
            "Workers attached to this router",
            ["role"],
            registry=registry,
        )

    def families(self) -> Iterable[Metric]:
        """What requests were counted in, as a scrape finds it."""
        counted = (
            self.prompt_tokens,
            self.cached_tokens,
            self.choices,
            self.time_to_first_token,
            self.request_seconds,
        )
        for source in counted:
            yield from source.collect()
        yield from self.tokens.collect()

    def watch_workers(self, count: Callable[[str], int]) -> None:
        """Reports `count(role)` at every scrape."""
        for role in get_args(Role):
            self._workers.labels(role).set_function(partial(count, role))


class RouteTokens:
    """Tokens relayed on one route. For the event loop only, and without locks: this is counted for
    every token, and prometheus_client would take as long as all that is done to the token's text.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.total_s = 0.0
        self.counts = [0] * (len(_ITL_S) + 1)  # deltas by time per token, the last without bound

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A delta, so long after the one before it."""
        self.num_tokens += num_tokens
        each_s = seconds / num_tokens
        self.total_s += each_s
        self.counts[bisect_left(_ITL_S, each_s)] += 1


class TokenMetrics:
    """What is counted token by token, put into metrics when somebody asks."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteTokens] = {}

    def of(self, route: str) -> RouteTokens:
        return self._routes.setdefault(route, RouteTokens())

    @property
    def spent(self) -> tuple[int, float]:
        """Tokens so far, and the time between them in all."""
        found = self._routes.values()
        return sum(each.num_tokens for each in found), sum(each.total_s for each in found)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        tokens = CounterMetricFamily("triptych_completion_tokens", "Tokens relayed from homes")
        tokens.add_metric([], sum(found.num_tokens for found in self._routes.values()))
        yield tokens
        latency = HistogramMetricFamily(
            "triptych_inter_token_latency_seconds",
            "Time between two deltas of a choice over the tokens that the second one brought",
            labels=["route"],
        )
        bounds = [*map(str, _ITL_S), "+Inf"]
        for route, found in self._routes.items():
            latency.add_metric(
                [route],
                buckets=list(zip(bounds, itertools.accumulate(found.counts), strict=True)),
                sum_value=found.total_s,
            )
        yield latency
