"""What a dashboard made for vLLM finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from router.metrics import RouterMetrics
from router.vllm_aliases import VllmAliases
from tests.unit.router.views import HOME as IDLE

HOME = replace(IDLE, running=3, waiting=2, free_blocks=25)


@pytest.fixture
def metrics() -> RouterMetrics:
    metrics = RouterMetrics(CollectorRegistry())
    VllmAliases(metrics, "m", lambda: [HOME], lambda: 5)
    return metrics


def value(metrics: RouterMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model_name": "m", **labels})


def test_what_is_running_and_waiting_counts_the_routers_queue(metrics: RouterMetrics) -> None:
    assert value(metrics, "vllm:num_requests_running") == 3
    assert value(metrics, "vllm:num_requests_waiting") == 7
    assert value(metrics, "vllm:kv_cache_usage_perc") == 0.75


def test_counters_are_those_of_our_own(metrics: RouterMetrics) -> None:
    metrics.prompt_tokens.inc(10)
    metrics.cached_tokens.inc(4)
    metrics.tokens.of("/a").num_tokens = 3
    metrics.tokens.of("/b").num_tokens = 4
    metrics.choices.labels("/a", "stop").inc()
    metrics.choices.labels("/b", "stop").inc()
    assert value(metrics, "vllm:prompt_tokens_total") == 10
    assert value(metrics, "vllm:prefix_cache_queries_total") == 10
    assert value(metrics, "vllm:prefix_cache_hits_total") == 4
    assert value(metrics, "vllm:generation_tokens_total") == 7
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 2


def test_histograms_are_sums_over_routes(metrics: RouterMetrics) -> None:
    for route, seconds in (("/a", 0.02), ("/b", 0.2)):
        metrics.time_to_first_token.labels(route).observe(seconds)
        metrics.request_seconds.labels(route).observe(seconds)
        metrics.tokens.of(route).observe(1, seconds)
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency"):
        assert value(metrics, f"vllm:{name}_seconds_count") == 2
        assert value(metrics, f"vllm:{name}_seconds_sum") == pytest.approx(0.22)
        assert value(metrics, f"vllm:{name}_seconds_bucket", le="0.1") == 1
